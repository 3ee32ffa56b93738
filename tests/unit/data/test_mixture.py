"""Several sources as one data set.

Oracles: `datasets.interleave_datasets` on the rows themselves, counts by hand, and the law that no prompt is on both
sides.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.data.mixture import ExampleSplits, interleave, read_examples
from neftcli.data.splits import normalize_prompt
from neftcli.errors import DataError
from neftcli.recipe.schema import Data, Source


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: int, label: str = "") -> str:
    lines = (
        json.dumps({"prompt": f"{label or name} {number}?", "completion": f"{number}."}) + "\n"
        for number in range(rows)
    )
    Path(name).write_text("".join(lines), encoding="utf-8")
    return name


def read(*sources: Source, **more: Any) -> ExampleSplits:
    return read_examples(Data(sources=sources, **more))


def prompts(examples: Any) -> list[str]:
    return [example.prompt() for example in examples]


def error_message(*sources: Source, **more: Any) -> str:
    with pytest.raises(DataError) as raised:
        read(*sources, **more)
    return str(raised.value)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    seed=st.integers(0, 9),
    strategy=st.sampled_from(["first_exhausted", "all_exhausted"]),
    data=st.data(),
)
def test_interleave_agrees_with_datasets(sizes: list[int], seed: int, strategy: str, data: st.DataObject) -> None:
    from datasets import Dataset, interleave_datasets

    weights = data.draw(st.lists(st.floats(0.5, 5), min_size=len(sizes), max_size=len(sizes)))
    bounds = numpy.cumsum([0, *sizes])
    parts = [numpy.arange(begin, end) for begin, end in pairwise(bounds)]
    texts = [Dataset.from_dict({"text": [f"row {place}" for place in part]}) for part in parts]
    chances = [weight / sum(weights) for weight in weights]
    expected = interleave_datasets(texts, chances, seed, stopping_strategy=strategy)["text"]
    assert [f"row {place}" for place in interleave(parts, weights, seed, strategy)] == list(expected)


def test_interleave_without_weights() -> None:
    parts = [numpy.arange(3), numpy.arange(3, 5)]
    assert interleave(parts, [None, None], 0, "first_exhausted").tolist() == [0, 1, 2, 3, 4]


def test_read_examples_sources_without_weights() -> None:
    found = read(Source(source=write("a.jsonl", 10)), Source(source=write("b.jsonl", 5)), held_out_rows=0)
    assert prompts(found.train) == [f"a.jsonl {n}?" for n in range(10)] + [f"b.jsonl {n}?" for n in range(5)]
    assert [(source.name, source.rows_read, source.rows_used) for source in found.sources] == [
        ("a.jsonl", 10, 10),
        ("b.jsonl", 5, 5),
    ]
    assert found.rows_read == 15


def test_read_examples_sources_by_weight() -> None:
    """Rows are mixed by weight until the first source is used up; the seed decides the mixture."""
    sources = Source(source=write("a.jsonl", 2000), weight=3), Source(source=write("b.jsonl", 200))
    found = read(*sources, held_out_rows=0)
    used = {source.name: source.rows_used for source in found.sources}
    assert used["b.jsonl"] == 200
    assert 480 < used["a.jsonl"] < 720
    assert sum(used.values()) == len(found.train)
    assert prompts(read(*sources, held_out_rows=0).train) == prompts(found.train)
    assert prompts(read(*sources, held_out_rows=0, split_seed=1).train) != prompts(found.train)


@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted"])
def test_read_examples_sources_hold_out_no_prompt_of_the_training_side(strategy: Any) -> None:
    """Even if rows repeat, or two sources have the same prompts; each held-out row occurs once."""
    sources = (
        Source(source=write("a.jsonl", 60, "Question"), weight=1),
        Source(source=write("b.jsonl", 40, "question"), weight=1),
        Source(source=write("c.jsonl", 20), weight=4),
    )
    found = read(*sources, held_out_rows=10, stopping_strategy=strategy)
    train, held_out = (list(map(normalize_prompt, prompts(side))) for side in (found.train, found.held_out))
    assert held_out
    assert not set(train) & set(held_out)
    places = [example.location for example in found.held_out]
    assert len(places) == len(set(places))
    repeated = len({example.location for example in found.train}) < len(found.train)
    assert repeated == (strategy == "all_exhausted")


def test_read_examples_sources_have_layouts_columns_and_limits_of_their_own() -> None:
    alpaca = [{"instruction": f"i {number}", "output": "o"} for number in range(30)]
    other = [{"q": f"q {number}", "a": "o", "extra": 1} for number in range(4)]
    for name, rows in (("a.jsonl", alpaca), ("b.jsonl", other)):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read(
        Source(source="a.jsonl", max_rows=6),
        Source(source="b.jsonl", columns={"prompt": "q", "completion": "a"}, format="prompt_completion"),
        held_out_rows=0,
    )
    assert found.row_formats == ("alpaca", "prompt_completion")
    assert (found.rows_read, len(found.train), tuple(found.notes.unread_columns)) == (34, 10, ("extra",))
    assert [source.rows_used for source in found.sources] == [6, 4]


def test_read_examples_sources_beside_a_held_out_source() -> None:
    found = read(
        Source(source=write("a.jsonl", 10), weight=1),
        Source(source=write("b.jsonl", 10), weight=1),
        held_out_source=write("h.jsonl", 3, "a.jsonl"),
    )
    assert found.leaked == 3
    assert [(source.name, source.rows_read, source.held_out) for source in found.sources] == [
        ("a.jsonl", 10, False),
        ("b.jsonl", 10, False),
        ("h.jsonl", 3, True),
    ]


def test_read_examples_rejects_sources() -> None:
    """A missing file, a missing split, sources of two kinds, and weights that would repeat rows too often."""
    a = Source(source=write("a.jsonl", 10), weight=1)
    assert error_message(a, Source(source="lost.jsonl")).splitlines()[1] == "  got      lost.jsonl"
    lines = error_message(a, Source(source="a.jsonl", split="test")).splitlines()
    assert lines[0] == "data.sources, entry 2: split: a.jsonl is a file, which has no splits"
    Path("t.txt").write_text("Text.", encoding="utf-8")
    assert error_message(a, Source(source="t.txt")) == (
        "data.sources: plain text and conversations can't be mixed\n"
        "  got      text in t.txt, and conversations in a.jsonl\n"
        "  hint     use sources of one kind"
    )
    rare = Source(source=write("b.jsonl", 10), weight=1e-6)
    assert "repeat too often" in error_message(a, rare, stopping_strategy="all_exhausted")
    assert "data.held_out_split needs data.held_out_source" in error_message(a, held_out_split="test")
