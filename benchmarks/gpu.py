"""Measure LLaMA-2-7B's architecture on one GPU, against `trl sft` with its best flags, in less than ten minutes.

    python benchmarks/gpu.py                    # random weights, LoRA and QLoRA in bf16, rows of 512 and 2048 tokens
    python benchmarks/gpu.py --tiny             # a tiny model on any device, to check that the script runs

Each contender trains on the same rows, all of one length (so there is no padding) and with loss on all tokens, for the
same number of steps: `neft train` with alpha 5, and `trl sft` in bf16 without recomputation and without noise. Tokens
per second are those of the training loop after its first WARMUP steps; memory is what the device reports while the
command runs. The share of the GPU's peak is

    share = tokens/s * 4 * parameters / peak     (frozen weights get no gradient; QLoRA's products are in bf16, too)

The cost of the noise is too small to measure in whole commands, so it is measured on the embedding alone, with and
without noise. A command starts only while there is time for it, and ends at the limit; skipped commands are named.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import BIN, run

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}  # dense bf16, data sheets
CONTENDERS = ("trl sft", "neft train")
WORDS = 32_000
WARMUP = 4
ALPHA = 5


@dataclass(frozen=True)
class Task:
    """The training that every contender runs.

    Attributes:
        method: lora or qlora.
        length: Tokens per row.
        batch_size: Rows per step.
        steps: Optimiser steps.
        model: The model's folder.
        rows: A folder with one file of texts that are longer than a row.
        cpu: Train without a GPU.
    """

    method: str
    length: int
    batch_size: int
    steps: int
    model: Path
    rows: Path
    cpu: bool

    def tokens(self) -> int:
        """Return the number of tokens in the timed steps."""
        return self.length * self.batch_size * (self.steps - WARMUP)


def main() -> None:
    """Measure all contenders and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--budget", type=float, default=540, help="seconds for all commands together")
    parser.add_argument("--methods", default="lora,qlora", help="lora, qlora or both, with a comma between them")
    options = parser.parse_args()
    if options.steps <= WARMUP:
        parser.error(f"--steps {options.steps}: the first {WARMUP} are not timed; {WARMUP + 1} or more")
    if not {*options.methods.split(",")} <= {"lora", "qlora"}:
        parser.error(f"--methods {options.methods}: lora, qlora or lora,qlora")
    begun, device = time.monotonic(), device_name()
    noised = 64 if options.tiny else 4096
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = llama(folder / "model", tiny=options.tiny)
        parameters = json.loads((model / "parameters.json").read_text())
        print(f"# {device}, {parameters / 1e9:.2f} B parameters with random weights", flush=True)
        noise = noise_milliseconds(model, "cpu" if device == "CPU" else "cuda", noised)
        print(f"# the noise of {noised} tokens takes {noise:.3f} ms", flush=True)
        print(
            "| method | tokens per row | contender | tokens/s | / trl sft | share of peak | memory, GiB | command, s |"
        )
        print("|---|---:|---|---:|---:|---:|---:|---:|", flush=True)
        longest, failed = 0.0, False
        for method in options.methods.split(","):
            for length, batch_size in ((64, 2), (128, 1)) if options.tiny else ((512, 8), (2048, 2)):
                rows = texts(folder / f"{method}-{length}", length, options.steps * batch_size)
                task = Task(method, length, batch_size, options.steps, model, rows, device == "CPU")
                rates: dict[str, float] = {}
                for name in CONTENDERS:
                    if time.monotonic() - begun + longest > options.budget:
                        print(f"# no time was left for {method}, {length} tokens, {name}", flush=True)
                        continue
                    at = time.monotonic()
                    try:
                        left = options.budget - (at - begun)
                        print(measured(name, task, folder, device, parameters, rates, left), flush=True)
                    except (
                        RuntimeError
                    ) as error:  # for example OOM, or no time left: the others are measured nevertheless
                        failed = True
                        print(f"# {method}, {length} tokens, {name} failed: {str(error)[-900:]}", flush=True)
                    longest = max(longest, time.monotonic() - at)
        if failed:
            raise SystemExit(1)


def measured(
    name: str, task: Task, folder: Path, device: str, parameters: int, rates: dict[str, float], limit: float
) -> str:
    """Run a contender for at most `limit` seconds; return its table row, and add its tokens/s to `rates`."""
    output = folder / re.sub(r"\W+", "-", f"{task.method}-{task.length}-{name}")
    command = trl_command(task, output) if name == "trl sft" else neft_command(task, output)
    with memory_watched(task.cpu) as peak, steps_watched(folder / "command.log") as times:
        done = run(command, folder, {"PYTHONUNBUFFERED": "1"}, limit=limit)
    memory = max(peak) if peak else done.peak_bytes / 2**30
    seconds = trl_seconds(times, task) if name == "trl sft" else neft_seconds(output, task)
    rates[name] = task.tokens() / seconds
    ratio = f"{rates[name] / rates['trl sft']:.2f}" if "trl sft" in rates else "-"
    peaks = [value for card, value in PEAKS.items() if card in device]
    share = f"{rates[name] * 4 * parameters / peaks[0]:.0%}" if peaks else "-"
    cells = [task.method, str(task.length), name, f"{rates[name]:.0f}", ratio, share]
    return f"| {' | '.join([*cells, f'{memory:.1f}', f'{done.seconds:.0f}'])} |"


def neft_command(task: Task, output: Path) -> list[str | Path]:
    """Return `neft train` with its defaults, without additional measurements."""
    sets = {
        **{"name": "gpu", "evaluation.samples": 0, "evaluation.probe_rows": 0, "data.held_out_rows": 0},
        **{"training.logging_steps": 1, "data.max_length": task.length},
    }
    return [
        *(BIN / "neft", "train", "--model", task.model, "--dataset", task.rows, "--output-dir", output),
        *(f"--{task.method}", "--alpha", str(ALPHA), "--max-steps", str(task.steps)),
        *("--batch-size", str(task.batch_size)),
        *(part for key, value in sets.items() for part in ("--set", f"{key}={value}")),
    ]


def trl_command(task: Task, output: Path) -> list[str | Path]:
    """Return `trl sft` with its fastest flags for this task."""
    return [
        *(BIN / "trl", "sft", *(["--use_cpu"] if task.cpu else ["--bf16", "true", "--dtype", "bfloat16"])),
        *("--model_name_or_path", task.model, "--dataset_name", task.rows, "--output_dir", output),
        *("--report_to", "none", "--save_strategy", "no", "--logging_steps", "1"),
        *("--max_steps", str(task.steps), "--per_device_train_batch_size", str(task.batch_size)),
        *("--max_length", str(task.length), "--activation_checkpointing", "false", "--learning_rate", "2e-4"),
        *("--use_peft", "--lora_r", "16", "--lora_alpha", "32", "--lora_target_modules", "all-linear"),
        *(["--load_in_4bit", "--use_bnb_nested_quant"] if task.method == "qlora" else []),
    ]


def neft_seconds(output: Path, task: Task) -> float:
    """Return the seconds of the timed steps, from the log rows of the run."""
    [file] = output.glob("*/metrics.jsonl")
    rates = [row["tokens_per_second"] for row in map(json.loads, file.open()) if row["event"] == "training.step"]
    if len(rates) != task.steps:
        raise RuntimeError(f"{file}: {len(rates)} of {task.steps} steps were logged")
    return sum(task.length * task.batch_size / rate for rate in rates[WARMUP:])


def trl_seconds(times: list[float], task: Task) -> float:
    """Return the seconds of the timed steps, from the times at which the trainer printed them."""
    if len(times) != task.steps:
        raise RuntimeError(f"trl printed {len(times)} of {task.steps} steps")
    return times[-1] - times[WARMUP - 1]


@contextmanager
def steps_watched(log: Path) -> Iterator[list[float]]:
    """Record within the block when each step's loss is written to a log, to a few milliseconds."""
    log.unlink(missing_ok=True)
    seen: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            with suppress(FileNotFoundError):
                found = log.read_bytes().count(b"'loss': ")
                seen.extend([time.monotonic()] * (found - len(seen)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def noise_milliseconds(folder: Path, device: str, tokens: int, rounds: int = 50) -> float:
    """Return how much longer the embedding of a row of four documents takes with noise, in the weights' type."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from neftcli.neftune import neftune

    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 1
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
        tokens_of_row = torch.randint(0, config.vocab_size, (1, tokens))
        positions = torch.arange(tokens // 4).repeat(4)[None]
    model.model.layers = torch.nn.ModuleList()
    seconds: dict[float, float] = {}
    for alpha in (0.0, ALPHA):
        with neftune(model, alpha), torch.no_grad():
            times = []
            for _ in range(rounds):
                at = time.perf_counter()
                model.model(input_ids=tokens_of_row, position_ids=positions, use_cache=False)
                if device == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - at)
        seconds[alpha] = statistics.median(times)
    del model
    torch.cuda.empty_cache()  # nothing without a GPU
    return 1000 * (seconds[ALPHA] - seconds[0.0])


@contextmanager
def memory_watched(cpu: bool) -> Iterator[list[float]]:
    """Record within the block the used memory of the first GPU in GiB; nothing without a GPU."""
    before = 0.0 if cpu else used()
    seen: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.25):
            seen.append(used() - before)

    thread = threading.Thread(target=watch, daemon=True)
    if not cpu:
        thread.start()
    try:
        yield seen
    finally:
        ended.set()
        if not cpu:
            thread.join()


def used() -> float:
    """Return the used memory of the first GPU in GiB."""
    return float(asked("memory.used").split()[0]) / 1024


def device_name() -> str:
    """Return the name of the first GPU; CPU if torch can't use one."""
    import torch

    return asked("name") if torch.cuda.is_available() else "CPU"


def asked(what: str) -> str:
    """Return a property of the first GPU that nvidia-smi reports."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader", "--id=0"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def texts(folder: Path, length: int, rows: int) -> Path:
    """Write texts of more than `length` tokens each, so that every row is truncated to it."""
    folder.mkdir()
    lines = (
        json.dumps({"text": " ".join(f"w{(row * 997 + word * 31) % (WORDS - 4)}" for word in range(2 * length))})
        for row in range(rows)
    )
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def llama(folder: Path, *, tiny: bool) -> Path:
    """Save LLaMA-2-7B with random weights, and a word tokenizer with its vocabulary size."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from neftcli.models.registry import ALIASES

    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    words = [*special.values(), *(f"w{number}" for number in range(WORDS - len(special)))]
    plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, special["unk_token"]))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, **special)
    architecture: dict[str, Any] = {**ALIASES["llama-2-7b"].architecture}
    if tiny:
        small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        architecture |= {**small, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = AutoConfig.for_model(architecture.pop("model_type"), **architecture)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "parameters.json").write_text(str(model.num_parameters()))
    del model
    torch.cuda.empty_cache()  # nothing without a GPU
    return folder


if __name__ == "__main__":
    main()
