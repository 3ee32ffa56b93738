"""After a kill (-9) at any file operation, the next command finishes with the result of an uninterrupted one.

Oracles: the uninterrupted command, by the hash of weights, the lines of metrics.jsonl without times, and the names of
all files at the end. The states are those of `tests/states.py`: a sample by default, all of them with --exhaustive.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from neftcli.runs.directory import RunDirectory
from neftcli.system.files import temporary_name
from tests.judge_server import judge_server, prefers_longer
from tests.killed_runs import run_result
from tests.recorded_commands import EVAL_OPTIONS, RUN, describe_run, fork_workers, path_names, train_command
from tests.states import call_in, contents, neft_in, spread_out, states_of
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import save_tiny_gguf

SOME_STATES = 12
"""Number of states of a command that are tested without --exhaustive."""
SOME_STATES_OF_A_SWEEP = 5


@pytest.fixture
def exhaustive(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("exhaustive"))


@pytest.fixture
def max_states(exhaustive: bool) -> int:
    return sys.maxsize if exhaustive else SOME_STATES


@pytest.fixture
def arguments(tiny_folder: Callable[[str], Path], rows_file: Path) -> list[str]:
    return train_command(tiny_folder("llama"), rows_file)


def resume_or_start(folder: Path, arguments: list[str]) -> tuple[int, str]:
    """Run the command for Slurm in docs/resume.md: resume if there is a folder, else start."""
    record = folder / RUN / "run.json"
    if record.is_file() and json.loads(record.read_text())["status"] == "finished":
        neft_in(folder, "train", "--resume", RUN)  # removes files that the kill left
        return 0, ""
    return neft_in(folder, "train", "--resume", RUN) if (folder / RUN).is_dir() else neft_in(folder, *arguments)


def require_same_result(states: Iterable[Path], arguments: list[str], complete: Path) -> None:
    """Resume or start the run in each state, and compare it with the uninterrupted one."""
    for folder in states:
        state = path_names(folder)
        code, output = resume_or_start(folder, arguments)
        assert code == 0, (folder, state, output)
        assert run_result(folder / RUN) == run_result(complete / RUN), (folder, state)
        assert path_names(folder) == path_names(complete), (folder, state)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_train_killed_at_any_file_operation(max_states: int, arguments: list[str], tmp_path: Path) -> None:
    complete = tmp_path / "whole"
    complete.mkdir()
    code, output = neft_in(complete, *arguments, states=tmp_path / "states")
    assert code == 0, output
    states = states_of(tmp_path / "states")
    print(len(states), "states of train:", dict(Counter(map(describe_run, states))))
    assert {"no run", "a run without a checkpoint", "a run with a checkpoint", "finished"} == set(
        map(describe_run, states)
    )
    require_same_result(spread_out(states, max_states), arguments, complete)


@pytest.mark.slow
def test_resume_killed_at_any_file_operation(max_states: int, arguments: list[str], tmp_path: Path) -> None:
    complete = tmp_path / "whole"
    complete.mkdir()
    assert neft_in(complete, *arguments, states=tmp_path / "first")[0] == 0
    started = next(state for state in states_of(tmp_path / "first") if describe_run(state) == "a run with a checkpoint")
    code, output = neft_in(started, "train", "--resume", RUN, states=tmp_path / "states")
    assert code == 0, output
    states = states_of(tmp_path / "states")
    print(len(states), "states of resume:", dict(Counter(map(describe_run, states))))
    require_same_result(spread_out(states, max_states), arguments, complete)


def read_report(folder: Path) -> tuple[Any, ...]:
    """Return the report of an evaluation without times, its examples, and the names of all files."""
    [file] = folder.glob(f"{RUN}/evaluation/*/report.json")
    content = json.loads(file.read_text())
    content.pop("seconds")
    return content, file.with_name("examples.jsonl").read_text(), path_names(folder)


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_eval_with_judge_killed_at_any_file_operation(max_states: int, arguments: list[str], tmp_path: Path) -> None:
    """The report and all files are those of an uninterrupted evaluation."""
    complete = tmp_path / "whole"
    complete.mkdir()
    assert neft_in(complete, *arguments)[0] == 0
    with judge_server(prefers_longer) as server:
        judged = ("eval", RUN, "--judge", server.url, "--judge-model", "m", *EVAL_OPTIONS)
        code, output = neft_in(complete, *judged, states=tmp_path / "states")
        assert code == 0, output
        states = states_of(tmp_path / "states")
        print(len(states), "states of eval")
        for folder in spread_out(states, max_states):
            state = path_names(folder)
            code, output = neft_in(folder, *judged)
            assert code == 0, (folder, state, output)
            assert read_report(folder) == read_report(complete), (folder, state)
            shutil.rmtree(folder)


def convert(file: Path) -> None:
    """Convert a .gguf, with the cache in the current folder."""
    from neftcli.models.gguf import convert_gguf

    os.environ["NEFT_CACHE"] = str(Path("cache").absolute())
    assert convert_gguf(file).is_dir()


@pytest.mark.slow
def test_convert_gguf_killed_at_any_file_operation(max_states: int, tmp_path: Path) -> None:
    """Remains of killed conversions are removed; the other files are equal, byte for byte."""
    file, complete = tmp_path / "tiny.gguf", tmp_path / "whole"
    save_tiny_gguf(file, tiny_model("llama"), tiny_tokenizer())
    complete.mkdir()
    code, output = call_in(complete, partial(convert, file), tmp_path / "states")
    assert code == 0, output
    states = states_of(tmp_path / "states")
    print(len(states), "states of a conversion")
    for folder in spread_out(states, max_states):
        state = path_names(folder)
        code, output = call_in(folder, partial(convert, file))
        assert code == 0, (folder, state, output)
        assert contents(folder) == contents(complete), (folder, state)
        assert path_names(folder) == path_names(complete), (folder, state)
        shutil.rmtree(folder)


def sweep_result(folder: Path) -> tuple[Any, ...]:
    """Return the results of a sweep without times, its runs, and the names of all files."""
    sweep = folder / "runs/tiny-sweep"
    content = json.loads((sweep / "sweep.json").read_text())
    runs = {run.name: run_result(run) for run in (sweep / "cells").iterdir()}
    best = (sweep / "best").readlink() if (sweep / "best").is_symlink() else None
    return content["arms"], content["conclusion"], runs, path_names(folder), best


@pytest.mark.slow
def test_sweep_alpha_killed_at_any_file_operation(exhaustive: bool, arguments: list[str], tmp_path: Path) -> None:
    """The kill may hit the sweep's own operations, its worker's, or the report's: tables, plots, `best`."""
    complete = tmp_path / "whole"
    complete.mkdir()
    sweep = ["sweep-alpha", *arguments[1:], "--alphas", "0,5", "--seeds", "1", "--metric", "held_out_loss"]
    code, output = neft_in(complete, *sweep, states=tmp_path / "states", setup=fork_workers)
    assert code == 0, output
    states = states_of(tmp_path / "states")
    print(len(states), "states of sweep-alpha")
    for folder in spread_out(states, sys.maxsize if exhaustive else SOME_STATES_OF_A_SWEEP):
        state = path_names(folder)
        started = (folder / "runs/tiny-sweep/recipe.yaml").is_file() and (folder / "runs/tiny-sweep/cells").is_dir()
        again = ["sweep-alpha", "runs/tiny-sweep"] if started else sweep
        code, output = neft_in(folder, *again, setup=fork_workers)
        assert code == 0, (folder, state, output)
        assert sweep_result(folder) == sweep_result(complete), (folder, state)
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "neft_code", "calls", "code"),
    [
        ("nothing", 0, "train --recipe llama-2-7b-alpaca", 0),
        ("unborn", 0, "train --recipe llama-2-7b-alpaca", 0),
        ("hidden", 0, "train --recipe llama-2-7b-alpaca", 0),
        ("running", 0, "train --resume runs/llama-2-7b-alpaca-a5-s0", 0),
        ("preempted", 75, "train --resume runs/llama-2-7b-alpaca-a5-s0\nrequeue 7", 75),
        ("failed", 1, "train --resume runs/llama-2-7b-alpaca-a5-s0", 1),
        ("finished", 0, "", 0),
    ],
)
def test_resume_slurm_script(state: str, neft_code: int, calls: str, code: int, tmp_path: Path) -> None:
    """The script of the docs is run with stand-ins for neft and scontrol that log their arguments."""
    docs = (Path(__file__).parents[2] / "docs" / "resume.md").read_text(encoding="utf-8")
    [script] = [block.partition("```")[0] for block in docs.split("```bash\n")[1:] if "#SBATCH" in block]
    (tmp_path / "script.sh").write_text(script)
    for name, end in (("neft", neft_code), ("scontrol", 0)):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$@" >> calls.txt\nexit {end}\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / "calls.txt").touch()
    name = "llama-2-7b-alpaca-a5-s0"
    run = tmp_path / "runs" / (temporary_name(name) if state == "hidden" else name)
    if state != "nothing":
        RunDirectory(run).path.mkdir(parents=True)
        RunDirectory(run).write_json("run.json", {"status": state, "resumed": [{"after": "finished"}]})
        if state != "unborn":
            RunDirectory(run).write_text("recipe.yaml", "")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "script.sh"], cwd=tmp_path, env=environment, check=False, timeout=60)
    assert (done.returncode, (tmp_path / "calls.txt").read_text().strip()) == (code, calls)
    assert run.exists() == (state not in ("nothing", "unborn"))
