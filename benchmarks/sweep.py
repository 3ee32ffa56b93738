"""Compare a sweep with the same cells trained one by one, as processes of `neft train` and of `trl sft`.

    python benchmarks/sweep.py --alphas 0,5,10,15 --seeds 3 --steps 3

Every cell trains on the same rows for the same number of steps. The processes alternate, cell by cell; halfway the
sweep runs, once undisturbed and once killed (-9) in the middle and resumed. `trl sft` does not evaluate, the other two
do; its noise has a different scaling. Prints wall times and ratios as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from commands import BIN, model_folder, run, write_rows

HELD_OUT = 24


def main() -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alphas", default="0,5,10,15")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dataset", default="builtin", help="any data set that neft reads")
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(options, Path(scratch)), indent=1))


def measure(options: Any, folder: Path) -> dict[str, Any]:
    """Run the cells in all three ways."""
    rows, held_out = write_rows(folder, options.dataset, options.steps * options.batch_size, HELD_OUT)
    model = model_folder(options.model)
    shared = neft_options(options, model, rows, held_out)
    cells = list(product(options.alphas.split(","), range(options.seeds)))
    seconds: dict[str, list[float]] = {"neft train": [], "trl sft": []}
    result: dict[str, Any] = {"cells": len(cells), "steps per cell": options.steps}
    for number, (alpha, seed) in enumerate(cells):
        if number == len(cells) // 2:
            result["sweep, seconds"] = sweep(options, shared, folder, "whole")
            result["sweep killed and resumed, seconds"] = killed_sweep(options, shared, folder)
        alone = [BIN / "neft", "train", *shared, "--alpha", alpha, "--seed", str(seed), "--output-dir", "alone"]
        seconds["neft train"].append(run(alone, folder).seconds)
        seconds["trl sft"].append(run(trl_command(options, model, rows, alpha, seed), folder).seconds)
    for name, values in seconds.items():
        result[f"{name}, seconds"] = round(sum(values), 1)
        result[f"{name}, seconds a cell"] = [round(value, 1) for value in values]
        result[f"{name} / sweep"] = round(sum(values) / result["sweep, seconds"], 2)
    return result


def sweep(options: Any, shared: list[str], folder: Path, name: str) -> float:
    """Return the seconds of the whole sweep, with its verdict and plots."""
    return round(run(sweep_command(options, shared, name), folder).seconds, 1)


def killed_sweep(options: Any, shared: list[str], folder: Path) -> float:
    """Return the seconds of a sweep that is killed when half of its cells are done, and of the one that resumes it."""
    cells = folder / "killed" / "run-sweep" / "cells"
    begun = time.perf_counter()
    with (folder / "killed.log").open("w") as log:
        process = subprocess.Popen(sweep_command(options, shared, "killed"), cwd=folder, stdout=log, stderr=log)
        half = len(options.alphas.split(",")) * options.seeds // 2
        while process.poll() is None and len(list(cells.glob("*/evaluation/cell.json"))) < half:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    run(sweep_command(options, shared, "killed"), folder)
    return round(time.perf_counter() - begun, 1)


def sweep_command(options: Any, shared: list[str], name: str) -> list[str]:
    """Return the command of the sweep, in its own folder."""
    grid = ["--alphas", options.alphas, "--seeds", str(options.seeds), "--set", "sweep.answers=false"]
    return [str(BIN / "neft"), "sweep-alpha", *shared, *grid, "--output-dir", name]


def neft_options(options: Any, model: Path, rows: Path, held_out: Path) -> list[str]:
    """Return the options that `neft train` and the sweep share: LoRA r16, one evaluation at the end."""
    sets = {
        "name": "run",
        "data.held_out_source": held_out,
        "evaluation.every": 1,
        "evaluation.samples": 0,
        "evaluation.probe_rows": 0,
        "training.max_steps": options.steps,
        "training.per_device_train_batch_size": options.batch_size,
        "training.learning_rate": "5e-4",
    }
    typed = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    return ["--model", str(model), "--dataset", str(rows), "--lora", *typed]


def trl_command(options: Any, model: Path, rows: Path, alpha: str, seed: int) -> list[str | Path]:
    """Return the same training by `trl sft`, otherwise with its defaults."""
    noise = ["--neftune_noise_alpha", alpha] if float(alpha) else []
    return [
        *(BIN / "trl", "sft", "--use_cpu", "--model_name_or_path", model, "--dataset_name", rows),
        *("--output_dir", f"trl-a{alpha}-s{seed}", "--report_to", "none", "--seed", str(seed)),
        *("--use_peft", "--lora_r", "16", "--lora_alpha", "32", "--lora_target_modules", "all-linear"),
        *("--max_steps", str(options.steps), "--per_device_train_batch_size", str(options.batch_size)),
        *("--learning_rate", "5e-4", "--lr_scheduler_type", "cosine", *noise),
    ]


if __name__ == "__main__":
    main()
