"""Resolve the relative paths of a run's recipe, also from a different folder and after a move.

A relative path in a run's recipe.yaml starts from the folder in which the run was started, which `run.json` records. If
the recipe is read from a different folder, its paths are rewritten to lead to the same files. If the run was moved
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
"""Key of the path in an entry of data.sources."""


@dataclass(frozen=True)
class RelativePaths:
    """Relative paths of a run's recipe, and the folders that they may start from.

    Attributes:
        folders: Absolute paths, the likeliest first: the folder by its path relative to the run, then as recorded.
        local: Values of OPTIONS that are paths.
    """

    folders: tuple[Path, ...]
    local: frozenset[str]

    def to_current_folder(self, name: str) -> str:
        """Return a value of the recipe relative to the current folder; unchanged if it is not an existing path."""
        if name not in self.local or Path(name).is_absolute() or name.startswith("~"):
            return name
        for folder in self.folders:
            if exists(folder / name):
                return name if _is_current(folder) else _from_here(folder / name)
        return name

    def to_run_folder(self, name: str) -> str:
        """Return a value typed in the current folder as the run's recipe has it; the inverse of `to_current_folder`."""
        recorded = {self.to_current_folder(value): value for value in self.local}
        if name in recorded:
            return recorded[name]
        if not self.folders or _is_current(self.folders[0]) or Path(name).is_absolute() or name.startswith("~"):
            return name
        return os.path.relpath(name, self.folders[0]) if exists(Path(name)) else name

    def describe_search(self, name: str) -> str:
        """Return a missing path with the folders that were searched."""
        if Path(name).is_absolute():
            return name
        current = Path(os.path.curdir).absolute()
        folders = dict.fromkeys((*self.folders, current))
        return f"{name}, searched for in {' and '.join(map(str, folders))}"


def find_relative_paths(recipe_file: Path) -> RelativePaths | None:
    """Return the relative paths of the run that a recipe file belongs to, as the run's or a checkpoint's recipe.

    None for other recipes, and for runs whose record has no paths.
    """
    for run in (recipe_file.parent, *recipe_file.absolute().parents[2:3]):
        try:
            if (run / RECORD).exists():
                paths = json.loads((run / RECORD).read_text(encoding="utf-8"))[FIELD]
            else:
                paths = json.loads((run / PATHS).read_text(encoding="utf-8"))
            by_run = Path(os.path.normpath(run.resolve() / paths["folder_from_run"]))
            recorded = Path(paths["folder"])
            local = frozenset(str(name) for name in paths["local"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        folders = tuple(folder for folder in dict.fromkeys((by_run, recorded)) if exists(folder))
        return RelativePaths(folders, local)
    return None


def relative_paths_record(run: Path, folder: Path, local: Iterable[str]) -> dict[str, Any]:
    """Return the entry of a run's record about its paths.

    Args:
        run: The run's folder.
        folder: Folder that its relative paths start from.
        local: Values that are paths.
    """
    return {
        "folder": str(folder),
        "folder_from_run": os.path.relpath(folder, run.resolve()),
        "local": sorted(set(local)),
    }


def rewrite_layer(layer: Layer, change: Callable[[str], str]) -> Layer:
    """Return a layer of settings with its paths rewritten."""
    return {
        path: replace(setting, value=rewrite_value(setting.value, change)) if path in OPTIONS else setting
        for path, setting in layer.items()
    }


def rewrite_value(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value of one of OPTIONS with its paths rewritten: text, a list of texts, or mappings with a source."""
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
