"""The run directory: one folder of plain files for each run.

runs/NAME/
├── recipe.yaml      the resolved recipe: `neft train --recipe runs/NAME/recipe.yaml` repeats the run
├── run.json         status, versions, hardware, seeds, fingerprints, results
├── metrics.jsonl    one line a log row or evaluation
├── samples.jsonl    held-out prompts with the answers before and after
├── train.log        what the libraries said
├── checkpoints/     the trainer's own working folder
├── model/           weights or adapter (safetensors), tokenizer, model card
└── evaluation/      what `neft eval` measured of it
"""
