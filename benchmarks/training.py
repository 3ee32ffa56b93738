"""Compare `neft train` with other trainers as whole commands: the same rows, steps and tokens with loss.

    python benchmarks/training.py --steps 8 --rounds 2                         # full, all contenders
    python benchmarks/training.py --method lora --contenders neft,trl,trl-best
    python benchmarks/training.py --results docs/benchmarks.jsonl              # a line for `plot.py`

    neft       `neft train` with its defaults
    neft-small `neft train`, returning freed memory to the system: less memory
    trl        `trl sft --use_cpu`, otherwise with its defaults
    trl-best   the same with its best flags: two threads, memory kept, padding-free, no recomputation
    script     a plain SFTTrainer script without tuning
    soup       `soup train` in its own environment (--soup FOLDER of a virtual environment); its rates are for four
               accumulated batches, so it gets one, and it has loss on the answers as the others do

The contenders alternate; the table shows medians. Each trains for the same number of steps on the same rows, with the
same batch size and learning rate, does not evaluate, and saves its model, whose held-out loss is then measured in the
same way for all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import BIN, Timed, model_folder, run, write_rows

HELD_OUT = 64
RATES = {"full": "5e-5", "lora": "2e-4", "qlora": "2e-4"}


@dataclass(frozen=True)
class Task:
    """The training that every contender runs.

    Attributes:
        method: full, lora or qlora.
        model: A folder of safetensors.
        rows: A folder with one file of conversational prompts and completions.
        steps: Optimiser steps.
        batch_size: Rows per step.
    """

    method: str
    model: Path
    rows: Path
    steps: int
    batch_size: int


def main() -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=RATES, default="full")
    parser.add_argument("--contenders", default="neft,neft-small,trl,trl-best,script")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dataset", default="builtin", help="any data set that neft reads")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--soup", type=Path, help="the virtual environment that soup-cli is installed in")
    parser.add_argument("--results", type=Path, help="a .jsonl file to append to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(options, Path(scratch))


def measure(options: Any, folder: Path) -> None:
    """Run all contenders in turn, round by round; then measure the held-out loss of each saved model."""
    rows, held_out = write_rows(folder, options.dataset, options.steps * options.batch_size, HELD_OUT)
    model = model_folder(options.model)
    task = Task(options.method, model, rows, options.steps, options.batch_size)
    tokens = tokens_in(model, rows)
    names = options.contenders.split(",")
    found: dict[str, list[Timed]] = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names:
            output = folder / f"{name}-{turn}"
            command, environment = command_of(name, task, output, options.soup)
            found[name].append(run(command, folder, environment))
            print(f"# {name}: {found[name][-1].seconds:.1f} s", flush=True)
    print(f"\n{options.method}, {options.steps} steps of {options.batch_size} rows, {tokens} tokens without padding")
    print("contender    whole command, s   ratio to neft   tokens/s of it   peak memory, GiB   held-out loss")
    basis = statistics.median(timed.seconds for timed in found[names[0]])
    rows_of_table = {}
    for name in names:
        seconds = statistics.median(timed.seconds for timed in found[name])
        peak = max(timed.peak_bytes for timed in found[name]) / 2**30
        loss = held_out_loss(task, folder / f"{name}-0", held_out, folder)
        rate = tokens / seconds
        print(f"{name:11}{seconds:19.1f}{seconds / basis:16.2f}{rate:17.0f}{peak:19.2f}{loss:16.4f}", flush=True)
        rows_of_table[name] = {"seconds": seconds, "gib": peak, "loss": loss, "tokens_per_second": rate}
    if options.results:
        facts = {"method": options.method, "steps": task.steps, "batch_size": task.batch_size, "tokens": tokens}
        with options.results.open("a") as file:
            file.write(json.dumps({**facts, "rounds": options.rounds, "contenders": rows_of_table}) + "\n")


def tokens_in(model: Path, rows: Path) -> int:
    """Count the tokens of the training rows, without padding."""
    from neftcli.data.chat import load_chat_format
    from neftcli.data.mixture import read_examples
    from neftcli.data.prepare import prepare
    from neftcli.models.registry import resolve_model
    from neftcli.recipe.loading import parse_assignment
    from neftcli.recipe.loading import resolve_recipe as recipe_of

    class Nobody:
        """Observer that ignores all events."""

        def notify(self, event: Any) -> None:
            """Ignore an event."""

    sets = {"model.name": model, "data.source": rows, "data.held_out_rows": 0}
    recipe = recipe_of([parse_assignment(f"{key}={value}") for key, value in sets.items()])
    examples = read_examples(recipe.data)
    chat, _ = load_chat_format(recipe, resolve_model(str(model)), examples.row_format, Nobody())
    return prepare(examples, recipe.data, chat).counts.train.tokens


def command_of(name: str, task: Task, output: Path, soup: Path | None) -> tuple[list[str | Path], Mapping[str, str]]:
    """Return a contender's command, and its additional environment variables."""
    if name.startswith("neft"):
        return neft_command(task, output), {"MALLOC_TRIM_THRESHOLD_": "131072"} if name == "neft-small" else {}
    if name == "script":
        script = Path(__file__).with_name("plain_script.py")
        arguments = [task.model, task.rows, output, task.method, task.steps, task.batch_size, RATES[task.method]]
        return [BIN / "python", script, *map(str, arguments)], {}
    if name == "soup":
        if soup is None:
            raise SystemExit("soup needs --soup FOLDER: a virtual environment with soup-cli")
        return soup_command(task, output, soup.absolute()), {}
    best = name == "trl-best"
    kept = {
        "OMP_NUM_THREADS": str(os.cpu_count()),
        "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1),
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
        "MALLOC_TOP_PAD_": str(2**28),
    }
    return trl_command(task, output, best=best), kept if best else {}


def neft_command(task: Task, output: Path) -> list[str | Path]:
    """Return `neft train` with its defaults, without the evaluations that the others don't have."""
    sets = {"name": output.name, "evaluation.samples": 0, "evaluation.probe_rows": 0, "data.held_out_rows": 0}
    switch = {"full": [], "lora": ["--lora"], "qlora": ["--qlora"]}[task.method]
    return [
        *(BIN / "neft", "train", "--model", task.model, "--dataset", task.rows, "--output-dir", output, *switch),
        *("--max-steps", str(task.steps), "--batch-size", str(task.batch_size)),
        *("--learning-rate", RATES[task.method], "--alpha", "0"),
        *(part for key, value in sets.items() for part in ("--set", f"{key}={value}")),
    ]


def trl_command(task: Task, output: Path, *, best: bool) -> list[str | Path]:
    """Return `trl sft` with its own defaults, or with the fastest of its flags."""
    lora = ["--use_peft", "--lora_r", "16", "--lora_alpha", "32", "--lora_target_modules", "all-linear"]
    flags = ["--padding_free", "true", "--max_length", "None", "--activation_checkpointing", "false"]
    return [
        *(BIN / "trl", "sft", "--use_cpu", "--model_name_or_path", task.model, "--dataset_name", task.rows),
        *("--output_dir", output, "--report_to", "none", "--save_strategy", "no"),
        *("--max_steps", str(task.steps), "--per_device_train_batch_size", str(task.batch_size)),
        *("--learning_rate", RATES[task.method], "--lr_scheduler_type", "cosine"),
        *(lora if task.method != "full" else []),
        *(["--load_in_4bit", "--use_bnb_nested_quant"] if task.method == "qlora" else []),
        *(flags if best else []),
    ]


def soup_command(task: Task, output: Path, soup: Path) -> list[str | Path]:
    """Write the YAML for `soup train` and the rows as whole conversations (it reads no pairs); return the command."""
    chats = output.with_suffix(".jsonl")
    with chats.open("w") as file:
        for row in map(json.loads, next(task.rows.glob("*.jsonl")).open()):
            file.write(json.dumps({"messages": row["prompt"] + row["completion"]}) + "\n")
    lora = {"r": 0 if task.method == "full" else 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
    content = {
        "base": str(task.model),
        "task": "sft",
        "data": {"train": str(chats), "format": "chatml", "max_length": 1024, "train_on_responses_only": True},
        "training": {
            "epochs": 1,
            "lr": float(RATES[task.method]),
            "batch_size": task.batch_size,
            "gradient_accumulation_steps": 1,
            "lora": lora,
            "quantization": "4bit" if task.method == "qlora" else "none",
        },
        "output": str(output),
    }
    file = output.with_suffix(".yaml")
    file.write_text(json.dumps(content, indent=1), "utf-8")
    return [soup / "bin" / "soup", "train", "--config", file, "--yes"]


def held_out_loss(task: Task, output: Path, held_out: Path, folder: Path) -> float:
    """Return the held-out loss, in nats per token, of the model that a contender saved."""
    import torch
    from transformers import AutoModelForCausalLM

    from neftcli.data.chat import ChatFormat
    from neftcli.data.mixture import read_examples
    from neftcli.data.prepare import prepare
    from neftcli.evaluation.loss import mean_loss, row_losses
    from neftcli.models.loading import load_tokenizer
    from neftcli.models.registry import resolve_model
    from neftcli.recipe.loading import parse_assignment
    from neftcli.recipe.loading import resolve_recipe as recipe_of

    saved = next(iter(output.glob("*/model")), output)
    recipe = recipe_of([parse_assignment(f"data.source={held_out}"), parse_assignment("data.held_out_rows=0")])
    tokenizer, _ = load_tokenizer(resolve_model(str(task.model)))
    rows = prepare(read_examples(recipe.data), recipe.data, ChatFormat(tokenizer)).train
    if (saved / "adapter_config.json").is_file():
        from peft import PeftModel

        model: Any = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, saved)
    else:
        model = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    loss = mean_loss(row_losses(model, rows, 16, torch.autocast("cpu", dtype=torch.bfloat16)))
    shutil.rmtree(saved)
    return float("nan") if loss is None else loss


if __name__ == "__main__":
    main()
