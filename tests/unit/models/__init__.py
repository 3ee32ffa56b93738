"""Tests of the model modules."""
