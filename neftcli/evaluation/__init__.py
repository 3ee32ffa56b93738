"""Evaluation, always without noise: the loss of rows (`loss.py`), generated answers (`generation.py`), `mode.py`."""
