"""Checkpoints that verify: a folder of files, and a manifest written last that knows the size and hash of each.

checkpoints/
└── checkpoint-STEP/
    ├── ...                 weights or adapter, optimiser, schedule, random states, progress, recipe.yaml
    └── manifest.json       files with sizes and SHA-256, what they are of, and its own SHA-256

A folder without a manifest is none: its writer was stopped in the middle. It is made empty before it is written.
Nothing is renamed but single files, so several processes can write into one folder; whoever writes the manifest waits
for all of them first.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from neftcli.runs.schemas import Manifest, Schema, TrainerState, TrainingState, parse
from neftcli.system.files import atomic_write, escapes_folder, fsync_path, make_empty_folder, remove, remove_if_possible

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
RUN_STATE: Final = "run"
"""Key of neft's own part of `trainer_state.json`, among the states of callbacks."""
PLACE = re.compile(r"checkpoint-([0-9]+)")
FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that verified.

    Attributes:
        path: Its folder.
        step: Updates done.
        manifest: What it is of: recipe, noise, data, model, versions.
        progress: What the run had measured, and how long it had taken.
    """

    path: Path
    step: int
    manifest: Manifest
    progress: TrainingState


class Damaged(Exception):  # noqa: N818 - a finding; the next older checkpoint is looked at
    """A checkpoint does not verify; its message says why."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they are.
        keep: How many are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def place(self, step: int) -> Path:
        """The folder of the checkpoint behind update `step`."""
        return self.folder / f"checkpoint-{step}"

    def begin(self, step: int) -> None:
        """Makes an empty folder for the checkpoint behind update `step`; what a killed process left there goes."""
        self.folder.mkdir(exist_ok=True)
        make_empty_folder(self.place(step))

    def publish(self, step: int, facts: Mapping[str, Any]) -> None:
        """Makes the folder of `step` a checkpoint: all to disk, then the manifest; then older ones go.

        Args:
            step: Updates done.
            facts: What the checkpoint is of.
        """
        place = self.place(step)
        files = {}
        for file in _files(place):
            fsync_path(file)
            files[file.relative_to(place).as_posix()] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        fsync_path(place)
        atomic_write(place / MANIFEST, _sealed({"format": FORMAT, "step": step, **facts, "files": files}))
        fsync_path(place)
        fsync_path(self.folder)
        self._rotate(step)

    def discard(self, step: int) -> None:
        """Takes away the folder of `step` where it could not be finished."""
        if not (self.place(step) / MANIFEST).is_file():
            remove_if_possible(self.place(step))  # what stays counts for nothing, and the next rotation tries again

    def latest(self) -> Path | None:
        """The newest checkpoint that was finished, unread: a message must not take minutes."""
        whole = [step for step in self._steps() if (self.place(step) / MANIFEST).is_file()]
        return self.place(max(whole)) if whole else None

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that verifies, and why each newer one was passed over."""
        passed_over: list[str] = []
        for step in sorted(self._steps(), reverse=True):
            try:
                return verify(self.place(step)), passed_over
            except Damaged as damage:
                passed_over.append(f"{self.place(step)}: {damage}")
        return None, passed_over

    def _steps(self) -> list[int]:
        found = [PLACE.fullmatch(entry.name) for entry in self.folder.glob("checkpoint-*") if entry.is_dir()]
        return [int(match[1]) for match in found if match]

    def _rotate(self, newest: int) -> None:
        """Takes away the oldest, never `newest`, which is whole, and those that were never finished."""
        whole = sorted(step for step in self._steps() if (self.place(step) / MANIFEST).is_file() and step != newest)
        unfinished = [step for step in self._steps() if not (self.place(step) / MANIFEST).is_file()]
        surplus = len(whole) + 1 - self.keep
        for step in [*whole[: max(0, surplus)], *unfinished]:
            # The manifest goes first: a removal that is stopped in the middle leaves no checkpoint that looks whole.
            # What can't be removed now is no checkpoint any more, and the next rotation tries again.
            remove(self.place(step) / MANIFEST)
            remove_if_possible(self.place(step))


def verify(place: Path) -> Checkpoint:
    """Reads every byte of a checkpoint.

    Raises:
        Damaged: A file is missing, too short, changed or not of it.
    """
    try:
        text = (place / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise Damaged("it was never finished (there is no manifest.json)") from None
    except OSError as error:
        raise Damaged(f"manifest.json can't be read: {error.strerror}") from None
    manifest = _unsealed(text)
    for name, known in manifest["files"].items():
        if escapes_folder(name):
            raise Damaged(f"manifest.json names a file that is not in the checkpoint: {name}")
        try:
            size = (place / name).stat().st_size
        except OSError:
            raise Damaged(f"{name} is missing") from None
        if size != known["bytes"]:
            raise Damaged(f"{name} has {size} bytes, not {known['bytes']}")
    for name, known in manifest["files"].items():
        try:
            found = _sha256(place / name)
        except OSError as error:
            raise Damaged(f"{name} can't be read: {error.strerror}") from None
        if found != known["sha256"]:
            raise Damaged(f"{name} is not what was written (its SHA-256 differs)")
    strange = {file.relative_to(place).as_posix() for file in _files(place)} - manifest["files"].keys()
    if strange:
        raise Damaged(f"{min(strange)} was not written with it")
    for name in manifest["files"]:
        if name.endswith(".json"):
            _read(place / name, dict[str, Any])
    progress = _read(place / TRAINER_STATE, TrainerState)["stateful_callbacks"][RUN_STATE]
    return Checkpoint(place, manifest["step"], manifest, progress)


def _read(file: Path, schema: type[Schema]) -> Schema:
    """Read a JSON file of a checkpoint.

    Raises:
        Damaged: It is missing, or other than neft and the libraries write it.
    """
    try:
        return parse(file.read_bytes(), schema)
    except OSError as error:
        raise Damaged(f"{file.name} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise Damaged(f"{file.name} is not what was written ({error})") from None


def _sealed(content: Mapping[str, Any]) -> str:
    """The manifest's text, with the SHA-256 of all else in it as its last entry."""
    return _text({**content, "manifest_sha256": hashlib.sha256(_text(content).encode()).hexdigest()})


def _unsealed(text: bytes) -> Manifest:
    """Read a manifest whose own hash is right.

    Raises:
        Damaged: It is not, or the manifest is of another version of neft.
    """
    try:
        content = parse(text, dict[str, Any])
        content.pop("manifest_sha256", None)
        if _sealed(content).encode() != text:
            raise ValueError("its SHA-256 differs")
        if content.get("format") != FORMAT:
            raise Damaged(f"manifest.json has format {content.get('format')}, this version of neft reads {FORMAT}")
        return parse(_text(content), Manifest)
    except ValueError as error:
        raise Damaged(f"manifest.json is not what was written ({error})") from None


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _files(place: Path) -> list[Path]:
    """All files of a checkpoint but its manifest and hidden ones."""
    found = (file for file in sorted(place.rglob("*")) if file.is_file() and not file.name.startswith("."))
    return [file for file in found if file != place / MANIFEST]


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
