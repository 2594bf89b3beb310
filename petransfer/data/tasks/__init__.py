"""The built-in tasks: one file each, with its metadata, registered when it is imported."""
