"""Processes of data-parallel training.

Oracle: the environment variables of torchrun's documentation; processes that the tests start.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from neftcli.errors import InputError
from neftcli.system import distributed

WRITES = """
import os, pathlib, sys
names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(" ".join(os.environ[name] for name in names))
"""
WAITS = "import time; time.sleep(600)"


def test_launch_processes_sets_and_restores_variables(tmp_path: Path) -> None:
    before = dict(os.environ)
    with distributed.launch_processes(3, [sys.executable, "-c", WRITES, str(tmp_path)]):
        assert (distributed.world_size(), distributed.rank(), distributed.local_world_size()) == (3, 0, 3)
        assert distributed.is_main_process()
    threads = before["OMP_NUM_THREADS"]  # settings of the user stay
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "1": f"3 1 3 {threads}",
        "2": f"3 2 3 {threads}",
    }
    assert dict(os.environ) == before
    assert (distributed.world_size(), distributed.rank(), distributed.is_main_process()) == (1, 0, True)


def test_launch_processes_kills_workers_if_the_main_process_fails() -> None:
    started: list[Any] = []

    def fail() -> None:
        with distributed.launch_processes(2, [sys.executable, "-c", WAITS]) as workers:
            started.extend(workers)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [other.poll() for other in started] == [-signal.SIGKILL]


def test_init_process_group_worker_exited() -> None:
    with (
        pytest.raises(distributed.PeerExitedError),
        distributed.launch_processes(2, [sys.executable, "-c", "raise SystemExit(1)"]),
    ):
        distributed.init_process_group()


def test_launch_processes_one_process_changes_nothing() -> None:
    before = dict(os.environ)
    with distributed.launch_processes(1, [sys.executable, "-c", "never"]):
        assert dict(os.environ) == before
        distributed.init_process_group()
        assert distributed.all_gather_object("mine") == ["mine"]
        assert distributed.broadcast_object(("a", 1)) == ("a", 1)
        distributed.destroy_process_group()


def test_launch_processes_exits_if_a_worker_fails_unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(distributed, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(os, "_exit", ended.append)
    with distributed.launch_processes(2, [sys.executable, "-c", "raise SystemExit(1)"]):
        time.sleep(1)  # stands for a library that waits
    assert ended == [1]


@pytest.mark.parametrize("value", ["abc", "", "-1", "0"])
def test_world_size_ignores_invalid_variables(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    assert (distributed.world_size(), distributed.launched_externally()) == (1, False)


def test_init_process_group_launcher_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "1" if "SIZE" in name else "0")
    distributed.init_process_group()
    assert not set(distributed.LAUNCHER_VARIABLES) & set(os.environ)


COMPLETE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        ({"MASTER_ADDR": ""}, "MASTER_ADDR unset"),
        ({"RANK": ""}, "RANK unset"),
        ({"RANK": "2"}, "RANK 2"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT x"),
        ({}, "127.0.0.1:1: "),
    ],
)
def test_init_process_group_incomplete_variables(
    wrong: dict[str, str], got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "RENDEZVOUS_TIMEOUT", timedelta(seconds=0.1))
    for name, value in {**COMPLETE, **wrong}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=got):
        distributed.init_process_group()


def test_launch_processes_rejects_far_too_many() -> None:
    many = 10 * distributed.MAX_PER_CORE * (os.cpu_count() or 1)
    with pytest.raises(InputError, match=f"{many}, on "), distributed.launch_processes(many, ["never"]):
        pass


def test_launch_processes_dry_run_starts_none() -> None:
    with distributed.launch_processes(2, []) as workers:
        assert distributed.world_size() == 2
        assert workers == ()


def test_launch_processes_under_torchrun_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with distributed.launch_processes(4, ["never"]) as workers:
        assert workers == ()
    assert distributed.launched_externally()
    with pytest.raises(InputError, match="neft eval runs in a single process"):
        distributed.require_single_process("neft eval")
