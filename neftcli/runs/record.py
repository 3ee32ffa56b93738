"""`run.json`: settings, hardware, versions and outcome of a run. Only the fields below are written, never a token."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

from neftcli.recipe.loading import recipe_fingerprint
from neftcli.recipe.relative_paths import FIELD
from neftcli.runs.directory import RECORD
from neftcli.system.environment import recorded_variables
from neftcli.version import VERSION

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.runs.directory import RunDirectory

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers")


class RunRecord:
    """Record of a run, written to the disk at each change.

    Args:
        directory: The run's folder.
        recipe: The run's recipe.
        resumed: The entry of `ResumeState.to_record`; None for a new run.
        paths: The entry of `relative_paths_record` about the recipe's relative paths.

    Attributes:
        fields: Content of the file.
    """

    def __init__(
        self,
        directory: RunDirectory,
        recipe: Recipe,
        resumed: dict[str, Any] | None = None,
        paths: dict[str, Any] | None = None,
    ) -> None:
        self._directory = directory
        self._before: Mapping[str, Any] = {}
        resumptions: list[dict[str, Any]] = []
        if resumed is not None:
            self._before = dict(directory.record())
            resumption = {"at": _now(), "after": self._before.get("status"), **resumed}
            resumptions = [*self._before.get("resumed", []), resumption]
        self.fields: dict[str, Any] = {
            "status": "running",
            "started": self._before.get("started", _now()),
            "finished": None,
            "resumed": resumptions,
            "recipe_sha256": recipe_fingerprint(recipe),
            "model": recipe.model.name,
            "method": asdict(recipe.method()),
            "seed": recipe.training.seed,
            "neftune": {
                "alpha": recipe.neftune.alpha,
                "noise": recipe.neftune.noise,
                "length": recipe.neftune.length,
                "schedule": recipe.neftune.schedule,
            },
            "versions": {"neftcli": VERSION, "python": platform.python_version(), **_versions()},
            "hardware": {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count()},
            "environment": recorded_variables(),
            FIELD: paths,
            "trackers": self._before.get("trackers", {}),
            "git": _git_commit(),
        }
        self.update()

    def update(self, **fields: Any) -> None:
        """Set fields and write the file."""
        changed = {**self.fields, **fields}
        self._directory.write_json(RECORD, changed)
        self.fields = changed  # only now: after a failed write they are as in the file

    def withdraw(self) -> None:
        """Restore the previous content of the file: the run was not resumed."""
        self._directory.write_json(RECORD, self._before)

    def facts(self) -> dict[str, Any]:
        """Return the facts about the run for a checkpoint's manifest."""
        return {key: self.fields[key] for key in ("recipe_sha256", "seed", "neftune", "versions")}

    def end(self, status: str, **fields: Any) -> None:
        """Write the outcome of the run: finished, failed, preempted or interrupted."""
        self.update(status=status, finished=_now(), **fields)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _git_commit() -> str | None:
    """Return the commit of the current folder; None outside a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=5)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
