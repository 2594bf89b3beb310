"""The effects of a study: differences between arms or methods, with intervals and verdicts. Imports no torch."""
