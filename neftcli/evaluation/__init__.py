"""Evaluation, always without noise: the loss of rows (`loss.py`) and generated answers (`generation.py`), both in
evaluation mode (`mode.py`).
"""
