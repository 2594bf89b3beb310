"""What a user asks for: recipes, their schema and overrides, and the specs of runs. Imports no torch."""
