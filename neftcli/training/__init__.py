"""Training: from a recipe to a finished run.

`run.py` does it in order, `trainer.py` assembles the SFTTrainer (the only file that imports trl), `watch.py` turns what
the trainer does into events, `together.py` is what several processes agree on, `plan.py` says what a run would do, and
`card.py` writes the model card.
"""
