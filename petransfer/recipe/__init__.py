"""The user's request: recipes, their schema and overrides, and the specs of runs. Imports no torch."""
