"""Rows and timed commands for the benchmarks that compare tools.

Rows are written as conversational prompt/completion pairs, which neft and TRL read the same way: the same template, the
same tokens, loss on the completion.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from neftcli.data.mixture import read_examples
from neftcli.models.registry import resolve_model
from neftcli.recipe.loading import load_recipe, parse_assignment

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Timed:
    """A command that succeeded.

    Attributes:
        seconds: Wall time of the command.
        peak_bytes: Peak memory of its largest process.
        output: Its output.
        anonymous_bytes: Peak memory of the command's own process that is not backed by a file; 0 without /proc.
    """

    seconds: float
    peak_bytes: int
    output: str
    anonymous_bytes: int = 0


def run(
    command: Sequence[str | Path],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    limit: float | None = None,
) -> Timed:
    """Run a command in `folder` for at most `limit` seconds, with additional variables in `environment`.

    Raises:
        RuntimeError: It failed or was killed at its limit; the message has its last lines.
    """
    log = folder / "command.log"
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", **(environment or {})}
    begun = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=variables,
            start_new_session=True,
        )
        ended, peaks = Event(), [0]
        watching = Thread(target=_watch, args=(process, ended, peaks, limit))
        watching.start()
        _, status, usage = os.wait4(process.pid, 0)
        ended.set()
        watching.join()
    seconds = time.perf_counter() - begun
    output = log.read_text(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        why = f"exit code {code} after {seconds:.0f} s"
        raise RuntimeError(f"{' '.join(map(str, command))}\n{output[-2000:]}\n{why}")
    return Timed(seconds, usage.ru_maxrss * 1024, output, peaks[0])


def _watch(process: subprocess.Popen[bytes], ended: Event, peaks: list[int], limit: float | None) -> None:
    """Read a process' anonymous memory fifty times per second (the kernel keeps a peak only of all its memory).

    The process is killed at its limit.
    """
    status, last = Path(f"/proc/{process.pid}/status"), time.monotonic() + (limit or float("inf"))
    while not ended.wait(0.02):
        if time.monotonic() > last:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # `trl sft` trains in a process of its own
        with suppress(OSError, StopIteration):
            line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon:"))
            peaks[0] = max(peaks[0], int(line.split()[1]) * 1024)


def write_rows(folder: Path, dataset: str, training: int, held_out: int) -> tuple[Path, Path]:
    """Write training and held-out rows of a data set, each as the only file of a folder, and return both folders."""
    recipe = load_recipe(
        "quickstart",
        [parse_assignment(f"data.source={dataset}"), parse_assignment(f"data.held_out_rows={held_out}")],
    )
    examples = read_examples(recipe.data)
    folders = []
    for name, rows in (("train", examples.train[:training]), ("held-out", examples.held_out[:held_out])):
        lines = []
        for row in rows:
            turns = [
                {"role": turn.role, "content": "\n".join(part for part in (turn.content, turn.context) if part)}
                for turn in row.turns
            ]
            lines.append(json.dumps({"prompt": turns[:-1], "completion": turns[-1:]}, ensure_ascii=False))
        path = folder / name
        path.mkdir(parents=True)
        (path / "rows.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        folders.append(path)
    return folders[0], folders[1]


def model_folder(name: str) -> Path:
    """Return the model as a folder of safetensors, which every tool can load."""
    from neftcli.models.gguf import convert_gguf

    reference = resolve_model(name)
    return convert_gguf(Path(reference.location)) if reference.kind == "gguf" else Path(reference.location)
