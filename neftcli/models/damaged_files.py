"""What is wrong with the files of a model's folder, where the libraries' own words don't say which file it is."""

from __future__ import annotations

import json
from pathlib import Path

LFS_POINTER = b"version https://git-lfs"
AGAIN = "fetch or write the model again"


def damage(folder: Path) -> tuple[str, str] | None:
    """The first file that can't be what its name says, and what to type; None where none is found."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                return f"{file.name} is a pointer of Git LFS, not the weights", f"git -C {folder} lfs pull"
    for file in sorted(folder.glob("*.json")):
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            return f"{file.name} is not JSON: {str(error).splitlines()[0]}", AGAIN
        if not isinstance(value, dict):
            return f"{file.name} holds a {type(value).__name__} and no object", AGAIN
    return None


def is_cut(file: Path) -> bool:
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
