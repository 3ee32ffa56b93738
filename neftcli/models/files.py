"""Files of a model's folder that determine its outputs, and the names by which its index and config.json list them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath

from neftcli.errors import ModelError, Problem
from neftcli.system.files import escapes_folder, file_sha256, read_json_object

INDEX = "model.safetensors.index.json"
"""Names the files of weights in several files."""
IDENTITY = ("*.safetensors", "config.json")
"""Patterns of the files that identify a model in a folder, besides those that its index and `auto_map` name."""
CODE_SETTINGS = ("config.json", "tokenizer_config.json")
"""Files whose `auto_map` names classes of the model's own code."""
LFS_POINTER = b"version https://git-lfs"
REFETCH = "fetch or write the model again"
CUSTOM_GENERATE = "custom_generate/generate.py"
"""Code that transformers runs when it loads a trusted model, without a name in `auto_map`."""


def weight_files(folder: Path) -> set[str]:
    """The files that a model's index names, and those that its config.json does (`transformers_weights`).

    Indexes that can't be read name none: they are reported when the model is loaded.
    """
    named = read_json_object(folder / "config.json").get("transformers_weights")
    own = {named} if isinstance(named, str) else set()
    indexes = {INDEX, *(name for name in own if name.endswith(".index.json") and not escapes_folder(name))}
    for index in indexes:
        listed = read_json_object(folder / index).get("weight_map")
        values = listed.values() if isinstance(listed, dict) else ()
        own.update(name for name in values if isinstance(name, str))
    return own


def code_references(file: Path) -> list[str]:
    """The classes that a configuration's `auto_map` names: "file.Class", or "owner/name--file.Class" of the hub."""
    mapped = read_json_object(file).get("auto_map")
    values = list(mapped.values()) if isinstance(mapped, dict) else [mapped]
    named = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return [name for name in named if isinstance(name, str)]


def code_file(reference: str) -> str:
    """The name of the file that holds a class of `auto_map`, relative to the model's folder."""
    return f"{reference.rpartition('--')[2].rpartition('.')[0]}.py"


def list_code_files(folder: Path) -> set[str]:
    """The Python files that a trusted model may run: those that are named, and all beside them, for their imports."""
    named = {code_file(name) for settings in CODE_SETTINGS for name in code_references(folder / settings)}
    parents = {PurePosixPath(name).parent for name in (*named, CUSTOM_GENERATE) if not escapes_folder(name)}
    return {(parent / item.name).as_posix() for parent in parents for item in (folder / parent).glob("*.py")}


def is_code_elsewhere(folder: Path, file: str) -> bool:
    """Return whether a file of code is outside of the model's folder, by its name or in a linked folder."""
    parents = list(PurePosixPath(file).parents)[:-1]
    return escapes_folder(file) or any((folder / parent).is_symlink() for parent in parents)


def require_inside(folder: Path, name: str) -> None:
    """Check that a model's index and config.json name files in its folder only; links in the folder are followed.

    Args:
        folder: The model's, an adapter's or a tokenizer's.
        name: The model's, for the message.

    Raises:
        ModelError: A name is absolute or contains `..`.
    """
    for file in sorted(weight_files(folder)):
        if escapes_folder(file):
            raise ModelError(
                Problem(
                    f"model.name: the index and config.json of {name} must name files in its own folder",
                    f"{file}, in {folder}",
                    "copy the file into the folder, and correct the name: no / in front, no ..",
                )
            )


def model_sha256(folder: Path) -> str:
    """SHA-256 over all files of a model's folder that determine what it computes, in hexadecimal."""
    return folder_sha256(folder, *IDENTITY, names=weight_files(folder) | list_code_files(folder))


def folder_sha256(folder: Path, *patterns: str, names: set[str] | None = None) -> str:
    """SHA-256 over files of a folder, in hexadecimal.

    Args:
        folder: The folder.
        patterns: Of the files' names.
        names: Further files; missing ones are left out.
    """
    files = {file for pattern in patterns for file in folder.glob(pattern)}
    files |= {folder / name for name in names or () if (folder / name).is_file()}
    hashes = {file.relative_to(folder).as_posix(): file_sha256(file) for file in sorted(files)}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def find_damaged_file(folder: Path) -> tuple[str, str] | None:
    """The first file that can't be what its name says, and what to type; None where none is found."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                return f"{file.name} is a pointer of Git LFS, not the weights", f"git -C {folder} lfs pull"
    for file in sorted(folder.glob("*.json")):
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            return f"{file.name} is not JSON: {str(error).splitlines()[0]}", REFETCH
        if not isinstance(value, dict):
            return f"{file.name} holds a {type(value).__name__} and no object", REFETCH
    return None


def is_truncated_safetensors(file: Path) -> bool:
    """Whether a file of safetensors has another length than its header says, as after a copy that was stopped."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
        try:
            tensors = json.loads(opened.read(min(header, size)))
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return True
    return bool(size != 8 + header + max(ends, default=0))
