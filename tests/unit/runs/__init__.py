"""Tests of the run directory modules."""
