"""Estimates, confidence intervals and tests of two models on the same prompts, and of arms over seeds and prompts."""
