"""Measure the noise of each document with neft and with Hugging Face's hook, through SFTTrainer.

    python benchmarks/exactness.py [--alpha 5] [--steps 40]

A tiny Llama is trained with learning rate 0 on four documents of known lengths: alone, padded, packed and padding-free.
The table shows the largest noise in the embedding's output over many draws, divided by the paper's bound
alpha / sqrt(L d). 1.00 is the paper's noise.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import defaultdict
from contextlib import nullcontext
from typing import Any

import datasets
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from neftcli.neftune import neftune
from tests.tiny import tiny_tokenizer

LENGTHS = (20, 60, 120, 300)
WIDTH = 64
FIRST_TOKEN = 10
PAD = 0
LAYOUTS: dict[str, dict[str, Any]] = {
    "alone": {"per_device_train_batch_size": 1, "max_length": None},
    "padded": {"per_device_train_batch_size": len(LENGTHS), "max_length": None},
    "packed": {"per_device_train_batch_size": 1, "packing": True, "max_length": 512},
    "padding-free": {"per_device_train_batch_size": len(LENGTHS), "padding_free": True, "max_length": None},
}


class NoiseRecorder(TrainerCallback):
    """Records the largest noise of each token id, from a hook that runs after all others."""

    def __init__(self) -> None:
        self.largest: dict[int, float] = defaultdict(float)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Register the hook, after those that add noise."""
        embedding = model.get_input_embeddings()

        def record(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            noise = (output - torch.nn.functional.embedding(inputs[0], module.weight)).detach().abs().amax(-1)
            for token in inputs[0].unique().tolist():
                self.largest[token] = max(self.largest[token], float(noise[inputs[0] == token].max()))

        embedding.register_forward_hook(record)


def measure_noise(layout: str, neft: bool, alpha: float, steps: int) -> dict[int, float]:
    """Return the largest noise of each token id; each document has its own id, and so has padding."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=PAD,
        )
    )
    documents = [[FIRST_TOKEN + index] * length for index, length in enumerate(LENGTHS)]
    recorder = NoiseRecorder()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            learning_rate=0.0,
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            neftune_noise_alpha=None if neft else alpha,
            **LAYOUTS[layout],
        )
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"input_ids": documents, "labels": documents}),
            processing_class=tiny_tokenizer(),
            callbacks=[recorder],
        )
        trainer.remove_callback(PrinterCallback)
        with neftune(trainer.model, alpha) if neft else nullcontext():
            trainer.train()
    return recorder.largest


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpha", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    print(f"Largest noise over {options.steps} steps / (alpha / sqrt(L d)); alpha {options.alpha:g}, d {WIDTH}\n")
    print("| | document of | " + " | ".join(LAYOUTS) + " |")
    print("|---|---:|" + "---:|" * len(LAYOUTS))
    for neft in (True, False):
        largest = {layout: measure_noise(layout, neft, options.alpha, options.steps) for layout in LAYOUTS}
        name = "neft" if neft else "Hugging Face's hook"
        for index, length in enumerate(LENGTHS):
            bound = options.alpha / (length * WIDTH) ** 0.5
            cells = " | ".join(f"{largest[layout][FIRST_TOKEN + index] / bound:.2f}" for layout in LAYOUTS)
            print(f"| {name} | {length} tokens | {cells} |")
        pads = " | ".join(f"{largest[layout][PAD]:.3f}" if PAD in largest[layout] else "-" for layout in LAYOUTS)
        print(f"| {name} | padding, absolute | {pads} |")


if __name__ == "__main__":
    main()
