"""Evaluation without noise: losses, generated answers, a judge, benchmark tasks, comparisons and reports.

`evaluate.py` is `neft eval` from top to bottom; `exports.py` is the registry of exports.
"""
