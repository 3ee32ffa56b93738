"""Tests of neft."""
