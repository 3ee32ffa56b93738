"""A tokenizer that fails on a text: its compiled code panics, and the message names the tokenizer and the row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from neftcli.errors import DataError, LibraryPanic, Problem, panics_as_errors


@contextmanager
def tokenizer_named(tokenizer: Any, where: str) -> Iterator[None]:
    """Names tokenizer and row if the tokenizer panics in the block, as at an expression that backtracks too often.

    Args:
        tokenizer: The model's.
        where: The place of the row.

    Raises:
        DataError: It panics.
    """
    try:
        with panics_as_errors():
            yield
    except LibraryPanic as panic:
        violated = f"{where}: the tokenizer of {tokenizer.name_or_path} fails on this text"
        remedy = "leave the row out, or a model whose tokenizer.json reads it"
        raise DataError(Problem(violated, panic.problems[0].received, remedy)) from panic
