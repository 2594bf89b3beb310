"""The results of a study: contrasts of arms with intervals, tests and verdicts. Reads run folders; imports no torch."""
