"""Sweeps over alpha: what several seeds show (`statistics.py`) and which arms need no more of them (`racing.py`)."""
