"""Measure training against the size of rows, lengths, batches and models; synthetic, one at a time.

    python benchmarks/sizes.py                      # all four tables, about a quarter of an hour on two cores
    python benchmarks/sizes.py --tables rows,width
    python benchmarks/sizes.py --tables rows --rows 1000,500000

    rows     whole commands of two steps with a tiny model: the cost of reading, splitting and tokenising
    length   SmolLM2-135M, full, 2048 tokens per step as rows of 128 to 2048
    batch    SmolLM2-135M, full, 1 to 16 rows of 128 tokens per step
    width    Llamas with random weights, 8 layers, 256 to 1024 wide, 8 rows of 128 tokens per step

Tokens per second are those of the steps after the first, and peak memory is that of the process. Anonymous memory is
memory that is not backed by a file: the system can drop pages of mapped files (libraries, weights, rows) when memory is
scarce. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from commands import BIN, Timed, model_folder, run

STEPS = 4
WORDS = ["the", "of", "and", "water", "in", "is", "to", "glacier", "for", "as", "with", "on", "that", "slow", "ice"]
Row = tuple[str, ...]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="rows,length,batch,width")
    parser.add_argument("--rows", default="1000,10000,100000", help="numbers of rows of the table rows, rising")
    options = parser.parse_args()
    numbers = [int(number) for number in options.rows.split(",")]
    tables: dict[str, tuple[Row, Callable[[Path], Iterator[Row]]]] = {
        "rows": (
            ("rows", "whole command, s", "ms per row", "peak memory, GiB", "anonymous, MiB", "bytes per row"),
            lambda folder: rows_table(folder, numbers),
        ),
        "length": (("tokens per row", "rows per step", "tokens/s", "peak memory, GiB"), length_table),
        "batch": (("rows per step", "tokens per step", "tokens/s", "peak memory, GiB"), batch_table),
        "width": (("width", "parameters", "tokens/s", "TFLOP/s", "peak memory, GiB"), width_table),
    }
    for name in options.tables.split(","):
        head, table = tables[name]
        print(f"\n| {' | '.join(head)} |\n|{'---:|' * len(head)}", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            for row in table(Path(scratch)):
                print(f"| {' | '.join(row)} |", flush=True)


def rows_table(folder: Path, numbers: Sequence[int]) -> Iterator[Row]:
    """Train two steps on pairs of about 130 tokens; time and memory per row are those of the additional rows."""
    model = llama(folder, 64, 2)
    before: tuple[int, Timed] | None = None
    for number in numbers:
        rows = folder / f"{number}.jsonl"
        with rows.open("w") as file:
            for place in range(number):
                question = f"question {place}: {text(30, place)}"
                file.write(json.dumps({"prompt": question, "completion": text(60, -place)}) + "\n")
        done = train(folder, f"r{number}", model, rows, 8, 256, steps=2)[0]
        milliseconds = octets = ""
        if before is not None:
            more = number - before[0]
            milliseconds = f"{1000 * (done.seconds - before[1].seconds) / more:.2f}"
            octets = f"{(done.anonymous_bytes - before[1].anonymous_bytes) / more:,.0f}"
        before = number, done
        anonymous = f"{done.anonymous_bytes / 2**20:,.0f}"
        yield f"{number:,}", f"{done.seconds:.1f}", milliseconds, gibibytes(done), anonymous, octets


def length_table(folder: Path) -> Iterator[Row]:
    """Train on longer rows, with the same number of tokens per step."""
    model, rows = model_folder("smollm2-135m"), long_rows(folder)
    for length in (128, 256, 512, 1024, 2048):
        done, rate = train(folder, f"l{length}", model, rows, 2048 // length, length)
        yield str(length), str(2048 // length), f"{rate:.0f}", gibibytes(done)


def batch_table(folder: Path) -> Iterator[Row]:
    """Train on more rows per step."""
    model, rows = model_folder("smollm2-135m"), long_rows(folder)
    for batch in (1, 2, 4, 8, 16):
        done, rate = train(folder, f"b{batch}", model, rows, batch, 128)
        yield str(batch), str(batch * 128), f"{rate:.0f}", gibibytes(done)


def width_table(folder: Path) -> Iterator[Row]:
    """Train wider models; a step needs about 6 x parameters x tokens operations."""
    rows = long_rows(folder)
    for width in (256, 512, 1024):
        model = llama(folder, width, 8)
        done, rate = train(folder, f"w{width}", model, rows, 8, 128)
        parameters = json.loads((model / "parameters.json").read_text())
        yield (
            str(width),
            f"{parameters / 1e6:.1f} M",
            f"{rate:.0f}",
            f"{6 * parameters * rate / 1e12:.2f}",
            gibibytes(done),
        )


def train(
    folder: Path, name: str, model: Path, rows: Path, batch: int, length: int, steps: int = STEPS
) -> tuple[Timed, float]:
    """Run `neft train` without evaluations; return it, and its tokens per second after the first step."""
    sets = {"name": name, "evaluation.samples": 0, "evaluation.probe_rows": 0, "data.held_out_rows": 0}
    sets |= {"data.max_length": length, "training.logging_steps": 1, "neftune.alpha": 5}
    done = run(
        [
            *(BIN / "neft", "train", "--model", model, "--dataset", rows, "--output-dir", folder / "runs"),
            *("--max-steps", str(steps), "--batch-size", str(batch)),
            *(part for key, value in sets.items() for part in ("--set", f"{key}={value}")),
        ],
        folder,
    )
    lines = (folder / "runs" / f"{name}-a5-s0" / "metrics.jsonl").read_text().splitlines()
    rates = [row["tokens_per_second"] for row in map(json.loads, lines) if row["event"] == "training.step"][1:]
    return done, len(rates) / sum(1 / rate for rate in rates)  # of equal steps


def long_rows(folder: Path) -> Path:
    """Write plain texts that are longer than any length here, so that each is truncated."""
    rows = folder / "long.jsonl"
    rows.write_text("".join(json.dumps({"text": text(2600, number)}) + "\n" for number in range(STEPS * 16)))
    return rows


def text(words: int, seed: int) -> str:
    """Return a text of N random words."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))  # noqa: S311 - no secret


def llama(folder: Path, width: int, layers: int) -> Path:
    """Save a Llama with random weights and the vocabulary of SmolLM2."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder("smollm2-135m"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        tie_word_embeddings=True,
    )
    place = folder / f"llama-{width}"
    model = LlamaForCausalLM(config)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    (place / "parameters.json").write_text(str(model.num_parameters()))
    return place


def gibibytes(done: Timed) -> str:
    """Format the peak memory in GiB."""
    return f"{done.peak_bytes / 2**30:.2f}"


if __name__ == "__main__":
    main()
