"""Data: from files to tokens.

`sources.py` reads rows and remembers their lines; `formats.py` recognises how rows are laid out and turns each into
an example; `splits.py` keeps rows for evaluation so that no prompt stands on both sides; `tokens.py` renders and
tokenises, and marks the tokens that carry loss; `prepare.py` does the four in order and counts.
"""
