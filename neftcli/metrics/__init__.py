"""Metrics of an evaluation: `registry.py` has one entry for each, `answer_metrics.py` computes those of answers."""
