"""Rows in record batches, in memory and in a file.

Oracles: the lists of Python objects that the rows were made from, the system's list of files and mappings, and
tracemalloc for the memory of Python objects.
"""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neftcli.data import dataset
from neftcli.data.dataset import ExampleDataset, TokenDataset
from neftcli.data.mixture import read_examples
from neftcli.data.prepare import count_tokens, data_fingerprint
from neftcli.data.splits import count_duplicates, select_distinct
from neftcli.data.tokens import IGNORE_INDEX, TokenRow
from neftcli.errors import DataError, InputError
from neftcli.recipe.schema import Data
from neftcli.rows.example import Example, Turn
from neftcli.training.assets import hash_tokens
from tests.conftest import file_system

MANY_ROWS = 20_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a cache folder that doesn't exist yet, and batches of three rows, so that few rows are several batches."""
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset, "BATCH_ROWS", 3)
    return tmp_path / "cache"


@pytest.fixture(params=["in memory", "in a file"])
def location(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "in a file":
        monkeypatch.setattr(dataset, "MAX_BYTES_IN_MEMORY", 200)
    return str(request.param)


def examples(number: int) -> list[Example]:
    texts = ["a", "größe\n\t", "日本 \U0001f600", "", "x" * 300, '"quoted" \\ \0']
    conversation = (Turn("system", "Be brief."), Turn("user", "q", "an input"), Turn("assistant", "a"))
    return [
        Example((), texts[place % 6], f"rows.jsonl, line {place}")
        if place % 3 == 0
        else Example((*conversation[place % 2 :], Turn("user", texts[place % 6])), "", f"größe\udcff.csv, line {place}")
        for place in range(number)
    ]


def tokens(number: int) -> list[TokenRow]:
    rows = []
    for place in range(number):
        ids = [(place * 7 + position) % 99_999 for position in range(2 + place % 5)]
        labels = ids if place % 4 == 0 else [IGNORE_INDEX, *ids[1:]]
        rows.append(TokenRow(ids, list(labels), place % 3 == 0, place % 2 == 0, f"row {place}"))
    return rows


KINDS: list[tuple[Any, Callable[[int], list[Any]]]] = [(ExampleDataset, examples), (TokenDataset, tokens)]


@pytest.mark.parametrize(("kind", "make"), KINDS)
@pytest.mark.parametrize("number", [0, 1, 3, 20])
def test_from_rows_keeps_rows(kind: Any, make: Callable[[int], list[Any]], number: int, location: str) -> None:
    """Rows are in order, can be indexed from either end, and during an iteration."""
    rows = make(number)
    kept = kind.from_rows(iter(rows))
    assert len(kept) == number
    assert bool(kept) == bool(rows)
    assert list(kept) == rows
    assert [kept[place] for place in reversed(range(number))] == rows[::-1]
    assert [kept[place - number] for place in range(number)] == rows
    assert [(row, kept[0]) for row in kept] == [(row, rows[0]) for row in rows]
    with pytest.raises(IndexError):
        kept[number]


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_select_and_slices_agree_with_lists(kind: Any, make: Callable[[int], list[Any]], location: str) -> None:
    """Slices and selections, also of each other, hold the same rows as those of lists."""
    rows = make(20)
    kept = kind.from_rows(rows)
    for part in (slice(0), slice(4), slice(3, 17, 2), slice(None, None, -1), slice(18, 99)):
        assert list(kept[part]) == rows[part]
        assert list(kept[part][::-1]) == rows[part][::-1]
    chosen = [19, 0, 7, 7, 3]
    assert list(kept.select(chosen)) == [rows[place] for place in chosen]
    assert list(kept.select(numpy.array(chosen))[1:].select([2, 0])) == [rows[7], rows[0]]
    assert list(kept[::-1].select([0, 1])) == rows[:-3:-1]
    assert list(kept.select([])) == []
    assert list(kept) == rows


def test_token_dataset_columns(location: str) -> None:
    """The columns are those of the selected rows; a whole dataset is not copied."""
    rows = tokens(20)
    kept = TokenDataset.from_rows(rows)
    assert kept.lengths().tolist() == [len(row.input_ids) for row in rows]
    assert kept.select([5, 2]).lengths().tolist() == [len(rows[5].input_ids), len(rows[2].input_ids)]
    for expected, view in (
        (rows, kept),
        ([rows[5], rows[2]], kept.select([5, 2])),
        (rows[:3], kept[:3]),
        ([], kept[:0]),
    ):
        table = view.columns()
        assert view.lengths().tolist() == [len(row.input_ids) for row in expected]
        assert table["input_ids"].to_pylist() == [row.input_ids for row in expected]
        assert table["labels"].to_pylist() == [row.labels for row in expected]
    ours, theirs = (table["labels"].chunk(2).buffers()[-1].address for table in (kept.table(), kept.columns()))
    assert ours == theirs


def test_data_fingerprint_and_hash_tokens_of_datasets(location: str) -> None:
    """The hashes are those of the lists of objects, since recipes, checkpoints and sweeps compare them."""
    rows, pairs = tokens(20), examples(20)
    expected = sha256(b"".join(repr((row.input_ids, row.labels)).encode() for row in rows))
    assert hash_tokens(TokenDataset.from_rows(rows)) == expected.hexdigest()
    expected = sha256()
    for side in (pairs, pairs[4:2:-1]):
        for row in side:
            turns = [[turn.role, turn.content, turn.context] for turn in row.turns]
            expected.update(json.dumps([turns, row.text]).encode())
        expected.update(b"\n")
    kept = ExampleDataset.from_rows(pairs)
    assert data_fingerprint(kept, kept[4:2:-1]) == expected.hexdigest()


TEXTS = st.text(st.characters(), max_size=4)
TURNS = st.builds(
    Turn,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=TEXTS,
    context=TEXTS,
    learn=st.sampled_from([None, True, False]),
    reasoning=TEXTS,
    tool_calls=TEXTS,
    name=TEXTS,
    tool_call_id=TEXTS,
)
EXAMPLES = st.builds(
    Example,
    turns=st.lists(TURNS, max_size=3).map(tuple),
    text=TEXTS,
    location=st.just("rows.jsonl, line 1"),
    tools=TEXTS,
    completion=st.integers(0, 3),
)


@given(rows=st.lists(EXAMPLES, min_size=1, max_size=4))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_example_dataset_keeps_every_field(rows: list[Example]) -> None:
    """Every field is stored and part of the fingerprint; different examples have different fingerprints."""
    kept = ExampleDataset.from_rows(rows)
    assert list(kept) == rows
    assert len(set(kept.contents())) == len(set(rows))
    assert len(select_distinct(rows)) == len(set(rows))


@pytest.mark.parametrize(
    "change",
    [
        {"learn": True},
        {"learn": False},
        {"reasoning": "hm"},
        {"tool_calls": "[{}]"},
        {"name": "x"},
        {"tool_call_id": "c"},
    ],
)
def test_data_fingerprint_covers_tokens(change: dict[str, Any]) -> None:
    """Marks, reasoning and calls of a turn, and the tools and the completion of an example."""
    turn = Turn("assistant", "a")
    plain = Example((Turn("user", "q"), turn), "", "")
    others = [Example((Turn("user", "q"), replace(turn, **change)), "", "")]
    others += [replace(plain, tools="[{}]"), replace(plain, completion=1)]
    assert len({data_fingerprint(ExampleDataset.from_rows([row])) for row in (plain, *others)}) == 4


def test_from_rows_long_row_ends_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is never much larger than its largest row."""
    monkeypatch.setattr(dataset, "BATCH_ROWS", 1000)
    rows = [Example((), "x" * (dataset.BATCH_LENGTH * 2 // 3), str(number)) for number in range(5)]
    kept = ExampleDataset.from_rows(rows)
    assert [batch.num_rows for batch in kept.table().to_batches()] == [2, 2, 1]
    assert list(kept) == rows


# The file


def memory_maps(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def test_from_rows_few_rows_in_memory(cache: Path) -> None:
    """Not even the folder is created."""
    assert list(ExampleDataset.from_rows(examples(500))) == examples(500)
    assert not cache.exists()


def test_from_rows_many_rows_in_an_unnamed_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder looks empty, and the file is freed with the last view of it."""
    monkeypatch.setattr(dataset, "MAX_BYTES_IN_MEMORY", 2000)
    view = ExampleDataset.from_rows(examples(500))[7:9]
    assert list(cache.iterdir()) == []
    if Path("/proc/self/maps").exists():
        assert len(memory_maps(cache)) == 1
    assert list(view) == examples(9)[7:]
    del view
    gc.collect()
    if Path("/proc/self/maps").exists():
        assert memory_maps(cache) == []


def test_from_rows_error_leaves_no_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error after many rows is passed on, and the file is closed."""
    monkeypatch.setattr(dataset, "MAX_BYTES_IN_MEMORY", 2000)

    def rows() -> Iterator[Example]:
        yield from examples(500)
        raise DataError("row 501")

    with pytest.raises(DataError, match=r"^row 501$"):
        ExampleDataset.from_rows(rows())
    gc.collect()
    assert list(cache.iterdir()) == []


def test_from_rows_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the cause, the free space and a hint; with space elsewhere the same rows are read."""
    monkeypatch.setattr(dataset, "MAX_BYTES_IN_MEMORY", 2000)
    small = tmp_path / "small"
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"text": f"{number} " + "x" * 100}) + "\n" for number in range(5000)))
    with file_system(small, "-t", "tmpfs", "-o", "size=200k", "tmpfs"):
        with monkeypatch.context() as patch:
            patch.setenv("NEFT_CACHE", str(small))
            with pytest.raises(InputError) as raised:
                read_examples(Data(source=str(source)))
        gc.collect()
        assert list(small.iterdir()) == []
    assert str(raised.value) == (
        f"{small}: rows beyond 16 MiB can't be written there\n"
        "  got      No space left on device (0 KiB free)\n"
        "  hint     NEFT_CACHE=FOLDER before the command; choose a folder on a disk with free space"
    )
    assert len(read_examples(Data(source=str(source), held_out_rows=0)).train) == 5000


def test_from_rows_cache_is_not_a_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same error, with the cause."""
    monkeypatch.setattr(dataset, "MAX_BYTES_IN_MEMORY", 2000)
    cache.write_text("")
    with pytest.raises(InputError, match=r"there\n  got      it is not a folder\n  hint     NEFT_CACHE"):
        ExampleDataset.from_rows(examples(500))


# Memory


def peak_memory(work: Callable[[], object]) -> int:
    """Return the peak memory of Python objects during `work`, numpy arrays included, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_read_examples_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading and splitting take some bytes per row and the objects of one batch; a list takes many times that."""
    monkeypatch.setattr(dataset, "BATCH_ROWS", 1024)
    source = tmp_path / "rows.jsonl"
    rows = ({"prompt": f"What is {number}?", "completion": f"It is {number}."} for number in range(MANY_ROWS))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(source=str(source), held_out_rows=100)
    read_examples(data)  # imports what it needs
    assert peak_memory(lambda: list(read_examples(data).train)) > 600 * MANY_ROWS
    assert peak_memory(lambda: count_duplicates(read_examples(data).train)) < 200 * MANY_ROWS


@pytest.mark.slow
def test_token_dataset_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storing and counting rows of ten tokens takes a fraction of a list's memory."""
    monkeypatch.setattr(dataset, "BATCH_ROWS", 1024)

    def rows() -> Iterator[TokenRow]:
        ids = range(1000, 1010)
        return (TokenRow([*ids], [*ids], False, True, f"row {number}") for number in range(MANY_ROWS))

    count_tokens(TokenDataset.from_rows(rows()))
    assert peak_memory(lambda: list(rows())) > 400 * MANY_ROWS
    assert peak_memory(lambda: count_tokens(TokenDataset.from_rows(rows()))) < 100 * MANY_ROWS
