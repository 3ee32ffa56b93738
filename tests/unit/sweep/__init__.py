"""Tests of the sweep modules."""
