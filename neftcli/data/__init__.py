"""Data: from files to tokens.

`sources.py` reads rows and remembers their lines; `formats.py` recognises how rows are laid out and turns each into
an example; `splits.py` keeps rows for evaluation so that no prompt stands on both sides; `tokens.py` renders and
tokenises, and marks the tokens that carry loss; `store.py` and `rows.py` keep examples and tokens, so that memory does
not grow with them; `prepare.py` does all of it in order and counts.
"""
