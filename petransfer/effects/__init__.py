"""What a study says: contrasts of arms with intervals, tests and verdicts. Reads run folders; imports no torch."""
