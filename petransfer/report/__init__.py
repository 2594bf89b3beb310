"""Tables of what a study's run folders say. Imports no torch."""
