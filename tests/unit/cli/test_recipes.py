"""`neft recipes`."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from neftcli.cli.recipes import copy
from neftcli.errors import InputError


def test_copy_to_a_folder_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error of the input, not a bug in neft."""

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(InputError) as caught:
        copy("quickstart", tmp_path)
    [problem] = caught.value.problems
    assert (problem.message, problem.got) == (f"{tmp_path / 'quickstart.yaml'} can't be written", "Permission denied")
