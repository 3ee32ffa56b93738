"""From a recipe's `data` section to tokenised rows, with everything counted.

Oracles: small files written by hand, whose counts are known by counting; numpy's quantiles for the lengths; and for
the fingerprint, the changes that it must or must not depend on.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neftcli.data.chat import ChatFormat
from neftcli.data.mixture import ExampleSplits, read_eval_examples, read_examples
from neftcli.data.prepare import PreparedData, count_tokens, prepare
from neftcli.data.rendering import LossOn
from neftcli.data.sources import read_rows
from neftcli.data.splits import normalize_prompt
from neftcli.data.tokens import IGNORE_INDEX, TokenRow, tokenize
from neftcli.errors import DataError
from neftcli.events import Occurrences, SplitCounts
from neftcli.models.chat_templates import set_chat_template
from neftcli.recipe.schema import Data
from tests.tiny import tiny_tokenizer

PROMPT_TOKENS = len(
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n\n\n### Response:"
)  # one token a byte


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def pair(prompt: str, completion: str = "a") -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def pairs(rows: int, name: str = "rows.jsonl") -> str:
    return write(name, *(pair(f"Question {number}?", f"Answer {number}.") for number in range(rows)))


def prepare_file(data: Data, seed: int = 0, template: str = "alpaca") -> PreparedData:
    tokenizer = tiny_tokenizer()
    name = set_chat_template(tokenizer, template)
    return prepare(read_examples(replace(data, split_seed=seed)), data, ChatFormat(tokenizer, template=name))


def error_message(data: Data) -> str:
    with pytest.raises(DataError) as raised:
        prepare_file(data)
    return str(raised.value)


def prompts(side: list[Any]) -> list[str]:
    return [example.prompt() for example in side]


# Counts


def test_prepare_counts_everything() -> None:
    """Of eight rows three are unusable, one is a duplicate and one is truncated; every dropped row is counted."""
    source = write(
        "rows.jsonl",
        pair("one", "1"),
        pair("two", ""),
        pair("", "3"),
        pair("four", "4" * 50),
        pair("One!", "1"),
        pair("six", ""),
        pair("seven", "see </s>"),
        pair("eight", "8"),
    )
    data = Data(source=source, held_out_rows=0, max_length=PROMPT_TOKENS + 40)
    counts = prepare_file(data).counts
    assert counts.rows_read == 8
    assert counts.skipped == {
        "an answer is empty": ("rows.jsonl, line 2", "rows.jsonl, line 6"),
        "it has no question": ("rows.jsonl, line 3",),
    }
    assert counts.duplicates == 1
    assert counts.leaked == 0
    assert counts.special_token_text == ("rows.jsonl, line 7",)
    assert (counts.source, counts.format, counts.loss_on) == ("rows.jsonl", "prompt_completion", "answers")
    assert counts.template == "alpaca"
    answered = {"one": 2, "One!": 2, "seven": 4, "eight": 2, "four": 36}  # tokens of the answer with its one stop token
    lengths = sorted(PROMPT_TOKENS + len(question) + tokens for question, tokens in answered.items())
    assert counts.train == SplitCounts(
        rows=5,
        tokens=sum(lengths),
        loss_tokens=sum(answered.values()),
        shortest=lengths[0],
        median=lengths[2],
        p90=lengths[4],
        longest=lengths[4],
        truncated=("rows.jsonl, line 4",),
        without_stop_token=("rows.jsonl, line 4",),
    )
    assert counts.held_out == SplitCounts()


def test_prepare_plain_text() -> None:
    """Text has no template and loss on all tokens; loss on its answers alone is rejected."""
    source = write("rows.jsonl", {"text": "abc"}, {"text": " "}, {"text": "abcdefghijkl"})
    with pytest.raises(DataError, match="plain text, which has no answers"):
        read_examples(Data(source=source, held_out_rows=0, loss_on="all"))
    for option in ("auto", "tokens"):
        data = Data(source=source, held_out_rows=0, max_length=10, loss_on=option)
        counts = prepare_file(data).counts
        assert (counts.format, counts.loss_on, counts.template) == ("text", "all_tokens", "")
        assert counts.skipped == {"its text is empty": ("rows.jsonl, line 2",)}
        assert (counts.train.tokens, counts.train.loss_tokens) == (4 + 10, 3 + 9)
        assert counts.train.truncated == counts.train.without_stop_token == ("rows.jsonl, line 3",)


@pytest.mark.parametrize(("option", "loss_on"), [("auto", "answers"), ("all", "answers"), ("tokens", "all_tokens")])
def test_prepare_loss_on(option: Any, loss_on: str) -> None:
    """The counts agree with the labels."""
    done = prepare_file(Data(source=pairs(10), loss_on=option))
    assert done.counts.loss_on == loss_on
    whole = [label != IGNORE_INDEX for row in [*done.train, *done.held_out] for label in row.labels[1:]]
    assert all(whole) == (loss_on == "all_tokens")


@given(st.lists(st.integers(2, 40), min_size=1, max_size=40))
def test_count_tokens_quantiles(lengths: list[int]) -> None:
    """Shortest, longest, median and 90th percentile of the lengths, by numpy's inverted CDF."""
    rows = [TokenRow([1] * length, [IGNORE_INDEX] + [1] * (length - 1), False, True, "") for length in lengths]
    found = count_tokens(rows)
    assert (found.rows, found.tokens, found.loss_tokens) == (len(rows), sum(lengths), sum(lengths) - len(rows))
    assert (found.shortest, found.longest) == (min(lengths), max(lengths))
    assert found.p90 == numpy.quantile(lengths, 0.9, method="inverted_cdf")
    below, above = sum(length < found.median for length in lengths), sum(length > found.median for length in lengths)
    assert max(below, above) <= len(lengths) / 2
    assert found.median in lengths


def test_count_tokens_no_rows() -> None:
    """A split without rows has only zeros."""
    assert count_tokens([]) == SplitCounts()


# Zero loss


def test_prepare_no_token_with_loss() -> None:
    """A run on rows whose prompts fill max_length would report loss 0.0, so it is rejected."""
    data = Data(source=pairs(10), max_length=PROMPT_TOKENS)
    assert error_message(data) == (
        "rows.jsonl: no token would carry loss, so there is nothing to learn\n"
        f"  got      8 rows whose prompt alone fills data.max_length {PROMPT_TOKENS}\n"
        f"  hint     --max-length {4 * PROMPT_TOKENS}"
    )


def test_prepare_skips_rows_without_loss() -> None:
    """Rows whose prompt fills max_length are skipped and counted in both splits."""
    train = write("train.jsonl", pair("q", "a"), pair("q" * 60, "a"))
    held_out = write("held.jsonl", pair("p", "a"), pair("p" * 60, "a"))
    data = Data(source=train, held_out_source=held_out, max_length=PROMPT_TOKENS + 30)
    done = prepare_file(data)
    assert done.counts.skipped == {
        f"no token with loss within data.max_length {PROMPT_TOKENS + 30}": (
            "train.jsonl, line 2",
            "held.jsonl, line 2",
        )
    }
    assert (done.counts.train.rows, done.counts.held_out.rows) == (1, 1)
    assert prompts(done.held_out_examples) == ["p"]


def test_read_examples_no_usable_row() -> None:
    """The error lists every reason with its count."""
    source = write("rows.jsonl", pair("q", ""), pair("", "a"), pair("r", " "))
    assert error_message(Data(source=source)) == (
        "rows.jsonl: no row to train on\n"
        "  got      an answer is empty (2 rows, first rows.jsonl, line 1); "
        "it has no question (1 row, first rows.jsonl, line 2)\n"
        "  hint     use rows with a question and an answer; map other column names with --set data.columns='{...}'"
    )


def test_read_examples_no_usable_held_out_row() -> None:
    """A held-out source without usable rows is an error."""
    held_out = write("held.jsonl", pair("q", ""))
    assert error_message(Data(source=pairs(3), held_out_source=held_out)) == (
        "held.jsonl: no row to train on\n"
        "  got      an answer is empty (1 row, first held.jsonl, line 1)\n"
        "  hint     use rows with a question and an answer; map other column names with --set data.columns='{...}'"
    )


# Formats


def test_read_examples_rejects_mixed_formats() -> None:
    """All rows must have the columns of the first row's format."""
    source = write("rows.jsonl", pair("q"), {"instruction": "q", "output": "a"})
    assert error_message(Data(source=source)) == (
        "rows.jsonl, line 2: the column prompt is missing\n"
        "  got      instruction, output\n"
        "  hint     all rows need the columns of the row format prompt_completion: prompt, completion"
    )


def test_read_examples_format_of_the_first_row() -> None:
    """data.format takes precedence over detection."""
    row = {"prompt": "q", "completion": "a", "instruction": "i", "output": "o"}
    source = write("rows.jsonl", row)
    assert read_examples(Data(source=source, held_out_rows=0)).row_format == "prompt_completion"
    chosen = read_examples(Data(source=source, held_out_rows=0, format="alpaca"))
    assert (chosen.row_format, prompts(chosen.train)) == ("alpaca", ["i"])


def test_read_examples_maps_columns_of_both_sources() -> None:
    """data.columns and data.system_prompt apply to the held-out source, too."""
    source = write("rows.jsonl", {"q": "one", "a": "1"}, {"q": "two", "a": "2"})
    held_out = write("held.jsonl", {"q": "three", "a": "3"})
    data = Data(
        source=source, held_out_source=held_out, columns={"prompt": "q", "completion": "a"}, system_prompt="Be brief."
    )
    found = read_examples(data)
    assert (prompts(found.train), prompts(found.held_out)) == (["one", "two"], ["three"])
    assert {example.turns[0].content for example in [*found.train, *found.held_out]} == {"Be brief."}


# Splits


def test_prepare_held_out_examples_match_rows() -> None:
    """The held-out examples are those of the held-out rows, in the same order."""
    done = prepare_file(Data(source=pairs(50), held_out_rows=10))
    assert [row.location for row in done.held_out] == [example.location for example in done.held_out_examples]
    assert (len(done.train), len(done.held_out)) == (40, 10)
    assert (done.counts.train.rows, done.counts.held_out.rows) == (40, 10)


def test_read_examples_no_held_out_rows() -> None:
    """held_out_rows 0 trains on all rows; with a held-out source it is rejected."""
    source = pairs(50)
    found = read_examples(Data(source=source, held_out_rows=0))
    assert (len(found.train), len(found.held_out), found.leaked) == (50, 0, 0)
    with pytest.raises(DataError, match=r"data\.held_out_rows is 0, but"):
        read_examples(Data(source=source, held_out_rows=0, held_out_source=pairs(5, "held.jsonl")))


def test_prepare_counts_leaked_rows() -> None:
    """Training rows whose prompt is held out, in any spelling, are dropped and counted."""
    source = write("rows.jsonl", pair("one"), pair("Two?"), pair("three"), pair("two", "b"), pair("four"))
    held_out = write("held.jsonl", pair("two"), pair("FOUR."), pair("five"))
    counts = prepare_file(Data(source=source, held_out_source=held_out)).counts
    assert (counts.rows_read, counts.leaked, counts.train.rows, counts.held_out.rows) == (5, 3, 2, 3)
    assert [(one.name, one.rows_read, one.rows_used) for one in counts.sources] == [(source, 5, 5), (held_out, 3, 3)]


def test_read_examples_held_out_source_with_every_prompt() -> None:
    """Nothing is left to train on."""
    assert error_message(Data(source=pairs(4), held_out_source=pairs(4, "held.jsonl"))) == (
        "rows.jsonl: the prompts of all training rows are in the held-out split\n"
        "  got      4 rows\n"
        "  hint     use other rows for --held-out, or leave it out to hold out some of the training rows"
    )


def test_read_examples_samples_a_long_held_out_source() -> None:
    """held_out_rows limits a held-out source, too, and the seed chooses the rows."""
    held_out = write("held.jsonl", *(pair(f"Other {number}") for number in range(40)))
    data = Data(source=pairs(10), held_out_source=held_out, held_out_rows=7)
    sides = [prompts(read_examples(replace(data, split_seed=seed)).held_out) for seed in (0, 0, 1)]
    assert [len(side) for side in sides] == [7, 7, 7]
    assert sides[0] == sides[1] != sides[2]


def test_prepare_counts_unusable_held_out_rows() -> None:
    """They are counted with their locations, like those of the training source."""
    source = write("rows.jsonl", pair("one"), pair("two", ""))
    held_out = write("held.jsonl", pair("three", ""), pair("four"))
    counts = prepare_file(Data(source=source, held_out_source=held_out)).counts
    assert counts.skipped == {"an answer is empty": ("rows.jsonl, line 2", "held.jsonl, line 1")}
    assert [(one.rows_read, one.rows_used, one.held_out) for one in counts.sources] == [(2, 1, False), (2, 1, True)]


def test_prepare_counts_unread_columns() -> None:
    """In any row of both sources and in evaluation; the built-in set has none."""
    source = write("rows.jsonl", pair("one"), pair("two") | {"score": 1}, pair("three") | {"score": 2, "weight": 0})
    held_out = write("held.jsonl", pair("four") | {"score": 3, "id": 7})
    counts = prepare_file(Data(source=source, held_out_source=held_out)).counts
    expected = {"score": Occurrences(3, "rows.jsonl, line 2"), "id": Occurrences(1, "held.jsonl, line 1")}
    assert counts.unread_columns == expected
    assert counts.skipped == {"it is marked not to be trained on (weight: 0)": ("rows.jsonl, line 3",)}
    assert read_eval_examples(Data(source=held_out)).notes.unread_columns.keys() == expected.keys()
    assert prepare_file(Data()).counts.unread_columns == {}


@pytest.mark.parametrize(("rows", "max_rows", "train", "held_out"), [(50, 20, 16, 4), (50, 80, 40, 10), (50, 4, 4, 0)])
def test_read_examples_max_rows(rows: int, max_rows: int, train: int, held_out: int) -> None:
    """max_rows limits both splits together; the seed chooses the rows."""
    data = Data(source=pairs(rows), max_rows=max_rows)
    found = read_examples(data)
    assert (len(found.train), len(found.held_out)) == (train, held_out)
    assert found.rows_read == rows
    again = read_examples(data)
    assert (list(again.train), list(again.held_out)) == (list(found.train), list(found.held_out))
    if max_rows < rows:
        assert list(read_examples(replace(data, split_seed=1)).train) != list(found.train)


def test_read_examples_max_rows_with_a_held_out_source() -> None:
    """The held-out source keeps its rows."""
    held_out = write("held.jsonl", *(pair(f"Other {number}") for number in range(30)))
    found = read_examples(Data(source=pairs(50), held_out_source=held_out, max_rows=20))
    assert (len(found.train), len(found.held_out)) == (20, 30)


def test_read_examples_builtin() -> None:
    """The splits are the shipped files and share no prompt."""
    found = read_examples(Data())
    assert (found.rows_read, found.leaked, dict(found.skipped)) == (432, 0, {})
    assert (len(found.train), len(found.held_out)) == (432, 108)
    assert not {normalize_prompt(text) for text in prompts(found.train)} & {
        normalize_prompt(t) for t in prompts(found.held_out)
    }
    assert {example.location.split(",")[0] for example in found.held_out} == {"built-in held_out"}
    assert prepare_file(Data(max_rows=5)).counts.source == "builtin"


# The fingerprint


def fingerprint(data: Data, seed: int = 0) -> str:
    return prepare_file(data, seed).counts.fingerprint


def test_data_fingerprint_same_examples() -> None:
    """The same rows have the same fingerprint from a different kind of file and with different tokens."""
    data = Data(source=pairs(20))
    rows = [row.values for row in read_rows("rows.jsonl")]
    Path("other.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    first = fingerprint(data)
    assert len(first) == 64
    assert fingerprint(data) == fingerprint(replace(data, source="other.json")) == first
    assert fingerprint(replace(data, max_length=PROMPT_TOKENS + 30)) == first
    assert prepare_file(data, template="chatml").counts.fingerprint == first


def test_data_fingerprint_changed_examples() -> None:
    """A changed letter, row, order, split, input or role changes the fingerprint."""
    rows = [pair(f"Question {number}?", f"Answer {number}.") for number in range(10)]
    changed = {
        "as it was": rows,
        "a letter of an answer": [*rows[:-1], pair("Question 9?", "answer 9.")],
        "a row less": rows[:-1],
        "another order": rows[::-1],
        "a row twice": [*rows, rows[-1]],
    }
    found = [
        fingerprint(Data(source=write(f"{number}.jsonl", *content), held_out_rows=0))
        for number, content in enumerate(changed.values())
    ]
    first = Data(source="0.jsonl", held_out_rows=0)
    found += [
        fingerprint(replace(first, held_out_rows=2)),
        fingerprint(replace(first, held_out_rows=2), seed=1),
        fingerprint(replace(first, held_out_rows=2), seed=2),
        fingerprint(replace(first, system_prompt="s")),
        fingerprint(replace(first, max_rows=5)),
    ]
    with_input = {"instruction": "q", "input": "i", "output": "a"}
    apart = [with_input, with_input | {"instruction": "qi", "input": ""}, with_input | {"input": "", "output": "ia"}]
    found += [fingerprint(Data(source=write("a.jsonl", row), held_out_rows=0)) for row in apart]
    found += [fingerprint(Data(source=write("t.jsonl", {"text": text}), held_out_rows=0)) for text in ("qia", "qi")]
    assert len(set(found)) == len(found)


# Whole preparation


def test_prepare_rows_are_those_of_tokenize() -> None:
    """The rows are those of `tokenize`, unchanged."""
    data = Data(source=pairs(30), held_out_rows=5, max_length=PROMPT_TOKENS + 20)
    tokenizer = tiny_tokenizer()
    set_chat_template(tokenizer, "alpaca")
    examples = read_examples(replace(data, split_seed=3))
    chat = ChatFormat(tokenizer, template="mine.jinja")
    done = prepare(examples, data, chat)
    assert done.counts.template == "mine.jinja"
    assert list(done.train) == list(tokenize(chat, examples.train, data.max_length))
    assert list(done.held_out) == list(tokenize(chat, examples.held_out, data.max_length))
    assert not any(chat.special_tokens.find_special_token(example) for example in examples.train)


def test_prepare_leaves_examples_unchanged() -> None:
    """The same examples can be prepared again with a different length, and are counted anew."""
    data = Data(source=write("rows.jsonl", pair("q" * 50), pair("q"), pair("r", "")), held_out_rows=0)
    tokenizer = tiny_tokenizer()
    set_chat_template(tokenizer, "alpaca")
    examples: ExampleSplits = read_examples(data)
    short = replace(data, max_length=PROMPT_TOKENS + 20)
    first = prepare(examples, short, ChatFormat(tokenizer)).counts
    assert len(first.skipped) == 2
    assert prepare(examples, short, ChatFormat(tokenizer)).counts == first
    assert prepare(examples, data, ChatFormat(tokenizer)).counts.skipped == {
        "an answer is empty": ("rows.jsonl, line 3",)
    }


@pytest.mark.parametrize(
    ("loss_on", "label"),
    [("auto", "answers"), ("last", "last_answers"), ("completion", "completions"), ("tokens", "all_tokens")],
)
def test_prepare_loss_label(loss_on: LossOn, label: str) -> None:
    assert prepare_file(Data(source=pairs(3), held_out_rows=0, loss_on=loss_on)).counts.loss_on == label
    text = Data(source=write("text.jsonl", {"text": "words"}), held_out_rows=0, loss_on=loss_on)
    if loss_on in ("auto", "tokens"):
        assert prepare_file(text).counts.loss_on == "all_tokens"
    else:
        with pytest.raises(DataError, match="plain text, which has no answers"):
            prepare_file(text)
