"""Scenarios of sharded steps, which tests/sharded.py runs on several ranks."""
