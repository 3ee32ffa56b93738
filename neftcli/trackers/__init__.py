"""Experiment trackers: `registry.py` has one entry for each."""
