"""Examples of a recipe: its sources read, mixed and split into training and held-out examples.

Reading needs neither tokenizer nor torch, so bad data is rejected before either is loaded.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from shlex import quote
from typing import TYPE_CHECKING

from neftcli.data.dataset import ExampleDataset
from neftcli.data.sources import open_source, read_rows, require_local_source
from neftcli.data.splits import exclude_prompts, sample_rows, split_held_out
from neftcli.errors import Checks, DataError, Problem
from neftcli.events import SourceCounts
from neftcli.events.data import BUILTIN
from neftcli.recipe.schema import Source
from neftcli.rows.example import Example, RowNotes, UnusableRow
from neftcli.rows.formats import detect_format, to_example, validate_column_names
from neftcli.rows.readers import Row
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.data.splits import Indices
    from neftcli.recipe.schema import Data

MAX_REPEATS = 100
"""Maximum rows of a mixture, as a multiple of the rows of all its sources."""


@dataclass(frozen=True)
class ExampleSplits:
    """Examples of a recipe, before tokenisation.

    Attributes:
        train: Training examples.
        held_out: Examples to evaluate on.
        row_format: Row format of the first training source.
        rows_read: Rows read from the training sources.
        skipped: Reason to the locations of the rows that were left out, in both splits.
        leaked: Training rows left out because their prompt is in the held-out split.
        notes: Notes on the rows of both splits.
        unused: Option to the number of rows that it leaves out.
        is_random_split: The held-out rows were drawn from the training sources.
        sources: Counts of each training source, then of a separate held-out source.
        row_formats: Row formats of the training sources, each once.
    """

    train: ExampleDataset
    held_out: ExampleDataset
    row_format: str
    rows_read: int
    skipped: Mapping[str, list[str]]
    leaked: int
    notes: RowNotes = field(default_factory=RowNotes)
    unused: Mapping[str, int] = field(default_factory=dict)
    is_random_split: bool = False
    sources: tuple[SourceCounts, ...] = ()
    row_formats: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvalExamples:
    """Examples to evaluate on, with or without an answer.

    Attributes:
        examples: The examples.
        row_format: Their row format.
        rows_read: Rows read.
        skipped: Reason to the locations of the rows that were left out.
        notes: Notes on the rows.
        sources: Counts of the source.
    """

    examples: ExampleDataset
    row_format: str
    rows_read: int
    skipped: Mapping[str, list[str]]
    notes: RowNotes
    sources: tuple[SourceCounts, ...] = ()


def no_progress(*_: int) -> None:
    """Ignore the number of rows: the default of functions that report progress."""


@dataclass
class _SourceReader:
    """Reader of a source that remembers the row format and what was left out.

    Attributes:
        data: The recipe's data section.
        source: The source, with format, split and columns filled in.
        option: The key that names the split, for messages.
        answers: Rows must have an answer.
        progress: Called for each row.
        row_format: Id of the row format; None before the first row.
        rows: Rows read.
        usable: Examples among them.
        notes: Notes on the rows; several readers may share them.
        skipped: Reason to the locations of the rows that were left out.
    """

    data: Data
    source: Source
    option: str = "data.split"
    answers: bool = True
    progress: Callable[[], None] = no_progress
    row_format: str | None = None
    rows: int = 0
    usable: int = 0
    notes: RowNotes = field(default_factory=RowNotes)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def open(self) -> None:
        """Open the source, without reading a row.

        Raises:
            DataError: It is missing, or has no such split.
        """
        validate_column_names(self._columns())
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
        """Yield the examples of its rows.

        Raises:
            DataError: A row can't be read, or none has anything to learn.
        """
        columns = self._columns()
        for row in self._opened.rows:
            self.rows += 1
            self.progress()
            try:
                if self.row_format is None:
                    self.row_format = self._row_format_of(row, columns)
                example = to_example(
                    row,
                    self.row_format,
                    self.data.system_prompt,
                    answers=self.answers,
                    columns=columns,
                    notes=None if self.source.source == BUILTIN else self.notes,
                )
            except UnusableRow as reason:
                self.skipped[str(reason)].append(row.location)
            except DataError as error:
                raise self._suggest_other_file(row, error) from None
            else:
                self.usable += 1
                yield example
        if not self.usable:
            raise self._nothing_usable()

    def _row_format_of(self, row: Row, columns: Mapping[str, str]) -> str:
        if self.source.format is None or self.source.format == "auto":
            return detect_format(row, columns, answers=self.answers)
        return self.source.format

    def _nothing_usable(self) -> DataError:
        reasons = []
        for reason, locations in self.skipped.items():
            reasons.append(f"{reason} ({count_noun(len(locations), 'row')}, first {locations[0]})")
        purpose = "train on" if self.answers else "evaluate on"
        hint = "use rows with a question and an answer; map other column names with --set data.columns='{...}'"
        return DataError(Problem(f"{self.source.source}: no row to {purpose}", "; ".join(reasons), hint))

    def _suggest_other_file(self, row: Row, error: DataError) -> DataError:
        """Add another file of the folder to the hint, if the first row of a file can't be read."""
        own_file, _, number = row.location.rpartition(", ")
        if self.option != "data.split" or number not in ("line 1", "row 1"):
            return error
        for file in self._opened.files:
            if file != own_file and self._can_read(file):
                problem, *more = error.problems
                hint = f"{problem.hint}; or read one file of the folder: --dataset {quote(file)}"
                return DataError(replace(problem, hint=hint), *more)
        return error

    def _can_read(self, file: str) -> bool:
        """Return whether the first row of a file can be used."""
        columns = self._columns()
        try:
            row = next(read_rows(file))
            to_example(row, detect_format(row, columns, answers=self.answers), answers=self.answers, columns=columns)
        except (DataError, UnusableRow):
            return False
        return True

    def counts(self, used: int, *, held_out: bool = False) -> SourceCounts:
        """Return the counts of the source, of which `used` rows are in the mixture."""
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


def _training_readers(data: Data, progress: Callable[[int], None], notes: RowNotes) -> list[_SourceReader]:
    """Return a reader for each training source, with defaults from the data section; they share the notes."""
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
        readers.append(_SourceReader(data, source, option, progress=lambda: progress(next(read)), notes=notes))
    return readers


def _held_out_reader(data: Data, notes: RowNotes) -> _SourceReader | None:
    """Return the reader of the held-out source; None if it is drawn from the training sources, or there is none.

    Raises:
        DataError: The options of the held-out split contradict each other.
    """
    if data.held_out_rows == 0 and data.held_out_source is not None:
        message = "data.held_out_rows is 0, but data.held_out_source names rows to evaluate on"
        raise DataError(Problem(message, data.held_out_source, "remove --held-out-rows 0, or remove --held-out"))
    name, split = data.held_out_source, data.held_out_split
    if name is None and split is not None and data.sources:
        message = "data.held_out_split needs data.held_out_source if data.sources is used"
        raise DataError(Problem(message, split, "--held-out SOURCE"))
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
    return _SourceReader(data, source, "data.held_out_split", notes=notes)


def require_local_sources(data: Data) -> None:
    """Check that the sources on this machine exist, and that the options of the held-out split fit together.

    Raises:
        InputError: With everything that is wrong.
    """
    checks, sources = Checks(), [entry.source for entry in data.all_sources()]
    with checks:
        held_out = _held_out_reader(data, RowNotes())
        if held_out is not None:
            sources.append(held_out.source.source)
    for source in dict.fromkeys(sources):
        with checks:
            require_local_source(source)
    checks.raise_errors()


def read_eval_examples(data: Data) -> EvalExamples:
    """Read all rows of `data.source` as examples to evaluate on.

    Raises:
        DataError: The source can't be read, has no known row format, or has no question.
    """
    (reader,) = _training_readers(data, no_progress, RowNotes())
    reader.answers = False
    reader.open()
    examples = ExampleDataset.from_rows(reader.examples())
    assert reader.row_format is not None  # noqa: S101 - at least one row was read
    counts = (reader.counts(len(examples)),)
    return EvalExamples(examples, reader.row_format, reader.rows, reader.skipped, reader.notes, counts)


def read_examples(data: Data, progress: Callable[[int], None] = no_progress) -> ExampleSplits:
    """Read, mix and split the data of a recipe.

    Args:
        data: The recipe's data section.
        progress: Called with the number of rows read so far.

    Raises:
        DataError: A source can't be read, has no known row format, or leaves nothing to train on.
    """
    notes = RowNotes()
    readers = _training_readers(data, progress, notes)
    held_out_reader = _held_out_reader(data, notes)
    all_readers = [*readers, held_out_reader] if held_out_reader else readers
    for reader in all_readers:
        reader.open()
    examples = ExampleDataset.from_rows(example for reader in readers for example in reader.examples())
    import numpy  # late: a missing file or a bad row is reported without the second that this import takes

    row_formats = _collect_row_formats(readers)
    if row_formats[0] == "text" and data.loss_on not in ("auto", "tokens"):
        message = f"data.loss_on: {data.source_name()} is plain text, which has no answers"
        raise DataError(Problem(message, data.loss_on, "--set data.loss_on=tokens"))
    mixture, sources = _mix_sources(data, readers, examples)
    leaked = 0
    unused = {}
    if held_out_reader is None:
        chosen = _sample_at_most(mixture, examples, data.max_rows, data.split_seed)
        unused["data.max_rows"] = len(mixture) - len(chosen)
        rows = _drop_repeats(chosen)
        held_out_rows = rows[split_held_out(examples.select(rows), data.held_out_rows, data.split_seed)[1]]
        train_rows = chosen[~numpy.isin(chosen, held_out_rows)]
        held_out = examples.select(held_out_rows)
    else:
        held_out = ExampleDataset.from_rows(held_out_reader.examples())
        _require_same_kind(held_out_reader, row_formats[0], data)
        sample = _sample_at_most(numpy.arange(len(held_out)), held_out, data.held_out_rows, data.split_seed)
        unused["data.held_out_rows"] = len(held_out) - len(sample)
        held_out = held_out.select(sample)
        sources = (*sources, held_out_reader.counts(len(sample), held_out=True))
        not_held_out = mixture[exclude_prompts(examples.select(mixture), held_out)]
        leaked = len(mixture) - len(not_held_out)
        train_rows = _sample_at_most(not_held_out, examples, data.max_rows, data.split_seed)
        unused["data.max_rows"] = len(not_held_out) - len(train_rows)
    if not len(train_rows):
        message = f"{data.source_name()}: the prompts of all training rows are in the held-out split"
        hint = "use other rows for --held-out, or leave it out to hold out some of the training rows"
        raise DataError(Problem(message, count_noun(leaked, "row"), hint))
    skipped: dict[str, list[str]] = defaultdict(list)
    for reader in all_readers:
        for reason, locations in reader.skipped.items():
            skipped[reason].extend(locations)
    return ExampleSplits(
        train=examples.select(train_rows),
        held_out=held_out,
        row_format=row_formats[0],
        rows_read=sum(reader.rows for reader in readers),
        skipped=skipped,
        leaked=leaked,
        notes=notes,
        unused={option: number for option, number in unused.items() if number},
        is_random_split=held_out_reader is None,
        sources=sources,
        row_formats=row_formats,
    )


def _collect_row_formats(readers: Sequence[_SourceReader]) -> tuple[str, ...]:
    """Return the row formats of the sources, each once.

    Raises:
        DataError: Some sources are plain text and some are conversations.
    """
    first_sources: dict[str, str] = {}
    for reader in readers:
        if reader.row_format:
            first_sources.setdefault(reader.row_format, reader.source.source)
    chats = [source for row_format, source in first_sources.items() if row_format != "text"]
    if "text" in first_sources and chats:
        message = "data.sources: plain text and conversations can't be mixed"
        got = f"text in {first_sources['text']}, and conversations in {chats[0]}"
        raise DataError(Problem(message, got, "use sources of one kind"))
    return tuple(first_sources)


def _mix_sources(
    data: Data, readers: Sequence[_SourceReader], examples: ExampleDataset
) -> tuple[Indices, tuple[SourceCounts, ...]]:
    """Return the indices of the mixture's rows, and the counts of each source."""
    import numpy

    parts: list[Indices] = []
    begin = 0
    for reader in readers:
        part = numpy.arange(begin, begin + reader.usable)
        parts.append(_sample_at_most(part, examples, reader.source.max_rows, data.split_seed))
        begin += reader.usable
    weights = [reader.source.weight for reader in readers]
    mixture = interleave(parts, weights, data.split_seed, data.stopping_strategy)
    bounds = numpy.cumsum([0, *(reader.usable for reader in readers)])
    used = numpy.histogram(mixture, bounds)[0].tolist()
    return mixture, tuple(reader.counts(number) for reader, number in zip(readers, used, strict=True))


def _require_same_kind(held_out: _SourceReader, row_format: str, data: Data) -> None:
    """Reject held-out plain text if the training rows are conversations, and the reverse.

    Raises:
        DataError: One is plain text, the other conversations.
    """
    if (held_out.row_format == "text") != (row_format == "text"):
        message = f"{held_out.source.source}: held-out rows and training rows must both be plain text or conversations"
        got = f"{held_out.row_format}, and {row_format} in {data.source_name()}"
        raise DataError(Problem(message, got, "--held-out with rows of the same kind"))


def _sample_at_most(rows: Indices, examples: ExampleDataset, number: int | None, seed: int) -> Indices:
    """Return all rows, or a sample of `number` rows if there are more."""
    if number is None or len(rows) <= number:
        return rows
    return rows[sample_rows(examples.select(rows), number, seed)]


def _drop_repeats(rows: Indices) -> Indices:
    """Return each index once, in the order of first occurrence."""
    import numpy

    first = numpy.unique(rows, return_index=True)[1]
    return rows if len(first) == len(rows) else rows[numpy.sort(first)]


def interleave(parts: Sequence[Indices], weights: Sequence[float | None], seed: int, stopping_strategy: str) -> Indices:
    """Return the rows of a mixture, in their order, as `datasets.interleave_datasets` draws them.

    Without weights the sources are concatenated. With weights the source of each row is drawn with probability
    weight / sum of weights, and each source yields its rows in order; a source without a weight has weight 1.

    Args:
        parts: The row indices of each source.
        weights: The weight of each source, or None.
        seed: Seed of the draws.
        stopping_strategy: "first_exhausted" ends when a source has no rows left; "all_exhausted" when each row was
            drawn at least once, and rows of exhausted sources repeat.

    Raises:
        DataError: The weights would repeat rows too often.
    """
    import numpy

    if all(weight is None for weight in weights):
        return numpy.concatenate(parts)
    from datasets import Dataset, interleave_datasets

    filled = [1.0 if weight is None else weight for weight in weights]
    probabilities = [weight / sum(filled) for weight in filled]
    total = sum(map(len, parts))
    longest = max(len(part) / probability for part, probability in zip(parts, probabilities, strict=True))
    if stopping_strategy == "all_exhausted" and longest > MAX_REPEATS * total:
        message = "data.sources: rows would repeat too often before the source with the smallest weight is used up"
        hint = "--set data.stopping_strategy=first_exhausted, or use weights closer to each other"
        raise DataError(Problem(message, f"about {longest:,.0f} rows drawn from {total:,}", hint))
    sets = [Dataset.from_dict({"row": part}) for part in parts]
    drawn = interleave_datasets(sets, probabilities, seed, stopping_strategy=stopping_strategy)
    return numpy.asarray(drawn.with_format("numpy")[:]["row"], dtype=numpy.int64)
