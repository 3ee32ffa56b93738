"""The cache of tokenised rows.

Oracles: the tokenised rows, the number of calls that tokenised them, and the files of the folder.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from neftcli.data import token_cache
from neftcli.data.dataset import ExampleDataset, TokenDataset
from neftcli.data.token_cache import hash_key, load_or_create
from neftcli.data.tokens import IGNORE_INDEX, TokenRow
from neftcli.errors import InputError
from neftcli.rows.example import Example, Turn


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path))
    return tmp_path / "tokens"


ROWS = [
    TokenRow([place, 2, 3], [IGNORE_INDEX, 2, 3], place % 2 == 0, True, f"größe\udcff, line {place}")
    for place in range(9)
]


def examples(text: str = "a", location: str = "rows.jsonl, line 1") -> ExampleDataset:
    turns = (Turn("user", "q"), Turn("assistant", text))
    return ExampleDataset.from_rows([Example(turns, "", location)])


def counting() -> tuple[list[int], Callable[[], tuple[TokenDataset, Sequence[int]]]]:
    calls: list[int] = []

    def tokenise() -> tuple[TokenDataset, Sequence[int]]:
        calls.append(1)
        return TokenDataset.from_rows(ROWS), range(0, 18, 2)

    return calls, tokenise


def test_load_or_create_returns_what_was_tokenised() -> None:
    calls, tokenise = counting()
    for _ in range(3):
        rows, places = load_or_create("key", tokenise)
        assert list(rows) == ROWS
        assert list(places) == list(range(0, 18, 2))
        assert rows.columns().column_names == ["input_ids", "labels"]
    assert len(calls) == 1
    load_or_create("other key", tokenise)
    assert len(calls) == 2


def test_load_or_create_no_rows() -> None:
    for _ in range(2):
        rows, places = load_or_create("key", lambda: (TokenDataset.from_rows([]), []))
        assert (list(rows), list(places)) == ([], [])


def test_hash_key_covers_all_inputs() -> None:
    keys = {
        hash_key(examples(), "tokenizer", "template"),
        hash_key(examples("b"), "tokenizer", "template"),
        hash_key(examples(location="rows.jsonl, line 2"), "tokenizer", "template"),
        hash_key(examples(), "tokenizers", "template"),
        hash_key(examples(), "tokenizer", "template", ""),
        hash_key(examples(), "tokenizert", "emplate"),
    }
    assert len(keys) == 6
    assert hash_key(examples(), "tokenizer", "template") in keys


def test_load_or_create_folder_is_a_link(folder: Path, tmp_path: Path) -> None:
    """The folder `tokens` may be a link; an entry or a lock that is one is rejected."""
    calls, tokenise = counting()
    (tmp_path / "scratch").mkdir()
    folder.symlink_to("scratch")
    for _ in range(2):
        assert list(load_or_create("key", tokenise)[0]) == ROWS
    assert len(calls) == 1
    assert (tmp_path / "scratch" / "key.arrow").is_file()
    for name in ("other.arrow", "another.lock"):
        (folder / name).symlink_to(tmp_path / "nowhere")
        with pytest.raises(InputError, match=f"{name}: neft does not write through links"):
            load_or_create(Path(name).stem, tokenise)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped"])
def test_load_or_create_damaged_entry(folder: Path, damage: str) -> None:
    calls, tokenise = counting()
    load_or_create("key", tokenise)
    content = (folder / "key.arrow").read_bytes()
    middle = len(content) // 2
    damaged = {
        "truncated": content[:-1],
        "emptied": b"",
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }
    (folder / "key.arrow").write_bytes(damaged[damage])
    assert list(load_or_create("key", tokenise)[0]) == ROWS
    assert len(calls) == 2
    assert (folder / "key.arrow").read_bytes() == content


def test_load_or_create_evicts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used entry is removed, and also an entry larger than the limit."""
    import os

    _, tokenise = counting()
    load_or_create("a", tokenise)
    load_or_create("b", tokenise)
    size = (folder / "a.arrow").stat().st_size
    os.utime(folder / "a.arrow", (1, 1))
    os.utime(folder / "b.arrow", (2, 2))
    (folder / "dead.part").touch()
    os.utime(folder / "dead.part", (1, 1))
    load_or_create("a", tokenise)  # is used again
    monkeypatch.setattr(token_cache, "MAX_BYTES", 2 * size)
    load_or_create("c", tokenise)
    assert {path.name for path in folder.iterdir() if path.suffix != ".lock"} == {"a.arrow", "c.arrow"}
    monkeypatch.setattr(token_cache, "MAX_BYTES", 10)
    load_or_create("d", tokenise)
    assert not (folder / "d.arrow").exists()


def test_load_or_create_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path / "file"))
    calls, tokenise = counting()
    assert list(load_or_create("key", tokenise)[0]) == list(load_or_create("key", tokenise)[0]) == ROWS
    assert len(calls) == 2


def _tokenise_slowly(log: str) -> tuple[TokenDataset, Sequence[int]]:
    import time

    with Path(log).open("a") as file:
        file.write("x")
    time.sleep(0.5)
    return TokenDataset.from_rows(ROWS), range(9)


def _load(log: str) -> None:
    assert list(load_or_create("key", lambda: _tokenise_slowly(log))[0]) == ROWS


@pytest.mark.slow
def test_load_or_create_once_for_several_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_load, args=(str(tmp_path / "log"),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "x"
