"""Tests of the NEFTune modules."""
