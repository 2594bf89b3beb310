"""Kinds of effects, one file per kind."""
