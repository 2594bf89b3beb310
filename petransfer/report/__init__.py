"""Tables, plots and pages of a study's results. Imports no torch."""
