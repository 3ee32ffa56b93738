"""`neft runs` on runs that `neft train` wrote.

Oracle: the events of the training.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result, events
from tests.tiny_sweep import wait_for

Neft = Callable[..., Result]


def test_runs_of_a_trained_run(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    """The table has the losses that training reported; another recipe is named with its key."""
    finished = events(neft(*quick, "--json").out)[-1]
    folder = ["--output-dir", tmp_path / "runs"]
    [listed] = events(neft("runs", *folder, "--json").out)
    [run] = listed["runs"]
    assert (run["path"], run["status"], run["kind"]) == (str(tmp_path / "runs" / "tiny-a5-s0"), "finished", "run")
    assert (run["model"], run["method"], run["alphas"], run["seeds"]) == (
        quick[2],
        {"type": "full", "r": None},
        [5],
        [0],
    )
    assert (run["steps"], run["held_out_loss"]) == (4, finished["held_out_loss"])
    assert run["base_held_out_loss"] == finished["base_held_out_loss"]

    neft(*quick, "--alpha", "0", "--quiet")
    [compared] = events(neft("runs", "compare", "tiny-a5-s0", "tiny-a0-s0", *folder, "--json").out)
    assert [option["key"] for option in compared["options"]] == ["neftune.alpha"]
    assert (compared["comparable"], compared["different_inputs"]) == (True, [])

    assert neft("runs", "rm", "tiny-a5-s0", "tiny-a0-s0", *folder, "--yes").code == 0
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slow
def test_runs_of_a_running_and_a_killed_run(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    """A run that trains is not removed; after `kill -9` it is listed as killed, and can be removed."""
    folder = ["--output-dir", tmp_path / "runs"]
    record = tmp_path / "runs" / "tiny-a5-s0" / "run.json"
    command = [sys.executable, "-m", "neftcli", *quick, "--set", "training.max_steps=100000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(record.is_file, process)
            [run] = events(neft("runs", *folder, "--json").out)[0]["runs"]
            assert run["status"] == "running"
            refused = neft("runs", "rm", "tiny-a5-s0", *folder, "--yes")
            assert (refused.code, "another process trains it" in refused.err) == (2, True)
        finally:
            process.send_signal(signal.SIGKILL)
    assert json.loads(record.read_text())["status"] == "running"
    [run] = events(neft("runs", *folder, "--json").out)[0]["runs"]
    assert run["status"] == "killed"
    assert neft("runs", "rm", "tiny-a5-s0", *folder, "--yes").code == 0
    assert list((tmp_path / "runs").iterdir()) == []
