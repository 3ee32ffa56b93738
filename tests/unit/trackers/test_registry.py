"""The registry of trackers: each entry is documented, and what can't be used is rejected with a command to type."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest

from neftcli.errors import InputError
from neftcli.trackers.registry import TRACKERS, Tracker, require_trackers

ROOT = Path(__file__).parents[3]


def problems_of(*trackers: str) -> list[tuple[str, str]]:
    """Return the messages and hints of the trackers that can't be used."""
    try:
        require_trackers(trackers)
    except InputError as error:
        return [(problem.message, problem.hint) for problem in error.problems]
    return []


def pretend_installed(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)


@pytest.mark.parametrize("tracker", TRACKERS.values(), ids=list(TRACKERS))
def test_tracker_is_documented(tracker: Tracker) -> None:
    page = (ROOT / "docs" / "trackers.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{tracker.id}` |"))
    assert f"`neftcli[{tracker.id}]`" in row
    assert f"| `{tracker.folder_variable}` |" in row
    for variable in tracker.switched_off:
        assert f"`{variable}=" in page
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert tracker.id in extras


def test_require_trackers_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them at once."""
    pretend_installed(monkeypatch, installed=False)
    assert problems_of("trackio", "comet") == [
        ("training.report_to: trackio needs the package trackio", "pip install 'neftcli[trackio]'"),
        ("training.report_to: comet needs the package comet_ml", "pip install 'neftcli[comet]'"),
    ]


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        ("WANDB_API_KEY", "x" * 40, True),
        ("WANDB_MODE", "offline", True),
        ("WANDB_MODE", "disabled", True),
        ("WANDB_DISABLED", "true", True),
        ("WANDB_DISABLED", "false", False),
        ("WANDB_MODE", "online", False),
    ],
)
def test_require_trackers_wandb_key(
    variable: str, value: str, accepted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a key wandb would ask for one."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    pretend_installed(monkeypatch, installed=True)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv(variable, value)
    assert (problems_of("wandb") == []) == accepted
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert problems_of("wandb") == []


@pytest.mark.parametrize(
    ("tracker", "variable", "value", "switch"),
    [
        ("wandb", "WANDB_MODE", "disabled", "WANDB_MODE=disabled"),
        ("wandb", "WANDB_DISABLED", "1", "WANDB_DISABLED=1"),
        ("wandb", "WANDB_MODE", "offline", None),
        ("mlflow", "DISABLE_MLFLOW_INTEGRATION", "TRUE", "DISABLE_MLFLOW_INTEGRATION=TRUE"),
        ("swanlab", "SWANLAB_MODE", "local", None),
    ],
)
def test_tracker_switch(
    tracker: str, variable: str, value: str, switch: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert TRACKERS[tracker].switch() == switch
