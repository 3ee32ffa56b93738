"""Locks of files on file systems with and without flock."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from filelock import Timeout

from neftcli.data.dataset import TokenDataset
from neftcli.data.token_cache import load_or_create
from neftcli.errors import InputError
from neftcli.evaluation.cache import lock_results
from neftcli.runs.directory import RunDirectory
from neftcli.sweep.folder import lock_sweep
from neftcli.system.locks import UNSUPPORTED, LocksUnsupportedError, acquire_lock, hold_lock, is_locked


class Silent:
    """Observer that ignores all events."""

    def notify(self, event: object) -> None:
        """Do nothing."""


@pytest.fixture
def flockless(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that makes flock fail like a file system without it."""

    def fail_with(number: int) -> None:
        def flock(*_arguments: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return fail_with


def test_acquire_lock_once_at_a_time(tmp_path: Path) -> None:
    with hold_lock(tmp_path / ".lock"), pytest.raises(Timeout):
        acquire_lock(tmp_path / ".lock")
    acquire_lock(tmp_path / ".lock", wait=True).release()
    with hold_lock(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize("number", sorted(set(UNSUPPORTED)))
@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("left", [True, False])
def test_acquire_lock_without_flock(
    number: int, wait: bool, left: bool, flockless: Callable[[int], None], tmp_path: Path
) -> None:
    """Also if the file of an earlier lock is left: it neither waits for it nor takes it for another process."""
    if left:
        (tmp_path / ".lock").touch()
    flockless(number)
    with pytest.raises(LocksUnsupportedError) as raised:
        acquire_lock(tmp_path / ".lock", wait=wait)
    [problem] = raised.value.problems
    assert problem.message == f"{tmp_path}: this file system does not support file locks, which neft needs"
    assert problem.got == os.strerror(number)
    assert problem.hint.startswith("--output-dir FOLDER on a local disk or NFS; Lustre has locks if ")
    assert problem.code == "no_locks"


def test_acquire_lock_other_errors(flockless: Callable[[int], None], tmp_path: Path) -> None:
    flockless(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        acquire_lock(tmp_path / ".lock")


def test_run_sweep_and_evaluation_without_flock(flockless: Callable[[int], None], tmp_path: Path) -> None:
    flockless(errno.ENOSYS)
    folder = tmp_path / "run"
    folder.mkdir()
    hints = {
        RunDirectory(folder).lock(): "--output-dir FOLDER on",
        lock_sweep(tmp_path / "sweep"): "--output-dir FOLDER on",
        lock_results(folder, Silent()): "copy the run to a folder on",  # neft eval has no --output-dir
    }
    for lock, hint in hints.items():
        with pytest.raises(InputError, match="this file system does not support file locks") as raised, lock:
            pass
        assert raised.value.problems[0].hint.startswith(hint)
    assert not (tmp_path / "sweep" / "recipe.yaml").exists()


def test_token_cache_is_not_used_without_flock(
    flockless: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are tokenised each time, and not stored."""
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path))
    flockless(errno.ENOLCK)
    tokenised = []

    def tokenise() -> tuple[TokenDataset, Sequence[int]]:
        tokenised.append(True)
        return TokenDataset.from_rows([]), []

    for _ in range(2):
        load_or_create("key", tokenise)
    assert len(tokenised) == 2
    assert list(tmp_path.rglob("*.arrow")) == []


def test_is_locked_only_while_a_lock_is_held(tmp_path: Path, flockless: Callable[[int], None]) -> None:
    file = tmp_path / ".lock"
    assert not is_locked(file)
    assert not file.exists()
    with hold_lock(file):
        assert is_locked(file)
        assert is_locked(file)
    file.touch()
    assert not is_locked(file)
    with hold_lock(file):  # asking has not kept the lock
        (tmp_path / "link").symlink_to(file)
        assert not is_locked(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    assert not is_locked(tmp_path / "pipe")
    assert not is_locked(tmp_path)
    flockless(errno.ENOSYS)
    assert not is_locked(file)
