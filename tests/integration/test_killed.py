"""Whatever a kill (-9) leaves, the next command finishes, with the result of a run that nobody disturbed.

Oracles: the undisturbed command, by the hash of weights, the lines of metrics.jsonl without times, and the names of all
files that are there at the end. The states are those of `tests/states.py`: some of them here, all of them by `make
test-all`.
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

FEW = 12
"""States of a command that are tried by `make test`."""
HOW_MANY = [pytest.param(FEW, id="some"), pytest.param(sys.maxsize, id="all", marks=pytest.mark.slow)]


@pytest.fixture
def typed(tiny_folder: Callable[[str], Path], rows_file: Path) -> list[str]:
    return train_command(tiny_folder("llama"), rows_file)


def as_the_script_does(folder: Path, typed: list[str]) -> tuple[int, str]:
    """The command for Slurm in docs/resume.md: resume if there is a folder, else begin."""
    record = folder / RUN / "run.json"
    if record.is_file() and json.loads(record.read_text())["status"] == "finished":
        neft_in(folder, "train", "--resume", RUN)  # clears what the kill left
        return 0, ""
    return neft_in(folder, "train", "--resume", RUN) if (folder / RUN).is_dir() else neft_in(folder, *typed)


def require_same_end(states: Iterable[Path], typed: list[str], whole: Path) -> None:
    """Resumes or begins the run in each state, and compares it with the undisturbed one."""
    for folder in states:
        left = path_names(folder)
        code, said = as_the_script_does(folder, typed)
        assert code == 0, (folder, left, said)
        assert run_result(folder / RUN) == run_result(whole / RUN), (folder, left)
        assert path_names(folder) == path_names(whole), (folder, left)
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("most", HOW_MANY)
def test_train_killed_at_any_file_operation(most: int, typed: list[str], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    code, said = neft_in(whole, *typed, states=tmp_path / "states")
    assert code == 0, said
    states = states_of(tmp_path / "states")
    print(len(states), "states of train:", dict(Counter(map(describe_run, states))))
    assert {"no run", "a run without a checkpoint", "a run with a checkpoint", "finished"} == set(
        map(describe_run, states)
    )
    require_same_end(spread_out(states, most), typed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("most", HOW_MANY)
def test_resume_killed_at_any_file_operation(most: int, typed: list[str], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert neft_in(whole, *typed, states=tmp_path / "first")[0] == 0
    begun = next(state for state in states_of(tmp_path / "first") if describe_run(state) == "a run with a checkpoint")
    code, said = neft_in(begun, "train", "--resume", RUN, states=tmp_path / "states")
    assert code == 0, said
    states = states_of(tmp_path / "states")
    print(len(states), "states of resume:", dict(Counter(map(describe_run, states))))
    require_same_end(spread_out(states, most), typed, whole)


def report(folder: Path) -> tuple[Any, ...]:
    """What an evaluation found, without its times, and all of its files."""
    [file] = folder.glob(f"{RUN}/evaluation/*/report.json")
    content = json.loads(file.read_text())
    content.pop("seconds")
    return content, file.with_name("examples.jsonl").read_text(), path_names(folder)


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("most", HOW_MANY)
def test_eval_and_judging_killed_at_any_file_operation(most: int, typed: list[str], tmp_path: Path) -> None:
    """Nothing that was measured or answered is asked for again."""
    whole = tmp_path / "whole"
    whole.mkdir()
    assert neft_in(whole, *typed)[0] == 0
    with judge_server(prefers_longer) as server:
        judged = ("eval", RUN, "--judge", server.url, "--judge-model", "m", *EVAL_OPTIONS)
        code, said = neft_in(whole, *judged, states=tmp_path / "states")
        assert code == 0, said
        states = states_of(tmp_path / "states")
        print(len(states), "states of eval")
        for folder in spread_out(states, most):
            left = path_names(folder)
            code, said = neft_in(folder, *judged)
            assert code == 0, (folder, left, said)
            assert report(folder) == report(whole), (folder, left)
            shutil.rmtree(folder)


def convert(file: Path) -> None:
    """Converts a .gguf, with the cache in the current folder."""
    from neftcli.models.gguf import convert_gguf

    os.environ["NEFT_CACHE"] = str(Path("cache").absolute())
    assert convert_gguf(file).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("most", HOW_MANY)
def test_conversion_killed_at_any_file_operation(most: int, tmp_path: Path) -> None:
    """The remains of killed conversions go; what is kept is the same, byte for byte."""
    file, whole = tmp_path / "tiny.gguf", tmp_path / "whole"
    save_tiny_gguf(file, tiny_model("llama"), tiny_tokenizer())
    whole.mkdir()
    code, said = call_in(whole, partial(convert, file), tmp_path / "states")
    assert code == 0, said
    states = states_of(tmp_path / "states")
    print(len(states), "states of a conversion")
    for folder in spread_out(states, most):
        left = path_names(folder)
        code, said = call_in(folder, partial(convert, file))
        assert code == 0, (folder, left, said)
        assert contents(folder) == contents(whole), (folder, left)
        assert path_names(folder) == path_names(whole), (folder, left)
        shutil.rmtree(folder)


def sweep_result(folder: Path) -> tuple[Any, ...]:
    """What a sweep found, without its times, and all of its files."""
    sweep = folder / "runs/tiny-sweep"
    content = json.loads((sweep / "sweep.json").read_text())
    runs = {run.name: run_result(run) for run in (sweep / "cells").iterdir()}
    best = (sweep / "best").readlink() if (sweep / "best").is_symlink() else None
    return content["arms"], content["conclusion"], runs, path_names(folder), best


@pytest.mark.slow
@pytest.mark.parametrize("most", [pytest.param(5, id="some"), HOW_MANY[1]])
def test_sweep_killed_at_any_file_operation(most: int, typed: list[str], tmp_path: Path) -> None:
    """The sweep's own operations, its worker's, and the report's: tables, plots and the link to the best run."""
    whole = tmp_path / "whole"
    whole.mkdir()
    sweep = ["sweep-alpha", *typed[1:], "--alphas", "0,5", "--seeds", "1", "--metric", "held_out_loss"]
    code, said = neft_in(whole, *sweep, states=tmp_path / "states", setup=fork_workers)
    assert code == 0, said
    states = states_of(tmp_path / "states")
    print(len(states), "states of sweep-alpha")
    for folder in spread_out(states, most):
        left = path_names(folder)
        begun = (folder / "runs/tiny-sweep/recipe.yaml").is_file() and (folder / "runs/tiny-sweep/cells").is_dir()
        again = ["sweep-alpha", "runs/tiny-sweep"] if begun else sweep
        code, said = neft_in(folder, *again, setup=fork_workers)
        assert code == 0, (folder, left, said)
        assert sweep_result(folder) == sweep_result(whole), (folder, left)
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "ends_with", "asked", "code"),
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
def test_the_script_for_slurm(state: str, ends_with: int, asked: str, code: int, tmp_path: Path) -> None:
    """As it is in the docs, with commands in the place of neft and scontrol that write down what they are asked."""
    docs = (Path(__file__).parents[2] / "docs" / "resume.md").read_text(encoding="utf-8")
    [script] = [block.partition("```")[0] for block in docs.split("```bash\n")[1:] if "#SBATCH" in block]
    (tmp_path / "script.sh").write_text(script)
    for name, end in (("neft", ends_with), ("scontrol", 0)):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$@" >> asked.txt\nexit {end}\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / "asked.txt").touch()
    name = "llama-2-7b-alpaca-a5-s0"
    run = tmp_path / "runs" / (temporary_name(name) if state == "hidden" else name)
    if state != "nothing":
        RunDirectory(run).path.mkdir(parents=True)
        RunDirectory(run).write_json("run.json", {"status": state, "resumed": [{"after": "finished"}]})
        if state != "unborn":  # as older versions left it
            RunDirectory(run).write_text("recipe.yaml", "")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "script.sh"], cwd=tmp_path, env=environment, check=False, timeout=60)
    assert (done.returncode, (tmp_path / "asked.txt").read_text().strip()) == (code, asked)
    assert run.exists() == (state not in ("nothing", "unborn"))
