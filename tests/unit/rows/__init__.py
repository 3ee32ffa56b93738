"""Tests of readers and row formats."""
