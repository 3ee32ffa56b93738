"""What processes know of each other.

Oracle: the environment variables as torchrun's documentation has them; processes that are started here.
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


def test_the_others_know_their_number_and_the_first_is_alone_again_behind_it(tmp_path: Path) -> None:
    before = dict(os.environ)
    with distributed.launch_processes(3, [sys.executable, "-c", WRITES, str(tmp_path)]):
        assert (
            distributed.world_size(),
            distributed.rank(),
            distributed.local_world_size(),
            distributed.is_main_process(),
        ) == (
            3,
            0,
            3,
            True,
        )
    threads = before["OMP_NUM_THREADS"]  # what a person has set stays
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "1": f"3 1 3 {threads}",
        "2": f"3 2 3 {threads}",
    }
    assert dict(os.environ) == before
    assert (distributed.world_size(), distributed.rank(), distributed.is_main_process()) == (1, 0, True)


def test_the_others_end_where_the_first_fails() -> None:
    started: list[Any] = []

    def fail() -> None:
        with distributed.launch_processes(2, [sys.executable, "-c", WAITS]):
            started.extend(distributed._started)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [other.poll() for other in started] == [-signal.SIGKILL]


def test_who_waits_hears_that_another_has_ended() -> None:
    with (
        pytest.raises(distributed.PeerExitedError),
        distributed.launch_processes(2, [sys.executable, "-c", "raise SystemExit(1)"]),
    ):
        distributed.init_process_group()


def test_one_alone_changes_nothing() -> None:
    before = dict(os.environ)
    with distributed.launch_processes(1, [sys.executable, "-c", "never"]):
        assert dict(os.environ) == before
        distributed.init_process_group()
        assert distributed.all_gather_object("mine") == ["mine"]
        assert distributed.broadcast_object(("a", 1)) == ("a", 1)
        distributed.destroy_process_group()


def test_who_waits_where_no_signal_is_heard_ends_with_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(distributed, "GRACE", 0.05)
    monkeypatch.setattr(os, "_exit", ended.append)
    with distributed.launch_processes(2, [sys.executable, "-c", "raise SystemExit(1)"]):
        time.sleep(1)  # in the place of a library that waits
    assert ended == [1]


@pytest.mark.parametrize("value", ["abc", "", "-1", "0"])
def test_what_is_no_number_is_no_launchers(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    assert (distributed.world_size(), distributed.launched_externally()) == (1, False)


def test_a_launcher_of_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.LAUNCHER:
        monkeypatch.setenv(name, "1" if "SIZE" in name else "0")
    distributed.init_process_group()
    assert not set(distributed.LAUNCHER) & set(os.environ)


WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"MASTER_ADDR": ""}, "MASTER_ADDR unset"),
        ({"RANK": ""}, "RANK unset"),
        ({"RANK": "2"}, "RANK 2"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT x"),
        ({}, "127.0.0.1:1: "),
    ],
)
def test_what_a_launcher_has_left_out_is_told(
    wrong: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "CALL", timedelta(seconds=0.1))
    for name, value in {**WHOLE, **wrong}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=told):
        distributed.init_process_group()


def test_a_slip_of_the_finger_does_not_fill_the_machine() -> None:
    many = 10 * distributed.MOST * (os.cpu_count() or 1)
    with pytest.raises(InputError, match=f"{many}, on "), distributed.launch_processes(many, ["never"]):
        pass


def test_a_look_starts_nobody() -> None:
    with distributed.launch_processes(2, []):
        assert distributed.world_size() == 2
        assert distributed._started == []


def test_a_launchers_processes_start_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with distributed.launch_processes(4, ["never"]):
        assert distributed._started == []
    assert distributed.launched_externally()
    with pytest.raises(InputError, match="neft eval runs in one process"):
        distributed.require_single_process("neft eval")
