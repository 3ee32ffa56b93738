"""Batches for symmetric noise, in which every row occurs twice: once with noise +e and once with -e."""

from collections.abc import Callable, Sequence
from typing import Any

Collator = Callable[[Sequence[Any]], dict[str, Any]]


class paired:  # noqa: N801 - reads like a function; a class so that workers can pickle it
    """A collator that returns all rows of a batch, followed by all of them again.

    The loss is the mean over both views, since its token count is taken from the doubled labels. A step computes twice
    as much as with uniform noise.
    """

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Collate `examples` twice into one batch."""
        return self.collator([*examples, *examples])
