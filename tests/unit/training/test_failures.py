"""How a run ends that does not finish. Oracle: torch's own words on a disk that is really full."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from neftcli.training.failures import is_disk_full, raise_if_full
from tests.conftest import file_system


@pytest.mark.parametrize("kib", [64, 300, 900])
def test_what_torch_says_of_a_full_disk_is_known(kib: int, tmp_path: Path) -> None:
    """However much of the file there was room for; it names neither the disk nor the system's number."""
    small = tmp_path / "small"
    with file_system(small, "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs"):
        with pytest.raises((RuntimeError, OSError)) as raised:
            torch.save({"one": torch.randn(200_000), "two": torch.randn(200_000)}, small / "optimizer.pt")
        with pytest.raises(OSError, match="No space left") as told:
            raise_if_full(raised.value, small)
    assert told.value.errno == errno.ENOSPC
    assert is_disk_full(told.value)


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="does not exist") as raised:
        torch.save({}, tmp_path / "missing" / "optimizer.pt")
    raise_if_full(raised.value, tmp_path)
    assert not is_disk_full(raised.value)
    raise_if_full(RuntimeError("iostream error"), tmp_path)  # there is room here
