"""Verifiable checkpoints: a folder of files, and a manifest with the size and hash of each file, written last.

checkpoints/
└── checkpoint-STEP/
    ├── ...                 weights or adapter, optimiser, scheduler, random states, trainer state, recipe.yaml
    └── manifest.json       files with sizes and SHA-256, facts about the run, and its own SHA-256

A folder without a manifest is no checkpoint: the process that wrote it was killed. It is emptied before it is written
again. Only single files are renamed, so several processes can write into one folder; the main process writes the
manifest after all of them are done.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from neftcli.runs.schemas import Manifest, Schema, TrainerState, TrainingState, parse_json
from neftcli.system.files import (
    atomic_write,
    escapes_folder,
    file_sha256,
    fsync_path,
    make_empty_folder,
    remove,
    remove_if_possible,
)

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
RUN_STATE: Final = "run"
"""Key of neft's own part of `trainer_state.json`, among the states of callbacks."""
FOLDER_NAME = re.compile(r"checkpoint-([0-9]+)")
FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: Its folder.
        step: Number of steps done.
        manifest: Facts about the run: hashes of recipe, data and model, noise, versions.
        progress: Measurements and elapsed time of the run at this step.
    """

    path: Path
    step: int
    manifest: Manifest
    progress: TrainingState


class DamagedCheckpointError(Exception):
    """A checkpoint can't be verified; the message is the reason."""


class CheckpointFolder:
    """Checkpoints of a run.

    Args:
        folder: Folder of the checkpoints.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step`."""
        return self.folder / f"checkpoint-{step}"

    def create(self, step: int) -> None:
        """Make an empty folder for the checkpoint after `step`; remove what a killed process left there."""
        self.folder.mkdir(exist_ok=True)
        make_empty_folder(self.path(step))

    def publish(self, step: int, facts: Mapping[str, Any]) -> None:
        """Complete the checkpoint of `step`: fsync its files, write the manifest, and remove older checkpoints.

        Args:
            step: Number of steps done.
            facts: Facts about the run for the manifest.
        """
        folder = self.path(step)
        files = {}
        for file in _files(folder):
            fsync_path(file)
            files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        fsync_path(folder)
        atomic_write(folder / MANIFEST, format_manifest({"format": FORMAT, "step": step, **facts, "files": files}))
        fsync_path(folder)
        fsync_path(self.folder)
        self._remove_old(step)

    def discard(self, step: int) -> None:
        """Remove the folder of `step` if it is incomplete."""
        if not self._is_complete(step):
            remove_if_possible(self.path(step))  # the rest is no checkpoint, and the next removal tries again

    def any_published(self) -> bool:
        """Return whether any folder has a manifest, valid or not."""
        return any((self.path(step) / MANIFEST).exists() for step in self._steps())

    def complete_steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, in order, without verifying them, which can take minutes."""
        return sorted(step for step in self._steps() if self._is_complete(step))

    def latest_complete(self) -> Path | None:
        """Return the folder of the newest complete checkpoint, without verifying it."""
        steps = self.complete_steps()
        return self.path(steps[-1]) if steps else None

    def latest_valid(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest checkpoint that verifies, and the reason for each newer one that was skipped."""
        skipped: list[str] = []
        for step in sorted(self._steps(), reverse=True):
            try:
                return verify(self.path(step)), skipped
            except DamagedCheckpointError as damage:
                skipped.append(f"{self.path(step)}: {damage}")
        return None, skipped

    def _steps(self) -> list[int]:
        matches = [FOLDER_NAME.fullmatch(entry.name) for entry in self.folder.glob("checkpoint-*") if entry.is_dir()]
        return [int(match[1]) for match in matches if match]

    def _is_complete(self, step: int) -> bool:
        return (self.path(step) / MANIFEST).is_file()

    def _remove_old(self, newest: int) -> None:
        """Remove the oldest checkpoints and incomplete ones, but never `newest`, which is complete."""
        steps = self._steps()
        complete = sorted(step for step in steps if self._is_complete(step) and step != newest)
        incomplete = [step for step in steps if not self._is_complete(step)]
        surplus = max(0, len(complete) + 1 - self.keep)
        for step in [*complete[:surplus], *incomplete]:
            # The manifest goes first: an interrupted removal leaves nothing that looks complete.
            # What can't be removed now is no checkpoint any more, and the next removal tries again.
            remove(self.path(step) / MANIFEST)
            remove_if_possible(self.path(step))


def verify(folder: Path) -> Checkpoint:
    """Read every byte of a checkpoint and compare it with the manifest.

    Raises:
        DamagedCheckpointError: A file is missing, truncated, changed, or not in the manifest.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise DamagedCheckpointError("manifest.json is missing") from None
    except OSError as error:
        raise DamagedCheckpointError(f"manifest.json can't be read: {error.strerror}") from None
    manifest = _parse_manifest(text)
    for name, expected in manifest["files"].items():
        if escapes_folder(name):
            raise DamagedCheckpointError(f"manifest.json names a file outside the checkpoint: {name}")
        try:
            size = (folder / name).stat().st_size
        except OSError:
            raise DamagedCheckpointError(f"{name} is missing") from None
        if size != expected["bytes"]:
            raise DamagedCheckpointError(f"{name} has {size} bytes, not {expected['bytes']}")
    for name, expected in manifest["files"].items():
        try:
            actual = file_sha256(folder / name)
        except OSError as error:
            raise DamagedCheckpointError(f"{name} can't be read: {error.strerror}") from None
        if actual != expected["sha256"]:
            raise DamagedCheckpointError(f"{name} has changed (its SHA-256 differs)")
    unknown = {file.relative_to(folder).as_posix() for file in _files(folder)} - manifest["files"].keys()
    if unknown:
        raise DamagedCheckpointError(f"{min(unknown)} is not in manifest.json")
    for name in manifest["files"]:
        if name.endswith(".json"):
            _read(folder / name, dict[str, Any])
    progress = _read(folder / TRAINER_STATE, TrainerState)["stateful_callbacks"][RUN_STATE]
    return Checkpoint(folder, manifest["step"], manifest, progress)


def _read(file: Path, schema: type[Schema]) -> Schema:
    """Read a JSON file of a checkpoint.

    Raises:
        DamagedCheckpointError: It is missing or does not fit the schema.
    """
    try:
        return parse_json(file.read_bytes(), schema)
    except OSError as error:
        raise DamagedCheckpointError(f"{file.name} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise DamagedCheckpointError(f"{file.name} is damaged ({error})") from None


def format_manifest(content: Mapping[str, Any]) -> str:
    """Return the manifest's text, with the SHA-256 of the other entries as the last entry."""
    return _to_text({**content, "manifest_sha256": hashlib.sha256(_to_text(content).encode()).hexdigest()})


def _parse_manifest(text: bytes) -> Manifest:
    """Parse a manifest and check its own hash.

    Raises:
        DamagedCheckpointError: The hash differs, or the manifest is of a different version of neft.
    """
    try:
        content = parse_json(text, dict[str, Any])
        content.pop("manifest_sha256", None)
        if format_manifest(content).encode() != text:
            raise ValueError("its SHA-256 differs")
        if content.get("format") != FORMAT:
            message = f"manifest.json has format {content.get('format')}, this version of neft reads {FORMAT}"
            raise DamagedCheckpointError(message)
        return parse_json(_to_text(content), Manifest)
    except ValueError as error:
        raise DamagedCheckpointError(f"manifest.json is damaged ({error})") from None


def _to_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _files(folder: Path) -> list[Path]:
    """Return all files of a checkpoint except its manifest and hidden files."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    return [file for file in files if file != folder / MANIFEST]
