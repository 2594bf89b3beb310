"""Studies: expand a recipe into a grid of runs, execute the runs, and store them in a folder."""
