"""Kinds of effects, one file each: the data, the test, the sentence and the plot. The registry finds each file."""
