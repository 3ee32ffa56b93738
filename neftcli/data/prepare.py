"""From a recipe's `data` section to tokenised rows for training and for evaluation, with everything counted.

Reading needs no tokenizer and no torch, so bad data is refused before either is loaded.
"""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from neftcli.data.formats import (
    Example,
    Format,
    UnusableRow,
    detect,
    require_standard,
    to_example,
)
from neftcli.data.notes import Notes
from neftcli.data.rows import ExampleRows, TokenRows
from neftcli.data.sources import BUILTIN, is_hub, read_rows
from neftcli.data.splits import choose, duplicates, hold_out, without_prompts_of
from neftcli.data.tokens import TokenRow, tokenize
from neftcli.errors import DataError, Problem
from neftcli.events import DataReady, SplitCounts

if TYPE_CHECKING:
    from neftcli.data.chat import ChatFormat, LossOn
    from neftcli.recipe.schema import Data


@dataclass(frozen=True)
class Examples:
    """What the rows say, before any token.

    Attributes:
        train: Examples to learn from.
        held_out: Examples to evaluate on.
        layout: Row format of the training source.
        rows_read: Rows read, from the held-out source, too.
        unusable: Reason to places of the rows that were left out, on both sides.
        leaked: Training rows left out since their prompt is held out.
        notes: Columns and keys that are not read, and parts of conversations that are left out, on both sides.
        unused: Option to the number of rows that it leaves out.
        splits_itself: The held-out rows come from the training source's own.
    """

    train: ExampleRows
    held_out: ExampleRows
    layout: Format
    rows_read: int
    unusable: Mapping[str, list[str]]
    leaked: int
    notes: Notes = field(default_factory=Notes)
    unused: Mapping[str, int] = field(default_factory=dict)
    splits_itself: bool = False


@dataclass(frozen=True)
class Prepared:
    """Tokenised rows, and the examples of the held-out side for generating answers.

    Attributes:
        train: Training rows.
        held_out: Held-out rows.
        held_out_examples: Their examples, in the same order.
        counts: What a person is shown.
    """

    train: TokenRows
    held_out: TokenRows
    held_out_examples: ExampleRows
    counts: DataReady


def _nobody(*_: int) -> None:
    pass


@dataclass
class _Reader:
    """Reads one source and remembers its layout and what was left out.

    `answers`: a row must hold one; `told` is called with the rows so far.
    """

    data: Data
    answers: bool = True
    told: Callable[[int], None] = _nobody
    layout: Format | None = None
    rows: int = 0
    notes: Notes = field(default_factory=Notes)
    unusable: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def read(self, source: str, split: str) -> ExampleRows:
        require_standard(self.data.columns)
        examples = ExampleRows.of(self._examples(source, split))
        if not examples:
            raise DataError(
                Problem(
                    f"{source}: no row can be {'learned from' if self.answers else 'evaluated on'}",
                    "; ".join(
                        f"{reason} ({len(places)} row{'s' if len(places) > 1 else ''}, the first {places[0]})"
                        for reason, places in self.unusable.items()
                    ),
                    "rows with a question and an answer; --set data.columns='{...}' where they have other names",
                )
            )
        return examples

    def _examples(self, source: str, split: str) -> Iterator[Example]:
        for row in read_rows(source, split, self.data.config if source == self.data.source else None):
            self.rows += 1
            self.told(self.rows)
            if self.layout is None:
                given = self.data.format
                self.layout = detect(row, self.data.columns, answers=self.answers) if given == "auto" else given
            try:
                yield to_example(
                    row,
                    self.layout,
                    self.data.system_prompt,
                    answers=self.answers,
                    columns=self.data.columns,
                    notes=None if source == BUILTIN else self.notes,
                )
            except UnusableRow as reason:
                self.unusable[str(reason)].append(row.where)


@dataclass(frozen=True)
class Questions:
    """Rows to evaluate on, whether they hold an answer or not.

    Attributes:
        examples: The examples.
        layout: Their row format.
        rows_read: Rows read.
        unusable: Reason to places of the rows that were left out.
        notes: Columns and keys that are not read, and parts of conversations that are left out.
    """

    examples: ExampleRows
    layout: Format
    rows_read: int
    unusable: Mapping[str, list[str]]
    notes: Notes


def read_questions(data: Data) -> Questions:
    """Reads `data.source` as rows to evaluate on, every one of them.

    Raises:
        DataError: The source can't be read, fits no layout, or holds no question.
    """
    _require_splits(data)
    reader = _Reader(data, answers=False)
    examples = reader.read(data.source, data.split)
    assert reader.layout is not None  # noqa: S101 - at least one row was read
    return Questions(examples, reader.layout, reader.rows, reader.unusable, reader.notes)


def read_examples(data: Data, told: Callable[[int], None] = _nobody) -> Examples:
    """Reads and splits the data of a recipe; `told` is called with the rows read so far.

    Raises:
        DataError: A source can't be read, fits no layout, or leaves nothing to train on.
    """
    _require_splits(data)
    if data.held_out_rows == 0 and data.held_out_source is not None:
        clash = "data.held_out_rows 0 evaluates on nothing, and data.held_out_source names rows to evaluate on"
        raise DataError(Problem(clash, data.held_out_source, "--held-out without --held-out-rows 0, or neither"))
    reader = _Reader(data, told=told)
    examples = reader.read(data.source, data.split)
    if reader.layout == "text" and data.loss_on not in ("auto", "tokens"):
        clash = f"data.loss_on: {data.source} is plain text, which has no answers"
        raise DataError(Problem(clash, data.loss_on, "--set data.loss_on=tokens"))
    held_out_source = data.held_out_source or (BUILTIN if data.source == BUILTIN else None)
    held_out_split = data.held_out_split or ("held_out" if held_out_source == BUILTIN else "train")
    if held_out_source is None and data.held_out_split is not None:
        held_out_source = data.source
    leaked = 0
    unused = {"data.held_out_rows": 0, "data.max_rows": 0}
    if data.held_out_rows == 0:
        train, held_out = examples, examples[:0]
    elif held_out_source is None:
        chosen = _at_most(examples, data.max_rows, data.split_seed)
        train, held_out = map(chosen.select, hold_out(chosen, data.held_out_rows, data.split_seed))
    else:
        evaluated = _Reader(data, notes=reader.notes)
        held_out = evaluated.read(held_out_source, held_out_split)
        if (evaluated.layout == "text") != (reader.layout == "text"):
            raise DataError(
                Problem(
                    f"{held_out_source}: held-out rows must be plain text or conversations as the training rows are",
                    f"{evaluated.layout}, and {reader.layout} in {data.source}",
                    "--held-out with rows of the same kind",
                )
            )
        reader.rows += evaluated.rows
        for reason, places in evaluated.unusable.items():
            reader.unusable[reason].extend(places)
        there = len(held_out)
        held_out = _at_most(held_out, data.held_out_rows, data.split_seed)
        unused["data.held_out_rows"] = there - len(held_out)
        train = examples.select(without_prompts_of(examples, held_out))
        leaked = len(examples) - len(train)
    train = _at_most(train, data.max_rows, data.split_seed)
    own = len(held_out) if held_out_source is None else 0
    unused["data.max_rows"] = len(examples) - leaked - len(train) - own
    if not train:
        raise DataError(
            Problem(
                f"{data.source}: every training row's prompt is held out",
                f"{leaked} rows",
                "--held-out with other rows, or without it: a part of the rows is held out then",
            )
        )
    assert reader.layout is not None  # noqa: S101 - at least one row was read
    unused = {option: number for option, number in unused.items() if number}
    counts = reader.rows, reader.unusable, leaked, reader.notes, unused
    return Examples(train, held_out, reader.layout, *counts, splits_itself=held_out_source is None)


def _at_most(examples: ExampleRows, most: int | None, seed: int) -> ExampleRows:
    """All examples, or `most` of them."""
    return examples if most is None or len(examples) <= most else examples.select(choose(examples, most, seed))


def _require_splits(data: Data) -> None:
    """Refuses a split of something that has none."""
    asked = {"data.split": data.split if data.split != "train" else None, "data.held_out_split": data.held_out_split}
    sources = {"data.split": data.source, "data.held_out_split": data.held_out_source or data.source}
    problems = [
        Problem(
            f"{key}: only a hub data set has splits, and {sources[key]} is none",
            split,
            "leave it out; rows to evaluate on can be a file of their own: --held-out FILE",
        )
        for key, split in asked.items()
        if split is not None and sources[key] != BUILTIN and not is_hub(sources[key])
    ]
    if problems:
        raise DataError(*problems)


def prepare(
    examples: Examples,
    data: Data,
    chat: ChatFormat,
    told: Callable[[int, int], None] = _nobody,
) -> Prepared:
    """Tokenises both sides and counts.

    Args:
        examples: What `read_examples` returned.
        data: The recipe's data section.
        chat: The tokenizer with its chat template.
        told: Is called with the rows that are tokenised, and all of them.

    Raises:
        DataError: No token would carry loss.
    """
    plain_text = examples.layout == "text"
    unusable = {reason: list(places) for reason, places in examples.unusable.items()}
    rows, done = len(examples.train) + len(examples.held_out), itertools.count(1)
    settings = data.max_length, data.loss_on, lambda: told(next(done), rows)
    train, learned = learnable(chat, examples.train, *settings)
    held_out, scored = learnable(chat, examples.held_out, *settings)
    empty, unscored = _others(examples.train, learned), _others(examples.held_out, scored)
    if empty or unscored:
        unusable[f"no token with loss is left within data.max_length {data.max_length}"] = empty + unscored
    if not train:
        raise DataError(
            Problem(
                f"{data.source}: no token would carry loss, so there is nothing to learn",
                f"{len(empty)} rows whose question alone fills data.max_length {data.max_length}",
                f"--max-length {data.max_length * 4}",
            )
        )
    counts = DataReady(
        source="built-in set" if data.source == BUILTIN else data.source,
        layout=examples.layout,
        loss_on="answers" if loss_on_answers(data, examples.layout) else "all tokens",
        template="" if plain_text else chat.name,
        rows_read=examples.rows_read,
        unusable={reason: tuple(places) for reason, places in unusable.items()},
        duplicates=duplicates(examples.train),
        leaked=examples.leaked,
        special_text=tuple(example.where for example in examples.train if chat.special_text(example)),
        train=count(train),
        held_out=count(held_out),
        fingerprint=fingerprint(examples.train, examples.held_out),
        unread=dict(examples.notes.unread),
        shortened=dict(examples.notes.shortened),
        unused=examples.unused,
    )
    return Prepared(train, held_out, examples.held_out.select(scored), counts)


def learnable(
    chat: ChatFormat,
    examples: ExampleRows,
    max_length: int,
    loss_on: LossOn,
    each: Callable[[], None] = _nobody,
) -> tuple[TokenRows, Sequence[int]]:
    """The tokens of the examples of which some carry loss, and the places of those; `each` is called for every one."""
    places = array("q")

    def rows() -> Iterator[TokenRow]:
        for place, row in enumerate(tokenize(chat, examples, max_length, loss_on)):
            each()
            if row.loss_tokens():
                places.append(place)
                yield row

    return TokenRows.of(rows()), places


def _others(examples: ExampleRows, places: Sequence[int]) -> list[str]:
    """Where the examples stand that are at none of the places."""
    import numpy

    others = numpy.setdiff1d(numpy.arange(len(examples)), numpy.asarray(places), assume_unique=True)
    return [example.where for example in examples.select(others)]


def loss_on_answers(data: Data, layout: str) -> bool:
    """Whether only answers carry loss: what the recipe says, else for conversations and not for plain text."""
    return data.loss_on != "tokens" and layout != "text"


def count(rows: Sequence[TokenRow]) -> SplitCounts:
    """The numbers of one side."""
    if not rows:
        return SplitCounts()
    import numpy

    lengths, loss_tokens = array("l"), 0
    cut, without_stop = [], []
    remarks: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        lengths.append(len(row.input_ids))
        loss_tokens += row.loss_tokens()
        if row.cut:
            cut.append(row.where)
        if not row.stops:
            without_stop.append(row.where)
        for remark in row.remarks:
            remarks[remark].append(row.where)
    ordered = numpy.sort(lengths)
    return SplitCounts(
        rows=len(ordered),
        tokens=int(ordered.sum()),
        loss_tokens=loss_tokens,
        shortest=int(ordered[0]),
        median=int(ordered[len(ordered) // 2]),
        long=int(ordered[(len(ordered) * 9 - 1) // 10]),
        longest=int(ordered[-1]),
        cut=tuple(cut),
        without_stop=tuple(without_stop),
        remarks={remark: tuple(places) for remark, places in remarks.items()},
    )


def fingerprint(*sides: ExampleRows) -> str:
    """SHA-256 of the texts of examples, side by side."""
    digest = sha256()
    for side in sides:
        for content in side.contents():
            digest.update(content)
        digest.update(b"\n")
    return digest.hexdigest()
