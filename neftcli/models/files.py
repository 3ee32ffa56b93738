"""Files of a model's folder that determine its outputs, and the names by which its index and config.json list them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from neftcli.errors import ModelError, Problem
from neftcli.machine.inside import leads_out
from neftcli.models.gguf import sha256

INDEX = "model.safetensors.index.json"
"""Names the files of weights in several files."""
IDENTITY = ("*.safetensors", "config.json", "**/*.py")
"""What a model in a folder is: weights, settings, and code of its own; with the weights that an index names."""


def weight_files(folder: Path) -> set[str]:
    """The files that a model's index names, and those that its config.json does (`transformers_weights`).

    Indexes that can't be read name none: they are reported when the model is loaded.
    """
    named = _object(folder / "config.json").get("transformers_weights")
    own = {named} if isinstance(named, str) else set()
    indexes = {INDEX, *(name for name in own if name.endswith(".index.json") and not leads_out(name))}
    for index in indexes:
        listed = _object(folder / index).get("weight_map")
        values = listed.values() if isinstance(listed, dict) else ()
        own.update(name for name in values if isinstance(name, str))
    return own


def require_inside(folder: Path, name: str) -> None:
    """Check that a model's index and config.json name files in its folder only; links in the folder are followed.

    Args:
        folder: The model's, an adapter's or a tokenizer's.
        name: The model's, for the message.

    Raises:
        ModelError: A name is absolute or contains `..`.
    """
    for file in sorted(weight_files(folder)):
        if leads_out(file):
            raise ModelError(
                Problem(
                    f"model.name: the index and config.json of {name} must name files in its own folder",
                    f"{file}, in {folder}",
                    "copy the file into the folder, and correct the name: no / in front, no ..",
                )
            )


def model_sha256(folder: Path) -> str:
    """SHA-256 over all files of a model's folder that determine what it computes, in hexadecimal."""
    return folder_sha256(folder, *IDENTITY, names=weight_files(folder))


def folder_sha256(folder: Path, *patterns: str, names: set[str] | None = None) -> str:
    """SHA-256 over files of a folder, in hexadecimal.

    Args:
        folder: The folder.
        patterns: Of the files' names.
        names: Further files; missing ones are left out.
    """
    files = {file for pattern in patterns for file in folder.glob(pattern)}
    files |= {folder / name for name in names or () if (folder / name).is_file()}
    hashes = {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(files)}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
