"""Tokenised training and held-out splits of a recipe's examples, and their counts."""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from neftcli.data.dataset import ExampleDataset, TokenDataset
from neftcli.data.mixture import ExampleSplits, no_progress
from neftcli.data.splits import count_duplicates
from neftcli.data.token_cache import MIN_ROWS, hash_key, load_or_create
from neftcli.data.tokens import TokenRow, tokenize
from neftcli.errors import DataError, Problem
from neftcli.events import DataReady, SplitCounts
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.data.chat import ChatFormat
    from neftcli.data.rendering import LossOn
    from neftcli.recipe.schema import Data


@dataclass(frozen=True)
class PreparedData:
    """Tokenised rows, and the examples of the held-out split for generating answers.

    Attributes:
        train: Training rows.
        held_out: Held-out rows.
        held_out_examples: Their examples, in the same order.
        counts: Counts for the display.
    """

    train: TokenDataset
    held_out: TokenDataset
    held_out_examples: ExampleDataset
    counts: DataReady


def prepare(
    examples: ExampleSplits,
    data: Data,
    chat: ChatFormat,
    progress: Callable[[int, int], None] = no_progress,
) -> PreparedData:
    """Tokenise and count both splits.

    Args:
        examples: The result of `read_examples`.
        data: The recipe's data section.
        chat: The tokenizer with its chat template.
        progress: Called with the number of tokenised rows, and of all rows.

    Raises:
        DataError: No token would carry loss.
    """
    rows, done = len(examples.train) + len(examples.held_out), itertools.count(1)

    def report() -> None:
        progress(next(done), rows)

    train, train_indices = _tokenize_or_load(chat, examples.train, data, report)
    held_out, held_out_indices = _tokenize_or_load(chat, examples.held_out, data, report)
    empty_train = _other_locations(examples.train, train_indices)
    empty_held_out = _other_locations(examples.held_out, held_out_indices)
    skipped = {reason: tuple(locations) for reason, locations in examples.skipped.items()}
    if empty_train or empty_held_out:
        skipped[f"no token with loss within data.max_length {data.max_length}"] = (*empty_train, *empty_held_out)
    if not train:
        without_loss = count_noun(len(empty_train), "row")
        raise DataError(
            Problem(
                f"{data.source_name()}: no token would carry loss, so there is nothing to learn",
                f"{without_loss} whose prompt alone fills data.max_length {data.max_length}",
                f"--max-length {data.max_length * 4}",
            )
        )
    special_token_text = []
    for example in examples.train:
        if chat.special_tokens.find_special_token(example):
            special_token_text.append(example.location)
    counts = DataReady(
        source=data.source_name(),
        format=" + ".join(examples.row_formats),
        loss_on=_loss_on(data, examples.row_format),
        template="" if examples.row_format == "text" else chat.template,
        rows_read=examples.rows_read,
        skipped=skipped,
        duplicates=count_duplicates(examples.train),
        leaked=examples.leaked,
        special_token_text=tuple(special_token_text),
        train=count_tokens(train),
        held_out=count_tokens(held_out),
        fingerprint=data_fingerprint(examples.train, examples.held_out),
        unread_columns=dict(examples.notes.unread_columns),
        unread_turn_keys=dict(examples.notes.unread_turn_keys),
        dropped_turns=dict(examples.notes.shortened),
        remarks=dict(examples.notes.remarks),
        unused=examples.unused,
        sources=examples.sources,
    )
    return PreparedData(train, held_out, examples.held_out.select(held_out_indices), counts)


def _tokenize_or_load(
    chat: ChatFormat, examples: ExampleDataset, data: Data, progress: Callable[[], None]
) -> tuple[TokenDataset, Sequence[int]]:
    """Tokenise examples, through the token cache if there are many."""
    tokenizer = chat.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if len(examples) < MIN_ROWS or backend is None:
        return tokenize_dataset(chat, examples, data.max_length, data.loss_on, progress)
    key = hash_key(
        examples,
        backend.to_str(),
        repr(tokenizer.special_tokens_map),
        str(tokenizer.chat_template),
        repr(sorted(chat.stop_token_ids)),
        f"{data.max_length} {data.loss_on} {data.reasoning}",
    )
    return load_or_create(key, lambda: tokenize_dataset(chat, examples, data.max_length, data.loss_on, progress))


def tokenize_dataset(
    chat: ChatFormat,
    examples: ExampleDataset,
    max_length: int,
    loss_on: LossOn,
    progress: Callable[[], None] = no_progress,
) -> tuple[TokenDataset, Sequence[int]]:
    """Tokenise examples, and drop those without a token that carries loss.

    Args:
        chat: The tokenizer with its chat template.
        examples: The examples.
        max_length: Maximum tokens of a row.
        loss_on: The recipe's `data.loss_on`.
        progress: Called for each example.

    Returns:
        The tokenised rows, and the indices of their examples.
    """
    indices = array("q")

    def rows() -> Iterator[TokenRow]:
        for index, row in enumerate(tokenize(chat, examples, max_length, loss_on)):
            progress()
            if row.loss_tokens():
                indices.append(index)
                yield row

    return TokenDataset.from_rows(rows()), indices


def _other_locations(examples: ExampleDataset, indices: Sequence[int]) -> list[str]:
    """Return the locations of the examples whose index is not among these."""
    import numpy

    others = numpy.setdiff1d(numpy.arange(len(examples)), numpy.asarray(indices), assume_unique=True)
    return [example.location for example in examples.select(others)]


def _loss_on(data: Data, row_format: str) -> str:
    """Return the id of the tokens that carry loss."""
    if row_format == "text":
        return "all_tokens"
    ids = {"tokens": "all_tokens", "last": "last_answers", "completion": "completions"}
    return ids.get(data.loss_on, "answers")


def count_tokens(rows: Sequence[TokenRow]) -> SplitCounts:
    """Count the rows and tokens of a split."""
    if not rows:
        return SplitCounts()
    import numpy

    lengths, loss_tokens = array("l"), 0
    truncated, without_stop_token = [], []
    remarks: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        lengths.append(len(row.input_ids))
        loss_tokens += row.loss_tokens()
        if row.truncated:
            truncated.append(row.location)
        if not row.ends_with_stop_token:
            without_stop_token.append(row.location)
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
        without_stop_token=tuple(without_stop_token),
        remarks={remark: tuple(locations) for remark, locations in remarks.items()},
    )


def data_fingerprint(*splits: ExampleDataset) -> str:
    """Return the SHA-256 of the content of examples, split by split; locations are not part of it."""
    digest = sha256()
    for split in splits:
        for content in split.contents():
            digest.update(content)
        digest.update(b"\n")
    return digest.hexdigest()
