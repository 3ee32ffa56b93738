"""A tokenizer whose compiled code fails on a text; the message names the tokenizer and the row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from neftcli.errors import DataError, LibraryPanic, Problem, first_line, panics_as_errors


@contextmanager
def tokenizer_named(tokenizer: Any, where: str) -> Iterator[None]:
    """Names tokenizer and row if the tokenizer fails in the block, as at an expression that backtracks too often.

    Args:
        tokenizer: The model's.
        where: The place of the row.

    Raises:
        DataError: It fails.
    """
    try:
        with panics_as_errors():
            yield
    except Exception as error:
        if not is_tokenizers(error):
            raise
        got = error.problems[0].got if isinstance(error, LibraryPanic) else first_line(error)
        message = f"{where}: the tokenizer of {tokenizer.name_or_path} fails on this text"
        hint = "leave the row out, or a model whose tokenizer.json reads it"
        raise DataError(Problem(message, got, hint)) from error


def is_tokenizers(error: Exception) -> bool:
    """Return whether compiled code raised it: a panic, or a plain Exception, which tokenizers raises and Python not."""
    return isinstance(error, LibraryPanic) or type(error) is Exception
