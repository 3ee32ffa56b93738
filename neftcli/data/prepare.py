"""From a recipe's `data` section to tokenised rows for training and for evaluation, with everything counted.

Reading needs no tokenizer and no torch, so bad data is refused before either is loaded.
"""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from shlex import quote
from typing import TYPE_CHECKING

from neftcli.data.dataset import ExampleDataset, TokenDataset
from neftcli.data.example import RowNotes
from neftcli.data.formats import (
    Example,
    UnusableRow,
    detect,
    require_standard,
    str,
    to_example,
)
from neftcli.data.mixture import mixed
from neftcli.data.readers import Row
from neftcli.data.sources import BUILTIN, open_source, read_rows
from neftcli.data.splits import count_duplicates, exclude_prompts, sample_rows, split_held_out
from neftcli.data.token_cache import FEWEST_ROWS, cached, token_key
from neftcli.data.tokens import TokenRow, tokenize
from neftcli.errors import DataError, Problem
from neftcli.events import DataReady, SourceCounts, SplitCounts
from neftcli.recipe.schema import Source

if TYPE_CHECKING:
    from neftcli.data.chat import ChatFormat, LossOn
    from neftcli.data.splits import Indices
    from neftcli.recipe.schema import Data


@dataclass(frozen=True)
class ExampleSplits:
    """What the rows say, before any token.

    Attributes:
        train: Examples to learn from.
        held_out: Examples to evaluate on.
        row_format: Row format of the (first) training source.
        rows_read: Rows read from the training sources.
        unusable: Reason to places of the rows that were left out, on both sides.
        leaked: Training rows left out since their prompt is held out.
        notes: Columns and keys that are not read, and parts of conversations that are left out, on both sides.
        unused: Option to the number of rows that it leaves out.
        splits_itself: The held-out rows come from the training sources' own.
        sources: Counts of each training source, then of a held-out source.
        row_formats: Row formats of the training sources, each once.
    """

    train: ExampleDataset
    held_out: ExampleDataset
    row_format: str
    rows_read: int
    unusable: Mapping[str, list[str]]
    leaked: int
    notes: RowNotes = field(default_factory=RowNotes)
    unused: Mapping[str, int] = field(default_factory=dict)
    splits_itself: bool = False
    sources: tuple[SourceCounts, ...] = ()
    row_formats: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreparedData:
    """Tokenised rows, and the examples of the held-out side for generating answers.

    Attributes:
        train: Training rows.
        held_out: Held-out rows.
        held_out_examples: Their examples, in the same order.
        counts: What a person is shown.
    """

    train: TokenDataset
    held_out: TokenDataset
    held_out_examples: ExampleDataset
    counts: DataReady


def _nobody(*_: int) -> None:
    pass


@dataclass
class _Reader:
    """Reads one source and remembers its layout and what was left out.

    `source`: with format, split and columns filled in; `option`: the key that names its split; `answers`: a row must
    hold one; `progress` is called for each row.
    """

    data: Data
    source: Source
    option: str = "data.split"
    answers: bool = True
    progress: Callable[[], None] = _nobody
    row_format: str | None = None
    rows: int = 0
    usable: int = 0
    notes: RowNotes = field(default_factory=RowNotes)
    unusable: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def open(self) -> None:
        """Find the source without reading a row.

        Raises:
            DataError: It is missing, or has no such split.
        """
        require_standard(self._columns())
        source = self.source
        self._opened = open_source(
            source.source,
            source.split or "train",
            source.config,
            sample_by=self.data.sample_by,
            streaming=self.data.streaming,
            option=self.option,
        )

    def examples(self) -> Iterator[Example]:
        """The examples of its rows.

        Raises:
            DataError: A row can't be read, or none can be used.
        """
        columns = self._columns()
        for row in self._opened.rows:
            self.rows += 1
            self.progress()
            try:
                if self.row_format is None:
                    given = self.source.format or "auto"
                    self.row_format = detect(row, columns, answers=self.answers) if given == "auto" else given
                example = to_example(
                    row,
                    self.row_format,
                    self.data.system_prompt,
                    answers=self.answers,
                    columns=columns,
                    notes=None if self.source.source == BUILTIN else self.notes,
                )
            except UnusableRow as reason:
                self.unusable[str(reason)].append(row.location)
            except DataError as error:
                raise self._with_other_file(row, error) from None
            else:
                self.usable += 1
                yield example
        if not self.usable:
            raise DataError(
                Problem(
                    f"{self.source.source}: no row can be {'learned from' if self.answers else 'evaluated on'}",
                    "; ".join(
                        f"{reason} ({len(places)} row{'s' if len(places) > 1 else ''}, the first {places[0]})"
                        for reason, places in self.unusable.items()
                    ),
                    "rows with a question and an answer; --set data.columns='{...}' where they have other names",
                )
            )

    def _with_other_file(self, row: Row, error: DataError) -> DataError:
        """The error of the first row of a folder's file; its hint names another file there that can be read."""
        own_file, _, place = row.location.rpartition(", ")
        if self.option != "data.split" or place not in ("line 1", "row 1"):
            return error
        for file in self._opened.files:
            if file != own_file and self._can_read(file):
                problem, *more = error.problems
                alone = f"or, of this folder, read one file alone: --dataset {quote(file)}"
                return DataError(replace(problem, hint=f"{problem.hint}; {alone}"), *more)
        return error

    def _can_read(self, file: str) -> bool:
        """Return whether the first row of a file can be learned from."""
        columns = self._columns()
        try:
            row = next(read_rows(file))
            to_example(row, detect(row, columns, answers=self.answers), answers=self.answers, columns=columns)
        except (DataError, UnusableRow):
            return False
        return True

    def counts(self, used: int, *, held_out: bool = False) -> SourceCounts:
        """Its counts; `used`: rows of it in the mixture."""
        return SourceCounts(
            self.source.source,
            self.rows,
            used,
            self._opened.split,
            self.source.weight,
            self._opened.left_out,
            self.data.sample_by if self._opened.running_text else "",
            held_out,
        )

    def _columns(self) -> Mapping[str, str]:
        return self.source.columns or {}


def _training_readers(data: Data, progress: Callable[[int], None], notes: RowNotes) -> list[_Reader]:
    """A reader for each training source, with what its entry leaves out filled in; they share the notes."""
    read = itertools.count(1)
    readers = []
    for number, entry in enumerate(data.all_sources(), 1):
        source = replace(
            entry,
            config=entry.config or data.config,
            split=entry.split or data.split,
            format=entry.format or data.format,
            columns=data.columns if entry.columns is None else entry.columns,
        )
        option = f"data.sources, entry {number}: split" if data.sources else "data.split"
        readers.append(_Reader(data, source, option, progress=lambda: progress(next(read)), notes=notes))
    return readers


def _held_out_reader(data: Data, notes: RowNotes) -> _Reader | None:
    """The reader of the held-out source; None if rows are held out of the training sources, or none are.

    Raises:
        DataError: The options that name it contradict each other.
    """
    if data.held_out_rows == 0 and data.held_out_source is not None:
        clash = "data.held_out_rows 0 evaluates on nothing, and data.held_out_source names rows to evaluate on"
        raise DataError(Problem(clash, data.held_out_source, "--held-out without --held-out-rows 0, or neither"))
    name, split = data.held_out_source, data.held_out_split
    if name is None and split is not None and data.sources:
        clash = "data.held_out_split needs data.held_out_source: data.sources has several sources"
        raise DataError(Problem(clash, split, "--held-out SOURCE"))
    if name is None and (split is not None or (data.source == BUILTIN and not data.sources)):
        name = data.source
    if name is None or data.held_out_rows == 0:
        return None
    source = Source(
        source=name,
        config=data.config if name == data.source and not data.sources else None,
        split=split or ("held_out" if name == BUILTIN else "train"),
        format=data.format,
        columns=data.columns,
    )
    return _Reader(data, source, "data.held_out_split", notes=notes)


@dataclass(frozen=True)
class EvalExamples:
    """Rows to evaluate on, whether they hold an answer or not.

    Attributes:
        examples: The examples.
        row_format: Their row format.
        rows_read: Rows read.
        unusable: Reason to places of the rows that were left out.
        notes: Columns and keys that are not read, and parts of conversations that are left out.
        sources: Counts of the source.
    """

    examples: ExampleDataset
    row_format: str
    rows_read: int
    unusable: Mapping[str, list[str]]
    notes: RowNotes
    sources: tuple[SourceCounts, ...] = ()


def read_eval_examples(data: Data) -> EvalExamples:
    """Reads `data.source` as rows to evaluate on, every one of them.

    Raises:
        DataError: The source can't be read, fits no layout, or holds no question.
    """
    (reader,) = _training_readers(data, _nobody, RowNotes())
    reader.answers = False
    reader.open()
    examples = ExampleDataset.from_rows(reader.examples())
    assert reader.row_format is not None  # noqa: S101 - at least one row was read
    counts = (reader.counts(len(examples)),)
    return EvalExamples(examples, reader.row_format, reader.rows, reader.unusable, reader.notes, counts)


def read_examples(data: Data, progress: Callable[[int], None] = _nobody) -> ExampleSplits:
    """Reads, mixes and splits the data of a recipe; `progress` is called with the rows read so far.

    Raises:
        DataError: A source can't be read, fits no layout, or leaves nothing to train on.
    """
    notes = RowNotes()
    readers, evaluated = _training_readers(data, progress, notes), _held_out_reader(data, notes)
    for reader in [*readers, *([evaluated] if evaluated else [])]:
        reader.open()
    examples = ExampleDataset.from_rows(example for reader in readers for example in reader.examples())
    import numpy  # a missing file or a bad row is reported without the second that this takes

    row_formats = _layouts(readers)
    if row_formats[0] == "text" and data.loss_on not in ("auto", "tokens"):
        clash = f"data.loss_on: {data.source_name()} is plain text, which has no answers"
        raise DataError(Problem(clash, data.loss_on, "--set data.loss_on=tokens"))
    mixture, sources = _mixture(data, readers, examples)
    leaked = 0
    unused = {}
    if evaluated is None:
        chosen = _at_most(mixture, examples, data.max_rows, data.split_seed)
        unused["data.max_rows"] = len(mixture) - len(chosen)
        rows = _without_repeats(chosen)
        held_out_places = rows[split_held_out(examples.select(rows), data.held_out_rows, data.split_seed)[1]]
        train_places = chosen[~numpy.isin(chosen, held_out_places)]
        held_out = examples.select(held_out_places)
    else:
        held_out = ExampleDataset.from_rows(evaluated.examples())
        _require_same_kind(evaluated, row_formats[0], data)
        kept = _at_most(numpy.arange(len(held_out)), held_out, data.held_out_rows, data.split_seed)
        unused["data.held_out_rows"] = len(held_out) - len(kept)
        held_out = held_out.select(kept)
        sources = (*sources, evaluated.counts(len(kept), held_out=True))
        select_unseen = mixture[exclude_prompts(examples.select(mixture), held_out)]
        leaked = len(mixture) - len(select_unseen)
        train_places = _at_most(select_unseen, examples, data.max_rows, data.split_seed)
        unused["data.max_rows"] = len(select_unseen) - len(train_places)
    if not len(train_places):
        raise DataError(
            Problem(
                f"{data.source_name()}: every training row's prompt is held out",
                f"{leaked} rows",
                "--held-out with other rows, or without it: a part of the rows is held out then",
            )
        )
    unusable: dict[str, list[str]] = defaultdict(list)
    for reader in [*readers, evaluated] if evaluated else readers:
        for reason, places in reader.unusable.items():
            unusable[reason].extend(places)
    return ExampleSplits(
        train=examples.select(train_places),
        held_out=held_out,
        row_format=row_formats[0],
        rows_read=sum(reader.rows for reader in readers),
        unusable=unusable,
        leaked=leaked,
        notes=notes,
        unused={option: number for option, number in unused.items() if number},
        splits_itself=evaluated is None,
        sources=sources,
        row_formats=row_formats,
    )


def _layouts(readers: Sequence[_Reader]) -> tuple[str, ...]:
    """The row formats of the sources, each once.

    Raises:
        DataError: Some sources are plain text and some are conversations.
    """
    row_formats = {reader.row_format: reader.source.source for reader in reversed(readers) if reader.row_format}
    texts, chats = (
        row_formats.get("text"),
        next((name for row_format, name in row_formats.items() if row_format != "text"), None),
    )
    if texts and chats:
        message = "data.sources: plain text and conversations can't be mixed"
        raise DataError(Problem(message, f"text in {texts}, and conversations in {chats}", "sources of one kind"))
    return tuple(reversed(row_formats))


def _mixture(
    data: Data, readers: Sequence[_Reader], examples: ExampleDataset
) -> tuple[Indices, tuple[SourceCounts, ...]]:
    """The places of all sources' rows as they are mixed, and each source's counts."""
    import numpy

    parts: list[Indices] = []
    begin = 0
    for reader in readers:
        part = numpy.arange(begin, begin + reader.usable)
        parts.append(_at_most(part, examples, reader.source.max_rows, data.split_seed))
        begin += reader.usable
    weights = [reader.source.weight for reader in readers]
    mixture = mixed(parts, weights, data.split_seed, data.stopping_strategy)
    bounds = numpy.cumsum([0, *(reader.usable for reader in readers)])
    used = numpy.histogram(mixture, bounds)[0].tolist()
    return mixture, tuple(reader.counts(number) for reader, number in zip(readers, used, strict=True))


def _require_same_kind(evaluated: _Reader, row_format: str, data: Data) -> None:
    """Reject held-out plain text if the training rows are conversations, and the reverse.

    Raises:
        DataError: One side is plain text, the other conversations.
    """
    if (evaluated.row_format == "text") != (row_format == "text"):
        raise DataError(
            Problem(
                f"{evaluated.source.source}: held-out rows must be plain text or conversations as the training rows "
                "are",
                f"{evaluated.row_format}, and {row_format} in {data.source_name()}",
                "--held-out with rows of the same kind",
            )
        )


def _at_most(places: Indices, examples: ExampleDataset, most: int | None, seed: int) -> Indices:
    """All places, or `most` of them."""
    if most is None or len(places) <= most:
        return places
    return places[sample_rows(examples.select(places), most, seed)]


def _without_repeats(places: Indices) -> Indices:
    """Each place once, in the order of first occurrence."""
    import numpy

    first = numpy.unique(places, return_index=True)[1]
    return places if len(first) == len(places) else places[numpy.sort(first)]


def prepare(
    examples: ExampleSplits,
    data: Data,
    chat: ChatFormat,
    progress: Callable[[int, int], None] = _nobody,
) -> PreparedData:
    """Tokenises both sides and counts.

    Args:
        examples: What `read_examples` returned.
        data: The recipe's data section.
        chat: The tokenizer with its chat template.
        progress: Is called with the rows that are tokenised, and all of them.

    Raises:
        DataError: No token would carry loss.
    """
    plain_text = examples.row_format == "text"
    unusable = {reason: list(places) for reason, places in examples.unusable.items()}
    rows, done = len(examples.train) + len(examples.held_out), itertools.count(1)
    settings = data, lambda: progress(next(done), rows)
    train, learned = _cached(chat, examples.train, *settings)
    held_out, scored = _cached(chat, examples.held_out, *settings)
    empty, unscored = _others(examples.train, learned), _others(examples.held_out, scored)
    if empty or unscored:
        unusable[f"no token with loss is left within data.max_length {data.max_length}"] = empty + unscored
    if not train:
        raise DataError(
            Problem(
                f"{data.source_name()}: no token would carry loss, so there is nothing to learn",
                f"{len(empty)} rows whose question alone fills data.max_length {data.max_length}",
                f"--max-length {data.max_length * 4}",
            )
        )
    counts = DataReady(
        source="built-in set" if data.source_name() == BUILTIN else data.source_name(),
        format=" + ".join(examples.row_formats),
        loss_on=_loss_label(data, examples.row_format),
        template="" if plain_text else chat.name,
        rows_read=examples.rows_read,
        skipped={reason: tuple(places) for reason, places in unusable.items()},
        duplicates=count_duplicates(examples.train),
        leaked=examples.leaked,
        special_token_text=tuple(
            example.location for example in examples.train if chat.special_tokens.find_special_token(example)
        ),
        train=count(train),
        held_out=count(held_out),
        fingerprint=data_fingerprint(examples.train, examples.held_out),
        unread_columns=dict(examples.notes.unread),
        dropped_turns=dict(examples.notes.shortened),
        remarks=dict(examples.notes.remarks),
        unused=examples.unused,
        sources=examples.sources,
    )
    return PreparedData(train, held_out, examples.held_out.select(scored), counts)


def _cached(
    chat: ChatFormat, examples: ExampleDataset, data: Data, each: Callable[[], None]
) -> tuple[TokenDataset, Sequence[int]]:
    """`tokenize_dataset`, through the token cache if there are many rows."""
    tokenizer = chat.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if len(examples) < FEWEST_ROWS or backend is None:
        return tokenize_dataset(chat, examples, data.max_length, data.loss_on, each)
    settings = (
        backend.to_str(),
        repr(tokenizer.special_tokens_map),
        str(tokenizer.chat_template),
        repr(sorted(chat.stop_token_ids)),
        f"{data.max_length} {data.loss_on} {data.reasoning}",
    )
    key = token_key(examples, *settings)
    return cached(key, lambda: tokenize_dataset(chat, examples, data.max_length, data.loss_on, each))


def tokenize_dataset(
    chat: ChatFormat,
    examples: ExampleDataset,
    max_length: int,
    loss_on: LossOn,
    each: Callable[[], None] = _nobody,
) -> tuple[TokenDataset, Sequence[int]]:
    """The tokens of the examples of which some carry loss, and the places of those; `each` is called for every one."""
    places = array("q")

    def rows() -> Iterator[TokenRow]:
        for place, row in enumerate(tokenize(chat, examples, max_length, loss_on)):
            each()
            if row.loss_tokens():
                places.append(place)
                yield row

    return TokenDataset.from_rows(rows()), places


def _others(examples: ExampleDataset, places: Sequence[int]) -> list[str]:
    """Where the examples stand that are at none of the places."""
    import numpy

    others = numpy.setdiff1d(numpy.arange(len(examples)), numpy.asarray(places), assume_unique=True)
    return [example.location for example in examples.select(others)]


def _loss_label(data: Data, row_format: str) -> str:
    """What carries loss, in words."""
    if row_format == "text":
        return "all tokens"
    labels = {"tokens": "all tokens", "last": "last answers", "completion": "completions"}
    return labels.get(data.loss_on, "answers")


def count(rows: Sequence[TokenRow]) -> SplitCounts:
    """The numbers of one side."""
    if not rows:
        return SplitCounts()
    import numpy

    lengths, loss_tokens = array("l"), 0
    truncated, without_stop = [], []
    remarks: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        lengths.append(len(row.input_ids))
        loss_tokens += row.loss_tokens()
        if row.truncated:
            truncated.append(row.location)
        if not row.ends_with_stop_token:
            without_stop.append(row.location)
        for remark in row.remarks:
            remarks[remark].append(row.location)
    ordered = numpy.sort(lengths)
    return SplitCounts(
        rows=len(ordered),
        tokens=int(ordered.sum()),
        loss_tokens=loss_tokens,
        shortest=int(ordered[0]),
        median=int(ordered[len(ordered) // 2]),
        p90=int(ordered[(len(ordered) * 9 - 1) // 10]),
        longest=int(ordered[-1]),
        truncated=tuple(truncated),
        without_stop_token=tuple(without_stop),
        remarks={remark: tuple(places) for remark, places in remarks.items()},
    )


def data_fingerprint(*sides: ExampleDataset) -> str:
    """SHA-256 of the texts of examples, side by side."""
    digest = sha256()
    for side in sides:
        for content in side.contents():
            digest.update(content)
        digest.update(b"\n")
    return digest.hexdigest()
