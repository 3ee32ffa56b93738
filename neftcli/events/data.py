"""What was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Occurrences:
    """The number of rows in which something was found, and the place of the first."""

    rows: int
    first: str


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """One side of the data, counted in tokens after cutting at data.max_length.

    Attributes:
        rows: Rows.
        tokens: Tokens of all rows.
        loss_tokens: Tokens that carry loss.
        shortest: Tokens of the shortest row.
        median: Tokens of the median row.
        long: The length that nine rows of ten do not exceed.
        longest: Tokens of the longest row.
        cut: Places of the rows that were longer than data.max_length.
        without_stop: Places of the rows that do not end in a stop token with loss.
        remarks: Remark on how rows were rendered and tokenised, to the places of the rows.
    """

    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    shortest: int = 0
    median: int = 0
    long: int = 0
    longest: int = 0
    cut: tuple[str, ...] = ()
    without_stop: tuple[str, ...] = ()
    remarks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """Rows of one source.

    Attributes:
        name: The source.
        rows_read: Rows read.
        rows_used: Rows of it in the mixture, before rows are held out; a row that repeats counts each time.
        split: The split that was read; empty if it has none.
        weight: Its weight in the mixture, if it has one.
        left_out: Data files of it that are not read.
        sample_by: What a row of its text files is; empty if it has none.
        held_out: It is the held-out source.
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
    """The data has been read, split and tokenised.

    Attributes:
        source: Where it comes from.
        layout: The row format, detected or given.
        loss_on: What carries loss: "answers", "last answers", "completions" or "all tokens".
        template: The chat template's name, or "" for plain text.
        rows_read: Rows read from the training sources.
        unusable: Reason to the places of the rows that were left out for it.
        duplicates: Rows that repeat an earlier one.
        leaked: Training rows left out since their prompt is held out.
        special_text: Places of rows that hold a special token as text.
        train: The training side.
        held_out: The held-out side.
        fingerprint: SHA-256 of the examples of both sides.
        unread: Column ("score") or turn key ("turn key emotion") that is not read, to the rows that hold it.
        unused: Option to the number of rows that it leaves out.
        shortened: Part of a conversation that is left out, to the rows that lose it.
        remarks: Remark on what conversations hold, to the rows that hold it.
        sources: The training sources, then a separate held-out source.
    """

    source: str
    layout: str
    loss_on: str
    template: str
    rows_read: int
    unusable: dict[str, tuple[str, ...]]
    duplicates: int
    leaked: int
    special_text: tuple[str, ...]
    train: SplitCounts
    held_out: SplitCounts
    fingerprint: str
    unread: Mapping[str, Occurrences] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)
    shortened: Mapping[str, Occurrences] = field(default_factory=dict)
    remarks: Mapping[str, Occurrences] = field(default_factory=dict)
    sources: tuple[SourceCounts, ...] = ()


@dataclass(frozen=True, slots=True)
class RowsReady:
    """The rows to evaluate on have been read.

    Attributes:
        source: Where they come from.
        layout: Their row format.
        rows_read: Rows read.
        rows: Rows that are evaluated on.
        with_answer: Those that hold an answer, and so have a loss.
        trained_on: Rows left out since a model here was trained on one of their prompts.
        repeated: Rows left out since they repeat an earlier one.
        unusable: Reason to the places of the rows that were left out for it.
        unread: Column ("score") or turn key ("turn key emotion") that is not read, to the rows that hold it.
        shortened: Part of a conversation that is left out, to the rows that lose it.
        remarks: Remark on what conversations hold, to the rows that hold it.
        sources: The source that was read.
    """

    source: str
    layout: str
    rows_read: int
    rows: int
    with_answer: int
    trained_on: int
    repeated: int
    unusable: dict[str, tuple[str, ...]]
    unread: Mapping[str, Occurrences] = field(default_factory=dict)
    shortened: Mapping[str, Occurrences] = field(default_factory=dict)
    remarks: Mapping[str, Occurrences] = field(default_factory=dict)
    sources: tuple[SourceCounts, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an inspected row.

    Attributes:
        id: Its number in the vocabulary.
        text: What it adds to the text. Of a character of several tokens the last one has the character, and those
            before it their bytes, as <0xE4>; so it is the spans that make up the text.
        loss: It carries loss.
    """

    id: int
    text: str
    loss: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of an inspected row that all carry loss, or none of them does.

    Attributes:
        text: Their text; the spans of a row, joined, are the row's text.
        loss: They carry loss.
        tokens: Their number.
    """

    text: str
    loss: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """A training row as the model sees it.

    Attributes:
        where: The place of the row.
        tokens: Its tokens.
        spans: The same, with neighbours merged.
        cut: It was truncated at data.max_length.
        stops: Its last token with loss is a stop token.
        notes: Remarks, such as what the chat template did to earlier turns.
    """

    where: str
    tokens: tuple[Token, ...]
    spans: tuple[Span, ...]
    cut: bool
    stops: bool
    notes: tuple[str, ...] = ()

    def loss_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(token.loss for token in self.tokens)


@dataclass(frozen=True, slots=True)
class PageWritten:
    """The page of `neft data inspect --html` was written.

    Attributes:
        path: The file.
        rows: Rows on it.
    """

    path: str
    rows: int
