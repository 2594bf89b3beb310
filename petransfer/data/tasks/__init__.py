"""The built-in tasks. Importing a task's file registers the task."""
