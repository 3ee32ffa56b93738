"""Rows in record batches, in memory and in a file.

Oracles: the lists of Python objects that the rows were made from, what the system says of files and mappings, and
tracemalloc for what is held as Python objects.
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
from neftcli.data.example import Example, Turn
from neftcli.data.mixture import read_examples
from neftcli.data.prepare import count_tokens, data_fingerprint
from neftcli.data.splits import count_duplicates, select_distinct
from neftcli.data.tokens import IGNORE_INDEX, TokenRow
from neftcli.errors import DataError, InputError
from neftcli.recipe.schema import Data
from neftcli.training.assets import hash_tokens
from tests.conftest import file_system

MANY = 20_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, which is not there yet; batches of three rows, so that few rows are several."""
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
def test_the_same_rows_come_back(kind: Any, make: Callable[[int], list[Any]], number: int, location: str) -> None:
    """In order, one by one from either end, and in the middle of looking through them."""
    rows = make(number)
    kept = kind.from_rows(iter(rows))
    assert len(kept) == number
    assert bool(kept) == bool(rows)
    assert list(kept) == rows
    assert [kept[place] for place in reversed(range(number))] == rows[::-1]
    assert [kept[place - number] for place in range(number)] == rows
    assert [(one, kept[0]) for one in kept] == [(one, rows[0]) for one in rows]
    with pytest.raises(IndexError):
        kept[number]


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_views_are_what_they_are_of_lists(kind: Any, make: Callable[[int], list[Any]], location: str) -> None:
    """Slices and chosen places, of one another, too."""
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


def test_tokens_are_columns_for_a_trainer(location: str) -> None:
    """All rows of a dataset are not copied."""
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
    ours, theirs = (table["labels"].chunk(2).buffers()[-1].address for table in (kept._table, kept.columns()))
    assert ours == theirs


def test_hashes_are_those_of_the_objects(location: str) -> None:
    """Recipes, checkpoints and sweeps compare them with those of runs from before rows were kept so."""
    rows, pairs = tokens(20), examples(20)
    expected = sha256(b"".join(repr((row.input_ids, row.labels)).encode() for row in rows))
    assert hash_tokens(TokenDataset.from_rows(rows)) == expected.hexdigest()
    expected = sha256()
    for side in (pairs, pairs[4:2:-1]):
        for one in side:
            turns = [[turn.role, turn.content, turn.context] for turn in one.turns]
            expected.update(json.dumps([turns, one.text]).encode())
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
def test_example_rows_keep_every_field(rows: list[Example]) -> None:
    """Whatever an example holds is there again, and in its fingerprint; no two that differ have the same."""
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
def test_fingerprint_has_what_decides_tokens(change: dict[str, Any]) -> None:
    """Marks, reasoning and calls of a turn, and the tools and the completion of an example."""
    turn = Turn("assistant", "a")
    plain = Example((Turn("user", "q"), turn), "", "")
    others = [Example((Turn("user", "q"), replace(turn, **change)), "", "")]
    others += [replace(plain, tools="[{}]"), replace(plain, completion=1)]
    assert len({data_fingerprint(ExampleDataset.from_rows([row])) for row in (plain, *others)}) == 4


def test_a_long_row_ends_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows it has, so that a batch is never much larger than its largest row."""
    monkeypatch.setattr(dataset, "BATCH_ROWS", 1000)
    rows = [Example((), "x" * (dataset.BATCH_SIZE * 2 // 3), str(number)) for number in range(5)]
    kept = ExampleDataset.from_rows(rows)
    assert [batch.num_rows for batch in kept._batches] == [2, 2, 1]
    assert list(kept) == rows


# The file


def mapped(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def test_few_rows_touch_no_file(cache: Path) -> None:
    """Not even the folder is made."""
    assert list(ExampleDataset.from_rows(examples(500))) == examples(500)
    assert not cache.exists()


def test_many_rows_lie_in_a_file_without_a_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder stays empty, and the file is gone with the last view of it."""
    monkeypatch.setattr(dataset, "MAX_BYTES_IN_MEMORY", 2000)
    view = ExampleDataset.from_rows(examples(500))[7:9]
    assert list(cache.iterdir()) == []
    if Path("/proc/self/maps").exists():
        assert len(mapped(cache)) == 1
    assert list(view) == examples(9)[7:]
    del view
    gc.collect()
    if Path("/proc/self/maps").exists():
        assert mapped(cache) == []


def test_a_bad_row_behind_many_good_ones_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own error comes out, and the file is closed."""
    monkeypatch.setattr(dataset, "MAX_BYTES_IN_MEMORY", 2000)

    def rows() -> Iterator[Example]:
        yield from examples(500)
        raise DataError("row 501")

    with pytest.raises(DataError, match=r"^row 501$"):
        ExampleDataset.from_rows(rows())
    gc.collect()
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened, how much is free, and what to type; with room elsewhere the same rows are read."""
    monkeypatch.setattr(dataset, "MAX_BYTES_IN_MEMORY", 2000)
    small = tmp_path / "small"
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"text": f"{number} " + "x" * 100}) + "\n" for number in range(5000)))
    with file_system(small, "-t", "tmpfs", "-o", "size=200k", "tmpfs"):
        with monkeypatch.context() as there:
            there.setenv("NEFT_CACHE", str(small))
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


def test_a_cache_that_is_no_folder_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same words."""
    monkeypatch.setattr(dataset, "MAX_BYTES_IN_MEMORY", 2000)
    cache.write_text("")
    with pytest.raises(InputError, match=r"there\n  got      it is not a folder\n  hint     NEFT_CACHE"):
        ExampleDataset.from_rows(examples(500))


# Memory


def peak(work: Callable[[], object]) -> int:
    """Most bytes of Python objects, numpy's arrays included, that `work` had at once."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_examples_are_not_held_as_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading and splitting take some bytes a row and the objects of one batch; a list takes many times that."""
    monkeypatch.setattr(dataset, "BATCH_ROWS", 1024)
    source = tmp_path / "rows.jsonl"
    rows = ({"prompt": f"What is {number}?", "completion": f"It is {number}."} for number in range(MANY))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(source=str(source), held_out_rows=100)
    read_examples(data)  # imports what it needs
    assert peak(lambda: list(read_examples(data).train)) > 600 * MANY
    assert peak(lambda: count_duplicates(read_examples(data).train)) < 200 * MANY


@pytest.mark.slow
def test_tokens_are_not_held_as_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeping and counting rows of ten tokens, against a list of them."""
    monkeypatch.setattr(dataset, "BATCH_ROWS", 1024)

    def rows() -> Iterator[TokenRow]:
        ids = range(1000, 1010)
        return (TokenRow([*ids], [*ids], False, True, f"row {number}") for number in range(MANY))

    count_tokens(TokenDataset.from_rows(rows()))
    assert peak(lambda: list(rows())) > 400 * MANY
    assert peak(lambda: count_tokens(TokenDataset.from_rows(rows()))) < 100 * MANY
