"""Arguments of `neft sweep-alpha`."""

from __future__ import annotations

from pathlib import Path

import pytest

from neftcli.cli.main import app
from neftcli.errors import InputError


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (".", "there is no sweep in this folder"),
        ("..", "there is no sweep in this folder"),
        ("5", "write the alphas as one list with commas"),
        ("0.5", "write the alphas as one list with commas"),
        (".5", "write the alphas as one list with commas"),
    ],
)
def test_sweep_alpha_distinguishes_folders_from_alphas(
    argument: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(InputError) as caught:
        app(args=["sweep-alpha", argument], prog_name="neft", standalone_mode=False)
    [problem] = caught.value.problems
    assert (problem.message, problem.got) == (message, argument)
