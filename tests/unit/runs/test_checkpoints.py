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

from neftcli.runs.checkpoints import MANIFEST, TRAINER_STATE, Checkpoints, Damaged, _sealed, verify
from tests.checkpoint import FACTS, write_trainer_state

FILES = {"adapter.safetensors": b"weights" * 9, "optimizer.pt": b"state", "rng/cpu.pth": bytes(range(64)), "empty": b""}


def write(checkpoints: Checkpoints, step: int, *, finished: bool = True) -> Path:
    place = checkpoints.place(step)
    for name, content in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    write_trainer_state(place, step)
    if finished:
        checkpoints.publish(step, {**FACTS, "neftune": {"alpha": 5.0}})
    return place


def test_what_was_published_verifies_and_knows_what_it_is_of(tmp_path: Path) -> None:
    found = verify(write(Checkpoints(tmp_path, 2), 30))
    assert (found.step, found.manifest["neftune"]) == (30, {"alpha": 5.0})
    sizes = {name: known["bytes"] for name, known in found.manifest["files"].items() if name != TRAINER_STATE}
    assert sizes == {name: len(content) for name, content in FILES.items()}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_in_any_file_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = write(Checkpoints(tmp_path_factory.mktemp("c"), 2), 3)
    file = data.draw(
        st.sampled_from([path for path in sorted(place.rglob("*")) if path.is_file() and path.stat().st_size])
    )
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    with pytest.raises(Damaged, match=file.name):
        verify(place)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_file_that_is_missing_or_cut_short_is_found(name: str, tmp_path: Path) -> None:
    place = write(Checkpoints(tmp_path, 2), 3)
    if content := (place / name).read_bytes():
        (place / name).write_bytes(content[:-1])
        with pytest.raises(Damaged, match=Path(name).name):
            verify(place)
    (place / name).unlink()
    with pytest.raises(Damaged, match=Path(name).name):
        verify(place)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd"])
def test_verify_rejects_a_sealed_manifest_that_names_a_file_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the right size and hash; the file is not opened."""
    place = write(Checkpoints(tmp_path, 2), 3)
    secret = Path(name) if name.startswith("/") else tmp_path / "secret"
    if not secret.exists():
        secret.write_bytes(b"of somebody else")
    known = {"bytes": secret.stat().st_size, "sha256": sha256(secret.read_bytes()).hexdigest()}
    content = json.loads((place / MANIFEST).read_text())
    content.pop("manifest_sha256")
    content["files"][name] = known
    (place / MANIFEST).write_text(_sealed(content))
    hashed: list[Path] = []
    monkeypatch.setattr("neftcli.runs.checkpoints._sha256", hashed.append)
    with pytest.raises(Damaged, match=r"manifest\.json names a file that is not in the checkpoint: "):
        verify(place)
    assert hashed == []


def test_a_file_that_was_put_there_is_found(tmp_path: Path) -> None:
    place = write(Checkpoints(tmp_path, 2), 3)
    (place / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(Damaged, match=r"pytorch_model\.bin was not written with it"):
        verify(place)


def test_the_newest_that_verifies_is_taken_and_each_newer_one_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 9)
    for step in (2, 4, 10):
        write(checkpoints, step)
    write(checkpoints, 12, finished=False)
    (checkpoints.place(10) / "optimizer.pt").write_bytes(b"stats")
    found, passed_over = checkpoints.newest()
    assert found is not None
    assert found.step == 4
    assert passed_over == [
        f"{checkpoints.place(12)}: it was never finished (there is no manifest.json)",
        f"{checkpoints.place(10)}: optimizer.pt is not what was written (its SHA-256 differs)",
    ]


def test_a_rotation_that_fails_leaves_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal in the middle of it, with one checkpoint kept: the trainer discards what has no manifest only."""
    checkpoints = Checkpoints(tmp_path, 1)
    write(checkpoints, 2)

    def stopped(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("neftcli.runs.checkpoints.remove_if_possible", stopped)
        with pytest.raises(KeyboardInterrupt):
            write(checkpoints, 4)
    checkpoints.discard(4)
    newest, _ = checkpoints.newest()
    assert newest is not None
    assert newest.step == 4
    assert checkpoints.latest() == newest.path
    write(checkpoints, 6)
    assert [place.name for place in tmp_path.iterdir()] == ["checkpoint-6"]


@settings(max_examples=60, deadline=None)
@given(keep=st.integers(1, 4), finished=st.lists(st.booleans(), min_size=1, max_size=9))
def test_the_last_good_one_is_always_there(
    keep: int, finished: list[bool], tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("c"), keep)
    good: list[int] = []
    for step, whole in enumerate(finished, 1):
        write(checkpoints, step, finished=whole)
        good += [step] if whole else []
        newest, _ = checkpoints.newest()
        assert (newest.step if newest else None) == (good[-1] if good else None)
        there = [int(place.name.partition("-")[2]) for place in checkpoints.folder.iterdir()]
        assert sorted(step for step in there if step in good) == good[-keep:]


def test_begin_makes_an_empty_folder(tmp_path: Path) -> None:
    """What a killed process left in it, a link among it, is in no checkpoint."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    (checkpoints.place(2) / "deep").mkdir(parents=True)
    (checkpoints.place(2) / "optimizer.pt").symlink_to(tmp_path / "elsewhere")
    checkpoints.begin(2)
    assert list(checkpoints.place(2).iterdir()) == []
    assert not (tmp_path / "elsewhere").exists()
