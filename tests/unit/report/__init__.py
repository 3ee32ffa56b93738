"""Tests of the report modules."""
