"""Checkpoints that verify.

Oracles: every byte of every file (a flipped bit, a missing byte or a missing file must be found), and the rule that the
last good checkpoint is never taken away.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.runs.checkpoints import (
    MANIFEST,
    TRAINER_STATE,
    CheckpointFolder,
    DamagedCheckpointError,
    format_manifest,
    verify,
)
from tests.checkpoint import FACTS, write_trainer_state

FILES = {"adapter.safetensors": b"weights" * 9, "optimizer.pt": b"state", "rng/cpu.pth": bytes(range(64)), "empty": b""}


def write(checkpoints: CheckpointFolder, step: int, *, finished: bool = True) -> Path:
    place = checkpoints.path(step)
    for name, content in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    write_trainer_state(place, step)
    if finished:
        checkpoints.publish(step, {**FACTS, "neftune": {"alpha": 5.0}})
    return place


def test_verify_published_checkpoint(tmp_path: Path) -> None:
    found = verify(write(CheckpointFolder(tmp_path, 2), 30))
    assert (found.step, found.manifest["neftune"]) == (30, {"alpha": 5.0})
    sizes = {name: known["bytes"] for name, known in found.manifest["files"].items() if name != TRAINER_STATE}
    assert sizes == {name: len(content) for name, content in FILES.items()}


@settings(deadline=None)
@given(data=st.data())
def test_verify_flipped_bit(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = write(CheckpointFolder(tmp_path_factory.mktemp("c"), 2), 3)
    file = data.draw(
        st.sampled_from([path for path in sorted(place.rglob("*")) if path.is_file() and path.stat().st_size])
    )
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=file.name):
        verify(place)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_verify_missing_or_truncated_file(name: str, tmp_path: Path) -> None:
    place = write(CheckpointFolder(tmp_path, 2), 3)
    if content := (place / name).read_bytes():
        (place / name).write_bytes(content[:-1])
        with pytest.raises(DamagedCheckpointError, match=Path(name).name):
            verify(place)
    (place / name).unlink()
    with pytest.raises(DamagedCheckpointError, match=Path(name).name):
        verify(place)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd"])
def test_verify_manifest_names_outside_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the right size and hash; the file is not opened."""
    place = write(CheckpointFolder(tmp_path, 2), 3)
    secret = Path(name) if name.startswith("/") else tmp_path / "secret"
    if not secret.exists():
        secret.write_bytes(b"of somebody else")
    known = {"bytes": secret.stat().st_size, "sha256": sha256(secret.read_bytes()).hexdigest()}
    content = json.loads((place / MANIFEST).read_text())
    content.pop("manifest_sha256")
    content["files"][name] = known
    (place / MANIFEST).write_text(format_manifest(content))
    hashed: list[Path] = []
    monkeypatch.setattr("neftcli.runs.checkpoints.file_sha256", hashed.append)
    with pytest.raises(DamagedCheckpointError, match=r"manifest\.json names a file outside the checkpoint: "):
        verify(place)
    assert hashed == []


def test_verify_unknown_file(tmp_path: Path) -> None:
    place = write(CheckpointFolder(tmp_path, 2), 3)
    (place / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(DamagedCheckpointError, match=r"pytorch_model\.bin is not in manifest\.json"):
        verify(place)


def test_latest_valid_names_skipped_checkpoints(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path, 9)
    for step in (2, 4, 10):
        write(checkpoints, step)
    write(checkpoints, 12, finished=False)
    (checkpoints.path(10) / "optimizer.pt").write_bytes(b"stats")
    found, passed_over = checkpoints.latest_valid()
    assert found is not None
    assert found.step == 4
    assert passed_over == [
        f"{checkpoints.path(12)}: manifest.json is missing",
        f"{checkpoints.path(10)}: optimizer.pt has changed (its SHA-256 differs)",
    ]


def test_publish_failed_removal_keeps_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal in the middle of it, with one checkpoint kept: the trainer discards what has no manifest only."""
    checkpoints = CheckpointFolder(tmp_path, 1)
    write(checkpoints, 2)

    def stopped(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("neftcli.runs.checkpoints.remove_if_possible", stopped)
        with pytest.raises(KeyboardInterrupt):
            write(checkpoints, 4)
    checkpoints.discard(4)
    newest, _ = checkpoints.latest_valid()
    assert newest is not None
    assert newest.step == 4
    assert checkpoints.latest_complete() == newest.path
    write(checkpoints, 6)
    assert [place.name for place in tmp_path.iterdir()] == ["checkpoint-6"]


@settings(deadline=None)
@given(keep=st.integers(1, 4), finished=st.lists(st.booleans(), min_size=1, max_size=9))
def test_publish_keeps_a_valid_checkpoint(
    keep: int, finished: list[bool], tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoints = CheckpointFolder(tmp_path_factory.mktemp("c"), keep)
    good: list[int] = []
    for step, whole in enumerate(finished, 1):
        write(checkpoints, step, finished=whole)
        good += [step] if whole else []
        newest, _ = checkpoints.latest_valid()
        assert (newest.step if newest else None) == (good[-1] if good else None)
        there = [int(place.name.partition("-")[2]) for place in checkpoints.folder.iterdir()]
        assert sorted(step for step in there if step in good) == good[-keep:]


def test_create_makes_empty_folder(tmp_path: Path) -> None:
    """Leftovers of a killed process, such as a link, do not get into a checkpoint."""
    checkpoints = CheckpointFolder(tmp_path / "checkpoints", 1)
    (checkpoints.path(2) / "deep").mkdir(parents=True)
    (checkpoints.path(2) / "optimizer.pt").symlink_to(tmp_path / "elsewhere")
    checkpoints.create(2)
    assert list(checkpoints.path(2).iterdir()) == []
    assert not (tmp_path / "elsewhere").exists()
