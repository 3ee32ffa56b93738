"""A way out for a run: its model without an adapter, or as a file for another program.

`merge` writes safetensors, `export` the targets in `export_targets`. Both load the run through `tuned_model`, compare
the written model with it (`logits`), and write to a hidden path that gets its name at the end (`output`).
"""
