"""Names that lead out of a folder.

Oracles: the file system's own resolution of paths, and the hub's client, which writes a snapshot of links.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neftcli.machine.inside import leads_out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "own.txt").write_text("own")
    (tmp_path / "other.txt").write_text("other")
    return folder


@pytest.mark.parametrize("name", ["own.txt", "sub", "sub/not-there.txt", "./own.txt", "..own.txt", "a..b"])
def test_leads_out_of_no_folder(name: str, folder: Path) -> None:
    assert leads_out(folder, name) == ""


@pytest.mark.parametrize("name", ["../other.txt", "/etc/passwd", "sub/../../other.txt", "sub\\..\\..\\x", "..", "a\0b"])
def test_leads_out_by_name(name: str, folder: Path) -> None:
    assert leads_out(folder, name) == name


def test_leads_out_by_a_link(folder: Path) -> None:
    (folder / "inner").symlink_to("own.txt")
    (folder / "outer").symlink_to("../other.txt")
    (folder / "linked").symlink_to(folder.parent)
    (folder / "loop").symlink_to("loop")
    assert leads_out(folder, "inner") == ""
    assert leads_out(folder, "outer") == f"outer, a link to {folder.parent / 'other.txt'}"
    assert leads_out(folder, "linked/other.txt").startswith("linked/other.txt, a link to ")
    assert leads_out(folder, "loop") == "loop"
    (folder.parent / "alias").symlink_to(folder)
    assert leads_out(folder.parent / "alias", "inner") == ""


def test_leads_out_of_a_snapshot_of_the_hub(tmp_path: Path) -> None:
    """Only into the blobs of the same repository; a `blobs` that is a link itself leads out."""
    for name in ("mine", "other"):
        snapshot = tmp_path / f"models--{name}" / "snapshots" / "abc"
        (snapshot / "sub").mkdir(parents=True)
        blobs = tmp_path / f"models--{name}" / "blobs"
        blobs.mkdir()
        (blobs / "1").write_text(name)
    snapshot = tmp_path / "models--mine" / "snapshots" / "abc"
    (snapshot / "w").symlink_to("../../blobs/1")
    (snapshot / "sub" / "w").symlink_to("../../../blobs/1")
    (snapshot / "theirs").symlink_to("../../../models--other/blobs/1")
    (tmp_path / "alias").symlink_to(snapshot)
    assert [leads_out(snapshot, name) for name in ("w", "sub/w")] == ["", ""]
    assert [leads_out(snapshot / "sub", "w"), leads_out(tmp_path / "alias", "w")] == ["", ""]
    assert leads_out(snapshot, "theirs").startswith("theirs, a link to ")
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert leads_out(snapshot, "w").startswith("w, a link to ")


@given(name=st.lists(st.sampled_from(["..", ".", "sub", "own.txt", ""]), min_size=1, max_size=6).map("/".join))
def test_leads_out_agrees_with_the_file_system(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is let through resolves to a place inside."""
    folder = tmp_path_factory.getbasetemp() / "agrees"
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    if not leads_out(folder, name):
        assert (folder / name).resolve().is_relative_to(folder.resolve())
