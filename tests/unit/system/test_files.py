"""Files that are written into folders of others.

Oracles: targets of links, which must not change; the file system's modes; the syntax tree of every module.
"""

from __future__ import annotations

import ast
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import neftcli
from neftcli.errors import InputError
from neftcli.system import files
from neftcli.system.files import (
    RECENT,
    STALE_AFTER,
    atomic_write,
    clear_path,
    count_bytes,
    escapes_folder,
    file_sha256,
    file_sha256_once,
    format_bytes,
    make_empty_folder,
    open_without_links,
    remove,
    remove_if_possible,
    remove_stale_files,
    require_no_links,
    restrict_umask,
)
from tests.conftest import keep_nfs_files

SOURCES = sorted((Path(__file__).parents[3] / "neftcli").rglob("*.py"))
OTHER_WRITERS = {
    "cli/display/text.py": "/dev/null instead of a closed stream",
    "cli/recipes.py": "a file that the user named",
    "export/gguf_file.py": "a link in a temporary folder",
    "data/token_cache.py": "the cache, by mkstemp and a rename",
    "models/gguf.py": "a folder of mkdtemp, then a rename",
    "models/settings_files.py": "the new folder that replaces the model",
    "sweep/outputs.py": "the link to the best run, by a rename",
}
"""Modules that write by themselves, and what they write."""
WRITES = ("write_text", "write_bytes", "rmtree", "unlink", "symlink_to", "FileHandler", "copyfile")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with a file of somebody else."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine.txt").write_text("mine")
    return tmp_path / "outside"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").touch()
    return tmp_path / "folder"


@pytest.mark.parametrize("path", [".", "link", "deep/link", "deep/file"])
@pytest.mark.parametrize("target", ["outside", "outside/mine.txt", "outside/nothing"])
def test_require_no_links_anywhere(path: str, target: str, folder: Path, outside: Path) -> None:
    require_no_links(folder)
    link = folder / path
    remove(link)
    link.symlink_to(outside.parent / target)
    with pytest.raises(InputError) as raised:
        require_no_links(folder)
    assert str(raised.value) == (
        f"{link}: neft does not write through links\n  got      a link to {outside.parent / target}\n"
        f"  hint     rm {link}    removes the link, not its target"
    )
    require_no_links(folder, allowed=(link,))


def test_require_no_links_pipe_and_missing(folder: Path) -> None:
    require_no_links(folder / "nothing")
    os.mkfifo(folder / "deep" / "pipe")
    with pytest.raises(InputError, match=r"deep/pipe: neft writes only to files and folders"):
        require_no_links(folder)


@pytest.mark.parametrize("mode", ["a", "ab", "r+b", "w"])
def test_open_without_links_link(mode: str, folder: Path, outside: Path) -> None:
    """Also one that somebody puts there after the search."""
    (folder / "link").symlink_to(outside / "mine.txt")
    (folder / "dangling").symlink_to(outside / "new.txt")
    for name in ("link", "dangling"):
        with pytest.raises(OSError, match="symbolic links"):
            open_without_links(folder / name, mode)
    assert [file.name for file in outside.iterdir()] == ["mine.txt"]
    assert (outside / "mine.txt").read_text() == "mine"


def test_open_without_links_file(folder: Path) -> None:
    for text in ("größe\n", "second\n"):
        with open_without_links(folder / "new", "a") as file:
            file.write(text)
    assert (folder / "new").read_bytes() == "größe\nsecond\n".encode()


def test_atomic_write_replaces_link(folder: Path, outside: Path) -> None:
    (folder / "link").symlink_to(outside / "mine.txt")
    atomic_write(folder / "link", "new")
    assert (outside / "mine.txt").read_text() == "mine"
    assert not (folder / "link").is_symlink()
    assert (folder / "link").read_text() == "new"


@pytest.mark.parametrize("target", ["outside", "outside/mine.txt", "outside/nothing"])
def test_remove_and_make_empty_folder_link(target: str, folder: Path, outside: Path) -> None:
    for call in (remove, make_empty_folder):
        (folder / "link").symlink_to(outside.parent / target)
        call(folder / "link")
        assert [file.name for file in outside.iterdir()] == ["mine.txt"]
        assert (folder / "link").exists() == (call is make_empty_folder)
    assert list((folder / "link").iterdir()) == []


def test_remove_file_folder_and_missing(folder: Path) -> None:
    for path in (folder / "deep" / "file", folder / "nothing", folder):
        remove(path)
        assert not path.exists()


def test_clear_path_folder_that_cannot_be_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that can go goes, and a later command removes the rest."""
    (folder / "deep" / ".nfs0123").touch()
    keep_nfs_files(monkeypatch)
    assert not remove_if_possible(folder / "deep")
    make_empty_folder(folder / "deep")
    [aside] = folder.glob(".deep.neft-*")
    assert [path.name for path in aside.iterdir()] == [".nfs0123"]
    assert list((folder / "deep").iterdir()) == []
    for path in (folder / "deep", folder / "nothing"):
        clear_path(path)
        assert remove_if_possible(path)
    then = time.time() - STALE_AFTER - 60
    os.utime(aside, (then, then))
    remove_stale_files(folder)
    assert aside.is_dir()
    monkeypatch.undo()
    os.utime(aside, (then, then))
    remove_stale_files(folder)
    assert list(folder.iterdir()) == []


def test_remove_stale_files_keeps_others(folder: Path) -> None:
    for name in (
        ".run.json.neft-0123abcd",
        ".young.neft-0123abcd",
        ".notes.20250101",
        ".lock",
        "run.json",
        ".hidden.txt",
    ):
        (folder / name).touch()
        if "young" not in name:
            then = time.time() - STALE_AFTER - 60
            os.utime(folder / name, (then, then))
    remove_stale_files(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".hidden.txt",
        ".lock",
        ".notes.20250101",
        ".young.neft-0123abcd",
        "deep",
        "run.json",
    ]


@pytest.mark.parametrize(("umask", "file", "place"), [(0, 0o664, 0o775), (0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_restrict_umask(umask: int, file: int, place: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        restrict_umask()
        (tmp_path / "folder").mkdir()
        atomic_write(tmp_path / "file", "")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder")]
    assert modes == [file, place]


def writes(source: Path) -> list[str]:
    """The calls of a source that write, remove or add by themselves; RunDirectory.write_text(name, text) does not."""
    found = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(keyword.arg == "fileobj" for keyword in node.keywords):
            continue
        name = ast.unparse(node.func)
        method = name.rpartition(".")[2]
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        texts = [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        of_a_run = method == "write_text" and len(node.args) == 2 and "utf-8" not in texts
        opens = method == "open" and any(set(text) & set("wax+") and len(text) < 4 for text in texts)
        if opens or (method in WRITES and not of_a_run) or name == "os.truncate":
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(source.parents[2])))
def test_files_are_written_in_one_module(source: Path) -> None:
    """New ones belong in `neftcli/system/files.py`, which follows no links."""
    name = source.relative_to(Path(neftcli.__file__).parent).as_posix()
    if name != "system/files.py":
        assert bool(writes(source)) == (name in OTHER_WRITERS), writes(source)


def test_writes_finds_each_kind(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    calls = ("p.open('a')", "open(p, mode='wb')", "p.write_text('x')", "p.write_text('x', 'utf-8')", "shutil.rmtree(p)")
    source.write_text("\n".join((*calls, "p.open('rb')", "open_without_links(p, 'a')", "run.write_text(RECIPE, text)")))
    assert len(writes(source)) == len(calls)


@pytest.mark.parametrize("name", ["own.txt", "sub", "sub/not-there.txt", "./own.txt", "..own.txt", "a..b"])
def test_escapes_folder_inner_names(name: str) -> None:
    assert not escapes_folder(name)


@pytest.mark.parametrize("name", ["../other.txt", "/etc/passwd", "sub/../../other.txt", "sub\\..\\..\\x", "..", "a\0b"])
def test_escapes_folder_outer_names(name: str) -> None:
    assert escapes_folder(name)


@given(name=st.lists(st.sampled_from(["..", ".", "sub", "own.txt", ""]), min_size=1, max_size=6).map("/".join))
def test_escapes_folder_agrees_with_path_resolution(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Oracle: resolution of paths by the file system."""
    folder = tmp_path_factory.getbasetemp() / "agrees"
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    if not escapes_folder(name):
        assert (folder / name).resolve().is_relative_to(folder.resolve())


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0 KiB"), (300 * 2**10, "300 KiB"), (5 * 2**20, "5.0 MiB"), (3 * 2**30, "3.0 GiB")]
)
def test_format_bytes(number: int, shown: str) -> None:
    assert format_bytes(number) == shown


# Hashes


def test_file_sha256_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is hashed again only after a change; a change in the same tick of the clock as the last one counts too."""
    hashed: list[Path] = []

    def count(path: Path) -> str:
        hashed.append(path)
        return file_sha256(path)

    monkeypatch.setattr(files, "file_sha256", count)
    file = tmp_path / "weights"
    file.write_bytes(b"first")
    for _ in range(2):
        assert file_sha256_once(file) == file_sha256(file)
    assert len(hashed) == 2, "it may still change without a change of its times"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + RECENT + 1)
    for _ in range(2):
        assert file_sha256_once(file) == file_sha256(file)
    assert len(hashed) == 3
    time.sleep(0.02)
    file.write_bytes(b"other")
    assert file_sha256_once(file) == file_sha256(file)
    assert len(hashed) == 4
    with pytest.raises(FileNotFoundError):
        file_sha256_once(tmp_path / "missing")


def test_count_bytes_without_links(tmp_path: Path) -> None:
    """A hard link counts once, a target of a link not at all."""
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "large").write_bytes(b"x" * 10_000)
    (folder / "file").write_bytes(b"x" * 100)
    (folder / "deep" / "file").write_bytes(b"x" * 10)
    os.link(folder / "file", folder / "hard")
    (folder / "link").symlink_to(tmp_path / "large")
    (folder / "all").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    assert count_bytes(folder) == 110
    assert count_bytes(folder / "file") == 100
    assert count_bytes(folder / "link") == count_bytes(tmp_path / "missing") == 0
