"""Recipes, their schema and overrides, and the specs of runs. This package does not import torch."""
