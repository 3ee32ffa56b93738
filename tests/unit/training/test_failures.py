"""Full disks are recognised. Oracle: the messages of torch on a disk that is really full."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from neftcli.training.failures import is_disk_full, raise_if_full
from tests.conftest import file_system


@pytest.mark.parametrize("kib", [64, 300, 900])
def test_raise_if_full_torch_messages(kib: int, tmp_path: Path) -> None:
    """For any part of the file that fits; the message names neither the disk nor the system's error."""
    small = tmp_path / "small"
    with file_system(small, "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs"):
        with pytest.raises((RuntimeError, OSError)) as raised:
            torch.save({"one": torch.randn(200_000), "two": torch.randn(200_000)}, small / "optimizer.pt")
        with pytest.raises(OSError, match="No space left") as converted:
            raise_if_full(raised.value, small)
    assert converted.value.errno == errno.ENOSPC
    assert is_disk_full(converted.value)


def test_raise_if_full_other_errors(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="does not exist") as raised:
        torch.save({}, tmp_path / "missing" / "optimizer.pt")
    raise_if_full(raised.value, tmp_path)
    assert not is_disk_full(raised.value)
    raise_if_full(RuntimeError("iostream error"), tmp_path)  # there is room here
