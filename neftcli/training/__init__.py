"""Training: from a recipe to a finished run.

- `train.py` reads from top to bottom: set up, measure the base model, train, measure again, report.
- `inputs.py` reads and checks model and rows, `assets.py` loads and caches them, `packing_check.py` measures
  whether the model isolates packed documents.
- `trainer.py` is TRL's SFTTrainer with neft's differences (the only file that imports trl), `callbacks.py` evaluates
  and saves during training, `evaluator.py` measures the model, `progress.py` estimates the time left.
- `resume.py` holds the state of stopped runs, `signals.py` stops them, `failures.py` records how they end,
  `collectives.py` makes several processes agree on a run.
- `model_card.py` writes the model's README, `dry_run.py` plans a run without training.
"""
