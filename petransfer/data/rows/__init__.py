"""Read the rows of the user's own files, check them, and store them on disk."""
