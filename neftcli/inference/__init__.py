"""Answers of a run or model outside of an evaluation.

`chat.py` is `neft chat`: conversations whose answers are streamed. `answers.py` is `neft answer`: a file of rows in, a
file of answers out. Both generate with `neftcli.evaluation.generation`, without noise.
"""
