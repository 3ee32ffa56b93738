"""Plots of a sweep (`plots.py`)."""
