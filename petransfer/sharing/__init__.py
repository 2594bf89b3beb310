"""Adapters that others can trust: packed, pushed, described, checked and merged."""
