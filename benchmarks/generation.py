"""Compare answers generated in batches with those of one prompt at a time, alternating, in one process.

    python benchmarks/generation.py --prompts 32 --rounds 2

Prints tokens per second (median over rounds), their ratios, and how many answers differ from those of batch size 1:
none should in float32; in bfloat16 a different batch size can change the rounding of a score.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

from neftcli.data.chat import ChatFormat
from neftcli.data.mixture import read_examples
from neftcli.data.tokens import tokenize_prompt
from neftcli.evaluation.generation import generate_answers
from neftcli.models.loading import load_model_for_recipe, load_tokenizer
from neftcli.models.registry import resolve_model
from neftcli.recipe.loading import load_recipe, parse_assignment
from neftcli.system.device import resolve_compute_config
from neftcli.system.libraries import prepare_libraries

SIZES = (1, 8, 32)


def main() -> None:
    """Measure and print a table for each precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    prepare_libraries()
    for precision in ("bfloat16", "float32"):
        measure(options, precision)


def measure(options: Any, precision: str) -> None:
    """Measure one precision: every batch size in turn, round by round."""
    recipe = load_recipe("quickstart", [parse_assignment(f"training.precision={precision}")])
    reference = resolve_model(options.model)
    frozen_weights = recipe.adapter.type != "none"
    compute = resolve_compute_config(recipe.training.precision, recipe.model.dtype, frozen_weights=frozen_weights)
    model = load_model_for_recipe(recipe, reference, compute)
    chat = ChatFormat(load_tokenizer(reference)[0])
    examples = read_examples(recipe.data).held_out[: options.prompts]
    prompts = [tokenize_prompt(chat, example) for example in examples]
    generation = replace(recipe.evaluation.generation, max_new_tokens=options.max_new_tokens)
    rates: dict[int, list[float]] = {size: [] for size in SIZES}
    texts: dict[int, list[str]] = {}
    generate_answers(model, chat, prompts[:2], generation, compute.autocast())  # first touch of memory
    for _ in range(options.rounds):
        for size in SIZES:
            begun = time.perf_counter()
            answers = generate_answers(model, chat, prompts, replace(generation, batch_size=size), compute.autocast())
            seconds = time.perf_counter() - begun
            rates[size].append(sum(answer.tokens for answer in answers) / seconds)
            texts[size] = [answer.text for answer in answers]
    device = compute.hardware.describe()
    print(f"\n{options.model}, {precision}, {device}, {len(prompts)} prompts, {options.rounds} rounds")
    print("batch   tokens/s   ratio to 1   answers that differ from batch 1")
    single = statistics.median(rates[1])
    for size in SIZES:
        rate = statistics.median(rates[size])
        other = sum(one != two for one, two in zip(texts[1], texts[size], strict=True))
        print(f"{size:5}   {rate:8.1f}   {rate / single:10.2f}   {other} of {len(prompts)}")


if __name__ == "__main__":
    main()
