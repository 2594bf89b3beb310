"""Studies: expand a recipe into a grid of runs, execute the runs, and store the results in a folder."""
