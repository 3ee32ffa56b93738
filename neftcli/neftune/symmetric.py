"""Symmetric noise shows every row twice, once with +e and once with -e; this makes the batches for it."""

from collections.abc import Callable, Sequence
from typing import Any

Collator = Callable[[Sequence[Any]], dict[str, Any]]


class paired:  # noqa: N801 - reads as the function that it is; a class so that workers can pickle it
    """A collator that lays out all rows of a batch and then all of them again.

    The loss is the mean over both views, since its token count is taken from the doubled labels. A step costs
    twice the work of one with uniform noise.
    """

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        """The doubled batch of `examples`."""
        return self.collator([*examples, *examples])
