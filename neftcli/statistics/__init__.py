"""Estimates, intervals and tests: two models on the same prompts, and arms of a sweep over seeds and prompts."""
