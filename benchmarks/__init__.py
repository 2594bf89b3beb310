"""Measurements that compare petransfer with the tools that a user would otherwise use."""
