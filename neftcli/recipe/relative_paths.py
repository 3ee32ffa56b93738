"""Resolve the relative paths of a run's recipe, also from a different folder and after a move.

A relative path in a run's recipe.yaml starts from the folder in which the run was begun, which `run.json` names. When
the recipe is read from a different folder, its paths are rewritten to lead to the same files. When the run was moved
together with its files (`mv project elsewhere`), the folder is found by its path relative to the run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neftcli.recipe.yaml_file import Layer
from neftcli.system.paths import exists

RECORD = "run.json"
FIELD = "paths"
PATHS = "paths.json"
"""File of a sweep with the same entry."""
OPTIONS = (
    *("model.name", "model.chat_template", "data.source", "data.sources", "data.held_out_source"),
    *("evaluation.judge.prompt", "evaluation.tasks"),
)
"""Options whose values may be paths."""
NESTED = "source"
"""The key of a path in a mapping that is a part of one of OPTIONS."""


@dataclass(frozen=True)
class RelativePaths:
    """The folders that a run's relative paths may start from.

    Attributes:
        folders: Absolute, the likeliest first: by its path relative to the run, then the one in which the run began.
        local: The values of OPTIONS that are paths.
    """

    folders: tuple[Path, ...]
    local: frozenset[str]

    def to_current_folder(self, name: str) -> str:
        """A value of the recipe relative to the current folder; unchanged if it is no path, or nothing is there."""
        if name not in self.local or Path(name).is_absolute() or name.startswith("~"):
            return name
        for folder in self.folders:
            if exists(folder / name):
                return name if _is_current(folder) else _from_here(folder / name)
        return name

    def to_run_folder(self, name: str) -> str:
        """The inverse of `to_current_folder`: a value typed in the current folder as the run's recipe holds it."""
        known = {self.to_current_folder(value): value for value in self.local}
        if name in known:
            return known[name]
        if not self.folders or _is_current(self.folders[0]) or Path(name).is_absolute() or name.startswith("~"):
            return name
        return os.path.relpath(name, self.folders[0]) if exists(Path(name)) else name

    def describe_search(self, name: str) -> str:
        """A path that doesn't exist, with the folders that were searched."""
        if Path(name).is_absolute():
            return name
        current = Path(os.path.curdir).absolute()
        folders = dict.fromkeys((*self.folders, current))
        return f"{name}, looked for in {' and in '.join(map(str, folders))}"


def find_relative_paths(recipe_file: Path) -> RelativePaths | None:
    """The places of the run that a recipe file belongs to: its own, or that of one of its checkpoints.

    None for another recipe, and for a run whose record names none.
    """
    for run in (recipe_file.parent, *recipe_file.absolute().parents[2:3]):
        try:
            if (run / RECORD).exists():
                paths = json.loads((run / RECORD).read_text(encoding="utf-8"))[FIELD]
            else:
                paths = json.loads((run / PATHS).read_text(encoding="utf-8"))
            seen = Path(os.path.normpath(run.resolve() / paths["folder_from_run"]))
            begun = Path(paths["folder"])
            local = frozenset(str(name) for name in paths["local"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        return RelativePaths(tuple(folder for folder in dict.fromkeys((seen, begun)) if exists(folder)), local)
    return None


def relative_paths_record(run: Path, folder: Path, local: Iterable[str]) -> dict[str, Any]:
    """The entry of a run's record about its paths.

    Args:
        run: The run's folder.
        folder: The folder that its relative paths start from.
        local: The values that are paths.
    """
    return {
        "folder": str(folder),
        "folder_from_run": os.path.relpath(folder, run.resolve()),
        "local": sorted(set(local)),
    }


def rewrite_layer(layer: Layer, change: Callable[[str], str]) -> Layer:
    """A layer of settings with its paths changed."""
    return {
        path: replace(setting, value=rewrite_value(setting.value, change)) if path in OPTIONS else setting
        for path, setting in layer.items()
    }


def rewrite_value(value: Any, change: Callable[[str], str]) -> Any:
    """The value of one of OPTIONS with its paths changed: a text, a list of them, or mappings with a source."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(rewrite_value(item, change) for item in value)
    if isinstance(value, Mapping):
        return {key: rewrite_value(item, change) if key == NESTED else item for key, item in value.items()}
    return value


def _is_current(folder: Path) -> bool:
    try:
        return folder.samefile(os.path.curdir)
    except OSError:  # the current folder was deleted
        return False


def _from_here(path: Path) -> str:
    try:
        return os.path.relpath(path)
    except OSError:
        return str(path)
