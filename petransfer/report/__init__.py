"""Tables, plots and pages of a study's results, read from its run folders. Imports no torch."""
