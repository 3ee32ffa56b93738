"""Sweeps over alpha: which cells, what they show (`verdict.py`), and when no more are needed (`sequential.py`)."""
