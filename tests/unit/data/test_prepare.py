"""From a recipe's `data` section to tokenised rows, with everything counted.

Oracles: small files written by hand, whose counts are known by counting; numpy's quantiles for the lengths; and for
the fingerprint, what may and what must not change it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neftcli.data.chat import ChatFormat, LossOn
from neftcli.data.mixture import ExampleSplits, read_eval_examples, read_examples
from neftcli.data.prepare import PreparedData, _loss_on, count_tokens, prepare
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


def prepared(data: Data, seed: int = 0, template: str = "alpaca") -> PreparedData:
    tokenizer = tiny_tokenizer()
    name = set_chat_template(tokenizer, template)
    return prepare(read_examples(replace(data, split_seed=seed)), data, ChatFormat(tokenizer, name=name))


def message(data: Data) -> str:
    with pytest.raises(DataError) as raised:
        prepared(data)
    return str(raised.value)


def prompts(side: list[Any]) -> list[str]:
    return [example.prompt() for example in side]


# Counts


def test_everything_in_a_small_file_is_counted() -> None:
    """Eight rows: three that can't be learned from, one repeated, one cut; nothing is dropped without a count."""
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
    counts = prepared(data).counts
    assert counts.rows_read == 8
    assert counts.skipped == {
        "an answer is empty": ("rows.jsonl, line 2", "rows.jsonl, line 6"),
        "it has no question": ("rows.jsonl, line 3",),
    }
    assert counts.duplicates == 1
    assert counts.leaked == 0
    assert counts.special_token_text == ("rows.jsonl, line 7",)
    assert (counts.source, counts.format, counts.loss_on) == ("rows.jsonl", "prompt_completion", "answers")
    assert counts.template == "chat template alpaca"
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


def test_plain_text_is_counted_as_such() -> None:
    """Text has no template and loss on all tokens; loss on its answers alone is refused."""
    source = write("rows.jsonl", {"text": "abc"}, {"text": " "}, {"text": "abcdefghijkl"})
    with pytest.raises(DataError, match="plain text, which has no answers"):
        read_examples(Data(source=source, held_out_rows=0, loss_on="all"))
    for wanted in ("auto", "tokens"):
        data = Data(source=source, held_out_rows=0, max_length=10, loss_on=wanted)
        counts = prepared(data).counts
        assert (counts.format, counts.loss_on, counts.template) == ("text", "all_tokens", "")
        assert counts.skipped == {"its text is empty": ("rows.jsonl, line 2",)}
        assert (counts.train.tokens, counts.train.loss_tokens) == (4 + 10, 3 + 9)
        assert counts.train.truncated == counts.train.without_stop_token == ("rows.jsonl, line 3",)


@pytest.mark.parametrize(("wanted", "loss_on"), [("auto", "answers"), ("all", "answers"), ("tokens", "all_tokens")])
def test_loss_is_on_answers_unless_all_tokens_are_wanted(wanted: Any, loss_on: str) -> None:
    """What the counts say is what the labels do."""
    done = prepared(Data(source=pairs(10), loss_on=wanted))
    assert done.counts.loss_on == loss_on
    whole = [label != IGNORE_INDEX for row in [*done.train, *done.held_out] for label in row.labels[1:]]
    assert all(whole) == (loss_on == "all_tokens")


@given(st.lists(st.integers(2, 40), min_size=1, max_size=40))
def test_lengths_are_quantiles(lengths: list[int]) -> None:
    """Shortest, longest, and the length that nine rows of ten do not exceed, by numpy's inverse of the distribution."""
    rows = [TokenRow([1] * length, [IGNORE_INDEX] + [1] * (length - 1), False, True, "") for length in lengths]
    found = count_tokens(rows)
    assert (found.rows, found.tokens, found.loss_tokens) == (len(rows), sum(lengths), sum(lengths) - len(rows))
    assert (found.shortest, found.longest) == (min(lengths), max(lengths))
    assert found.p90 == numpy.quantile(lengths, 0.9, method="inverted_cdf")
    below, above = sum(length < found.median for length in lengths), sum(length > found.median for length in lengths)
    assert max(below, above) <= len(lengths) / 2
    assert found.median in lengths


def test_no_rows_are_zeros() -> None:
    """A side without rows counts nothing."""
    assert count_tokens([]) == SplitCounts()


# Zero loss


def test_no_token_with_loss_is_an_error() -> None:
    """A run on rows whose questions fill max_length would report loss 0.0 and succeed; it does not start."""
    data = Data(source=pairs(10), max_length=PROMPT_TOKENS)
    assert message(data) == (
        "rows.jsonl: no token would carry loss, so there is nothing to learn\n"
        f"  got      8 rows whose prompt alone fills data.max_length {PROMPT_TOKENS}\n"
        f"  hint     --max-length {4 * PROMPT_TOKENS}"
    )


def test_rows_without_a_token_with_loss_are_left_out_and_counted_on_both_sides() -> None:
    """A question that fills max_length leaves nothing to learn and nothing to evaluate; both are told."""
    train = write("train.jsonl", pair("q", "a"), pair("q" * 60, "a"))
    held_out = write("held.jsonl", pair("p", "a"), pair("p" * 60, "a"))
    data = Data(source=train, held_out_source=held_out, max_length=PROMPT_TOKENS + 30)
    done = prepared(data)
    assert done.counts.skipped == {
        f"no token with loss within data.max_length {PROMPT_TOKENS + 30}": (
            "train.jsonl, line 2",
            "held.jsonl, line 2",
        )
    }
    assert (done.counts.train.rows, done.counts.held_out.rows) == (1, 1)
    assert prompts(done.held_out_examples) == ["p"]


def test_a_source_without_a_usable_row() -> None:
    """Every reason is told with its count."""
    source = write("rows.jsonl", pair("q", ""), pair("", "a"), pair("r", " "))
    assert message(Data(source=source)) == (
        "rows.jsonl: no row to train on\n"
        "  got      an answer is empty (2 rows, first rows.jsonl, line 1); "
        "it has no question (1 row, first rows.jsonl, line 2)\n"
        "  hint     use rows with a question and an answer; map other column names with --set data.columns='{...}'"
    )


def test_a_held_out_source_without_a_usable_row() -> None:
    """Evaluation that was asked for does not vanish."""
    held_out = write("held.jsonl", pair("q", ""))
    assert message(Data(source=pairs(3), held_out_source=held_out)) == (
        "held.jsonl: no row to train on\n"
        "  got      an answer is empty (1 row, first held.jsonl, line 1)\n"
        "  hint     use rows with a question and an answer; map other column names with --set data.columns='{...}'"
    )


# Layouts


def test_a_row_of_another_layout_is_refused() -> None:
    """Mixed files are not filled up with nothing."""
    source = write("rows.jsonl", pair("q"), {"instruction": "q", "output": "a"})
    assert message(Data(source=source)) == (
        "rows.jsonl, line 2: the column prompt is missing\n"
        "  got      instruction, output\n"
        "  hint     all rows need the columns of the row format prompt_completion: prompt, completion"
    )


def test_the_first_row_tells_the_layout_unless_the_recipe_does() -> None:
    """data.format goes before what the columns look like."""
    row = {"prompt": "q", "completion": "a", "instruction": "i", "output": "o"}
    source = write("rows.jsonl", row)
    assert read_examples(Data(source=source, held_out_rows=0)).row_format == "prompt_completion"
    chosen = read_examples(Data(source=source, held_out_rows=0, format="alpaca"))
    assert (chosen.row_format, prompts(chosen.train)) == ("alpaca", ["i"])


def test_columns_are_mapped_in_every_row_of_both_sources() -> None:
    """data.columns and data.system_prompt hold for the held-out source as well."""
    source = write("rows.jsonl", {"q": "one", "a": "1"}, {"q": "two", "a": "2"})
    held_out = write("held.jsonl", {"q": "three", "a": "3"})
    data = Data(
        source=source, held_out_source=held_out, columns={"prompt": "q", "completion": "a"}, system_prompt="Be brief."
    )
    found = read_examples(data)
    assert (prompts(found.train), prompts(found.held_out)) == (["one", "two"], ["three"])
    assert {example.turns[0].content for example in [*found.train, *found.held_out]} == {"Be brief."}


# Sides


def test_held_out_examples_belong_to_the_held_out_rows() -> None:
    """The answers to generate are those whose loss is measured, in the same order."""
    done = prepared(Data(source=pairs(50), held_out_rows=10))
    assert [row.location for row in done.held_out] == [example.location for example in done.held_out_examples]
    assert (len(done.train), len(done.held_out)) == (40, 10)
    assert (done.counts.train.rows, done.counts.held_out.rows) == (40, 10)


def test_no_rows_are_held_out_where_none_are_wanted() -> None:
    """held_out_rows 0 trains on everything; a source to evaluate on beside it is refused, and not left unread."""
    source = pairs(50)
    found = read_examples(Data(source=source, held_out_rows=0))
    assert (len(found.train), len(found.held_out), found.leaked) == (50, 0, 0)
    with pytest.raises(DataError, match=r"data\.held_out_rows is 0, but"):
        read_examples(Data(source=source, held_out_rows=0, held_out_source=pairs(5, "held.jsonl")))


def test_training_rows_whose_prompt_is_in_the_held_out_source_leave_and_are_counted() -> None:
    """Prompts that are evaluated on are not trained on, in any spelling."""
    source = write("rows.jsonl", pair("one"), pair("Two?"), pair("three"), pair("two", "b"), pair("four"))
    held_out = write("held.jsonl", pair("two"), pair("FOUR."), pair("five"))
    counts = prepared(Data(source=source, held_out_source=held_out)).counts
    assert (counts.rows_read, counts.leaked, counts.train.rows, counts.held_out.rows) == (5, 3, 2, 3)
    assert [(one.name, one.rows_read, one.rows_used) for one in counts.sources] == [(source, 5, 5), (held_out, 3, 3)]


def test_a_held_out_source_that_holds_every_prompt() -> None:
    """Nothing is left to train on."""
    assert message(Data(source=pairs(4), held_out_source=pairs(4, "held.jsonl"))) == (
        "rows.jsonl: the prompts of all training rows are in the held-out split\n"
        "  got      4 rows\n"
        "  hint     use other rows for --held-out, or leave it out to hold out some of the training rows"
    )


def test_of_a_long_held_out_source_as_many_rows_as_wanted_are_chosen() -> None:
    """held_out_rows bounds a source of its own too, and the seed chooses."""
    held_out = write("held.jsonl", *(pair(f"Other {number}") for number in range(40)))
    data = Data(source=pairs(10), held_out_source=held_out, held_out_rows=7)
    sides = [prompts(read_examples(replace(data, split_seed=seed)).held_out) for seed in (0, 0, 1)]
    assert [len(side) for side in sides] == [7, 7, 7]
    assert sides[0] == sides[1] != sides[2]


def test_unusable_rows_of_the_held_out_source_are_counted() -> None:
    """They are told with their places, beside those of the training source."""
    source = write("rows.jsonl", pair("one"), pair("two", ""))
    held_out = write("held.jsonl", pair("three", ""), pair("four"))
    counts = prepared(Data(source=source, held_out_source=held_out)).counts
    assert counts.skipped == {"an answer is empty": ("rows.jsonl, line 2", "held.jsonl, line 1")}
    assert [(one.rows_read, one.rows_used, one.held_out) for one in counts.sources] == [(2, 1, False), (2, 1, True)]


def test_columns_that_are_not_read_are_counted_on_both_sides() -> None:
    """In any row, and where rows are only evaluated on; of the built-in set nothing is told."""
    source = write("rows.jsonl", pair("one"), pair("two") | {"score": 1}, pair("three") | {"score": 2, "weight": 0})
    held_out = write("held.jsonl", pair("four") | {"score": 3, "id": 7})
    counts = prepared(Data(source=source, held_out_source=held_out)).counts
    expected = {"score": Occurrences(3, "rows.jsonl, line 2"), "id": Occurrences(1, "held.jsonl, line 1")}
    assert counts.unread_columns == expected
    assert counts.skipped == {"it is marked not to be trained on (weight: 0)": ("rows.jsonl, line 3",)}
    assert read_eval_examples(Data(source=held_out)).notes.unread.keys() == expected.keys()
    assert prepared(Data()).counts.unread_columns == {}


@pytest.mark.parametrize(("rows", "wanted", "train", "held_out"), [(50, 20, 16, 4), (50, 80, 40, 10), (50, 4, 4, 0)])
def test_max_rows_bounds_what_is_used(rows: int, wanted: int, train: int, held_out: int) -> None:
    """At most so many rows on both sides together where rows are kept back, chosen by the seed."""
    data = Data(source=pairs(rows), max_rows=wanted)
    found = read_examples(data)
    assert (len(found.train), len(found.held_out)) == (train, held_out)
    assert found.rows_read == rows
    again = read_examples(data)
    assert (list(again.train), list(again.held_out)) == (list(found.train), list(found.held_out))
    if wanted < rows:
        assert list(read_examples(replace(data, split_seed=1)).train) != list(found.train)


def test_max_rows_bounds_the_training_side_beside_a_held_out_source() -> None:
    """The held-out source keeps its rows."""
    held_out = write("held.jsonl", *(pair(f"Other {number}") for number in range(30)))
    found = read_examples(Data(source=pairs(50), held_out_source=held_out, max_rows=20))
    assert (len(found.train), len(found.held_out)) == (20, 30)


def test_the_builtin_set_has_its_own_held_out_rows() -> None:
    """Train and held-out are the shipped files, and share no prompt."""
    found = read_examples(Data())
    assert (found.rows_read, found.leaked, dict(found.skipped)) == (432, 0, {})
    assert (len(found.train), len(found.held_out)) == (432, 108)
    assert not {normalize_prompt(text) for text in prompts(found.train)} & {
        normalize_prompt(t) for t in prompts(found.held_out)
    }
    assert {example.location.split(",")[0] for example in found.held_out} == {"built-in held_out"}
    assert prepared(Data(max_rows=5)).counts.source == "built-in set"


# The fingerprint


def fingerprint(data: Data, seed: int = 0) -> str:
    return prepared(data, seed).counts.fingerprint


def test_the_fingerprint_is_that_of_the_examples() -> None:
    """The same rows have it again, from another file of another kind and with other tokens."""
    data = Data(source=pairs(20))
    rows = [row.values for row in read_rows("rows.jsonl")]
    Path("other.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    first = fingerprint(data)
    assert len(first) == 64
    assert fingerprint(data) == fingerprint(replace(data, source="other.json")) == first
    assert fingerprint(replace(data, max_length=PROMPT_TOKENS + 30)) == first
    assert prepared(data, template="chatml").counts.fingerprint == first


def test_the_fingerprint_tells_every_change_of_the_examples() -> None:
    """A letter, a row, the order, a side, an input, a role: no two of these are the same data."""
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


# Pieces put together


def test_prepared_rows_are_the_tokens_of_the_examples() -> None:
    """Nothing happens to a row between the tokenizer and training."""
    data = Data(source=pairs(30), held_out_rows=5, max_length=PROMPT_TOKENS + 20)
    tokenizer = tiny_tokenizer()
    set_chat_template(tokenizer, "alpaca")
    examples = read_examples(replace(data, split_seed=3))
    chat = ChatFormat(tokenizer, name="a name")
    done = prepare(examples, data, chat)
    assert done.counts.template == "a name"
    assert list(done.train) == list(tokenize(chat, examples.train, data.max_length))
    assert list(done.held_out) == list(tokenize(chat, examples.held_out, data.max_length))
    assert not any(chat.special_tokens.find_special_token(example) for example in examples.train)


def test_preparing_leaves_the_examples_as_they_are() -> None:
    """The same examples can be prepared again, with another length, and are counted afresh."""
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
def test_loss_label_names_what_carries_loss(loss_on: LossOn, label: str) -> None:
    assert _loss_on(Data(loss_on=loss_on), "messages") == label
    assert _loss_on(Data(loss_on=loss_on), "text") == "all_tokens"
