"""Studies: a recipe's grid of runs, carried out and kept on disk."""
