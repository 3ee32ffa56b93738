"""Events and their parts about data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

BUILTIN = "builtin"
"""Name of the built-in rows, as a source of data."""


def describe_source(name: str) -> str:
    """Return the name of a source of data for display."""
    return "built-in set" if name == BUILTIN else name


@dataclass(frozen=True, slots=True)
class Occurrences:
    """Occurrences of something in rows.

    Attributes:
        rows: Rows that have it.
        first: Location of the first one.
    """

    rows: int
    first: str


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """Counts of the training or the held-out split, in tokens after truncation at data.max_length.

    Attributes:
        rows: Rows.
        tokens: Tokens of all rows.
        loss_tokens: Tokens that carry loss.
        shortest: Tokens of the shortest row.
        median: Tokens of the median row.
        p90: 90th percentile of the tokens per row.
        longest: Tokens of the longest row.
        truncated: Locations of the rows that were longer than data.max_length.
        without_stop_token: Locations of the rows that do not end in a stop token with loss.
        remarks: Remark about rendering or tokenization, mapped to the locations of its rows.
    """

    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    shortest: int = 0
    median: int = 0
    p90: int = 0
    longest: int = 0
    truncated: tuple[str, ...] = ()
    without_stop_token: tuple[str, ...] = ()
    remarks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """Rows of one source.

    Attributes:
        name: The source.
        rows_read: Rows read.
        rows_used: Rows in the mixture, before the held-out split is taken; a repeated row counts each time.
        split: The split that was read; empty if the source has none.
        weight: Weight in the mixture; None if it has none.
        left_out: Data files of the source that are not read.
        sample_by: Unit of text that makes a row (line, paragraph or document); empty if the source is no text.
        held_out: True for the source of the held-out split.
    """

    name: str
    rows_read: int
    rows_used: int
    split: str = ""
    weight: float | None = None
    left_out: tuple[str, ...] = ()
    sample_by: str = ""
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class DataReady:
    """The training data is read, split and tokenized.

    Attributes:
        source: Source of the data: builtin, a path, a URL or a hub id; several are joined with " + ".
        format: Row format, detected or given; several are joined with " + ".
        loss_on: Tokens that carry loss: answers, last_answers, completions or all_tokens.
        template: Chat template: own (the model's), alpaca, chatml or the name of a Jinja file; empty for plain text.
        rows_read: Rows read from the training sources.
        skipped: Reason for which rows were left out, mapped to their locations.
        duplicates: Rows that repeat an earlier row.
        leaked: Training rows left out because their prompt is in the held-out split.
        special_token_text: Locations of rows that hold a special token as text.
        train: Counts of the training split.
        held_out: Counts of the held-out split.
        fingerprint: SHA-256 of the examples of both splits.
        unread_columns: Column that neft does not read, and its rows.
        unread_turn_keys: Key of turns that neft does not read, and its rows.
        unused: Option that leaves rows out, mapped to their number.
        dropped_turns: Part of conversations that is left out, and its rows.
        remarks: Remark about conversations, and its rows.
        sources: The training sources, then the source of the held-out split if it is a separate one.
    """

    id: ClassVar[str] = "data.ready"

    source: str
    format: str
    loss_on: str
    template: str
    rows_read: int
    skipped: dict[str, tuple[str, ...]]
    duplicates: int
    leaked: int
    special_token_text: tuple[str, ...]
    train: SplitCounts
    held_out: SplitCounts
    fingerprint: str
    unread_columns: Mapping[str, Occurrences] = field(default_factory=dict)
    unread_turn_keys: Mapping[str, Occurrences] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)
    dropped_turns: Mapping[str, Occurrences] = field(default_factory=dict)
    remarks: Mapping[str, Occurrences] = field(default_factory=dict)
    sources: tuple[SourceCounts, ...] = ()


@dataclass(frozen=True, slots=True)
class RowsSource:
    """Origin of rows to evaluate on.

    Attributes:
        name: builtin, a path, a URL or a hub id; several are joined with " + ".
        split: The split that was read; empty if the source has none, or for the held-out split of a run.
        held_out_of: Name of the run whose held-out split is evaluated; empty for other rows.
    """

    name: str
    split: str = ""
    held_out_of: str = ""

    def describe(self) -> str:
        """Return the origin for display."""
        if self.held_out_of:
            return f"held out of {self.held_out_of}"
        if self.name != BUILTIN:
            return self.name
        return f"{describe_source(self.name)}, {self.split.replace('_', ' ')}"


@dataclass(frozen=True, slots=True)
class EvaluationDataReady:
    """The rows of an evaluation are read.

    Attributes:
        source: Origin of the rows.
        format: Row format.
        rows_read: Rows read.
        rows: Rows that are evaluated.
        with_answer: Rows with a reference answer, which therefore have a loss.
        trained_on: Rows left out because an evaluated model was trained on their prompt.
        repeated: Rows left out because they repeat an earlier row.
        skipped: Reason for which rows were left out, mapped to their locations.
        unread_columns: Column that neft does not read, and its rows.
        unread_turn_keys: Key of turns that neft does not read, and its rows.
        dropped_turns: Part of conversations that is left out, and its rows.
        remarks: Remark about conversations, and its rows.
        sources: The source that was read.
    """

    id: ClassVar[str] = "evaluation.data_ready"

    source: RowsSource
    format: str
    rows_read: int
    rows: int
    with_answer: int
    trained_on: int
    repeated: int
    skipped: dict[str, tuple[str, ...]]
    unread_columns: Mapping[str, Occurrences] = field(default_factory=dict)
    unread_turn_keys: Mapping[str, Occurrences] = field(default_factory=dict)
    dropped_turns: Mapping[str, Occurrences] = field(default_factory=dict)
    remarks: Mapping[str, Occurrences] = field(default_factory=dict)
    sources: tuple[SourceCounts, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an inspected row.

    Attributes:
        id: Id in the vocabulary.
        text: Text that the token adds. If a character consists of several tokens, its last token has the character and
            the others have their bytes, such as <0xE4>; the text of a row is therefore the text of its spans.
        loss: True if the token carries loss.
    """

    id: int
    text: str
    loss: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Adjacent tokens of an inspected row, either all with loss or all without.

    Attributes:
        text: Their text; the spans of a row, joined, are the text of the row.
        loss: True if the tokens carry loss.
        tokens: Number of tokens.
    """

    text: str
    loss: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """A training row as the model sees it.

    Attributes:
        location: File and line of the row.
        tokens: Its tokens.
        spans: The same tokens, with adjacent ones merged.
        truncated: True if the row was truncated at data.max_length.
        ends_with_stop_token: True if the last token with loss is a stop token.
        notes: Remarks, such as what the chat template did to earlier turns.
    """

    id: ClassVar[str] = "data.row"

    location: str
    tokens: tuple[Token, ...]
    spans: tuple[Span, ...]
    truncated: bool
    ends_with_stop_token: bool
    notes: tuple[str, ...] = ()

    def loss_tokens(self) -> int:
        """Return the number of tokens that carry loss."""
        return sum(token.loss for token in self.tokens)


@dataclass(frozen=True, slots=True)
class PageWritten:
    """The page of `neft data inspect --html` is written.

    Attributes:
        path: The file.
        rows: Rows on the page.
    """

    id: ClassVar[str] = "data.page"

    path: str
    rows: int
