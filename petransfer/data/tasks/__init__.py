"""The built-in tasks. Each file declares a task and its metadata; importing the file registers the task."""
