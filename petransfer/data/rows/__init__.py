"""Rows of the user's own files: reading them, checking them, keeping them on the disk."""
