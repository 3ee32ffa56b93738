"""Run directories: each run has a folder of plain files.

runs/NAME/
├── recipe.yaml      the resolved recipe: `neft train --recipe runs/NAME/recipe.yaml` repeats the run
├── run.json         status, versions, hardware, seeds, fingerprints, results
├── metrics.jsonl    a line for each log row and evaluation
├── samples.jsonl    held-out prompts with the answers before and after training
├── train.log        output of the libraries
├── checkpoints/     checkpoints to resume from
├── model/           weights or adapter (safetensors), tokenizer, model card
└── evaluation/      results of `neft eval`
"""
