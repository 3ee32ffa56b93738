"""Tests of the evaluation modules."""
