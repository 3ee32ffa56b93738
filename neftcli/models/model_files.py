"""Files of a model's folder: those that determine its outputs, their hash, and damaged ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath

from neftcli.errors import ModelError, Problem
from neftcli.system.files import escapes_folder, file_sha256, read_json_object

MODEL_MANIFEST = "neft-manifest.json"
"""File in a model's folder that neft wrote: where the model is from, and the sizes and hashes of its files."""
WEIGHTS_INDEX = "model.safetensors.index.json"
"""Index of a model whose weights are in several files."""
IDENTITY = ("*.safetensors", "config.json")
"""Patterns of the files that identify a model, in addition to those that its index and `auto_map` name."""
CODE_SETTINGS = ("config.json", "tokenizer_config.json")
"""Files whose `auto_map` names classes of the model's own code."""
CUSTOM_GENERATE = "custom_generate/generate.py"
"""Code that transformers runs when it loads a trusted model, without an entry in `auto_map`."""
LFS_POINTER = b"version https://git-lfs"
REFETCH = "download the model again, or save it again with save_pretrained"


def merged_run(folder: Path) -> str | None:
    """Return the name of the run whose model `neft merge` wrote to this folder; None for another folder."""
    name = read_json_object(folder / MODEL_MANIFEST).get("run")
    return name if isinstance(name, str) else None


def weight_files(folder: Path) -> set[str]:
    """List the weight files that a model's index and its config.json (`transformers_weights`) name.

    Files that can't be read name none: they are reported when the model is loaded.
    """
    named = read_json_object(folder / "config.json").get("transformers_weights")
    names = {named} if isinstance(named, str) else set()
    indexes = {WEIGHTS_INDEX, *(name for name in names if name.endswith(".index.json") and not escapes_folder(name))}
    for index in indexes:
        weight_map = read_json_object(folder / index).get("weight_map")
        values = weight_map.values() if isinstance(weight_map, dict) else ()
        names.update(name for name in values if isinstance(name, str))
    return names


def code_references(file: Path) -> list[str]:
    """List the classes in a configuration's `auto_map`: "file.Class", or "owner/name--file.Class" of the hub."""
    auto_map = read_json_object(file).get("auto_map")
    values = list(auto_map.values()) if isinstance(auto_map, dict) else [auto_map]
    references: list[object] = []
    for value in values:
        references += value if isinstance(value, list) else [value]
    return [reference for reference in references if isinstance(reference, str)]


def code_file(reference: str) -> str:
    """Return the file that holds a class of `auto_map`, relative to the model's folder."""
    return f"{reference.rpartition('--')[2].rpartition('.')[0]}.py"


def list_code_files(folder: Path) -> set[str]:
    """List the Python files that a trusted model may run: the named ones, and all in their folders, for imports."""
    named = {code_file(name) for settings in CODE_SETTINGS for name in code_references(folder / settings)}
    parents = {PurePosixPath(name).parent for name in (*named, CUSTOM_GENERATE) if not escapes_folder(name)}
    return {(parent / item.name).as_posix() for parent in parents for item in (folder / parent).glob("*.py")}


def is_code_elsewhere(folder: Path, file: str) -> bool:
    """Return whether a code file is outside of the model's folder, by its name or in a linked folder."""
    parents = list(PurePosixPath(file).parents)[:-1]
    return escapes_folder(file) or any((folder / parent).is_symlink() for parent in parents)


def require_inside(folder: Path, name: str) -> None:
    """Check that a model's index and config.json name files in its folder only; links in the folder are followed.

    Args:
        folder: The folder of a model, an adapter or a tokenizer.
        name: The model's name, for the message.

    Raises:
        ModelError: A name is absolute or contains `..`.
    """
    for file in sorted(weight_files(folder)):
        if escapes_folder(file):
            raise ModelError(
                Problem(
                    f"model.name: the index and config.json of {name} must name files in its own folder",
                    f"{file}, in {folder}",
                    "copy the file into the folder and correct its name: relative, without ..",
                )
            )


def model_sha256(folder: Path) -> str:
    """Compute the SHA-256 over all files of a model's folder that determine its outputs, in hexadecimal."""
    return folder_sha256(folder, *IDENTITY, names=weight_files(folder) | list_code_files(folder))


def folder_sha256(folder: Path, *patterns: str, names: set[str] | None = None) -> str:
    """Compute the SHA-256 over files of a folder, in hexadecimal.

    Args:
        folder: The folder.
        patterns: Patterns of file names.
        names: Additional files; missing ones are left out.
    """
    files = {file for pattern in patterns for file in folder.glob(pattern)}
    files |= {folder / name for name in names or () if (folder / name).is_file()}
    hashes = {file.relative_to(folder).as_posix(): file_sha256(file) for file in sorted(files)}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def find_damaged_file(folder: Path) -> tuple[str, str] | None:
    """Find the first file of a model's folder whose content doesn't match its name.

    The libraries' own messages often don't name the file.

    Returns:
        A description that names the file, and a hint; None if no file is damaged.
    """
    for file in sorted(file for file in folder.glob("*.safetensors") if file.is_file()):
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                return f"{file.name} is a Git LFS pointer, not the weights", f"git -C {folder} lfs pull"
        if damage := _safetensors_damage(file):
            return f"{file.name} {damage}", f"download {file.name} again, or save the model again with save_pretrained"
    for file in sorted(file for file in folder.glob("*.json") if file.is_file()):
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            return f"{file.name} is not valid JSON: {str(error).splitlines()[0]}", REFETCH
        if not isinstance(value, dict):
            return f"{file.name} holds a JSON {type(value).__name__} instead of an object", REFETCH
    return None


def is_damaged_safetensors(file: Path) -> bool:
    """Return whether a safetensors file has an unreadable header, or a different size than its header says."""
    return bool(_safetensors_damage(file))


def _safetensors_damage(file: Path) -> str:
    """Describe the damage of a safetensors file, such as that of an interrupted copy; empty if there is none."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
        try:
            tensors = json.loads(opened.read(min(header, size)))
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
            expected = 8 + header + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return f"is not a safetensors file: its header can't be read ({size:,} bytes)"
    if size == expected:
        return ""
    return f"is {'truncated' if size < expected else 'damaged'}: {size:,} bytes instead of {expected:,}"
