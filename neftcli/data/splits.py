"""Keeps rows for evaluation so that no prompt stands on both sides.

Rows whose prompts are the same but for case, punctuation and white space form one group, and a group goes to one side
whole. Which groups are held out depends on the seed and the prompts, not on the order of the rows. Of each row no more
is kept in memory than sixteen bytes of a hash and its place.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from neftcli.data.example import Example

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Indices: TypeAlias = NDArray[numpy.int64]
    PromptHashes: TypeAlias = NDArray[numpy.bytes_]

MAX_HELD_OUT_FRACTION = 0.2


def normalize_prompt(prompt: str) -> str:
    """The prompt in lower case: letters with their accents, digits and signs of arithmetic, one space between."""
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(folded.translate(_KEPT).split())


def split_held_out(examples: Sequence[Example], rows: int, seed: int) -> tuple[Indices, Indices]:
    """Splits into training and held-out examples, each in the order given.

    Args:
        examples: All examples.
        rows: Rows to hold out; a fifth of all at most, and fewer where whole groups don't add up to it.
        seed: Chooses the groups.

    Returns:
        The places of (training, held out).
    """
    import numpy

    limit = min(rows, int(len(examples) * MAX_HELD_OUT_FRACTION))
    order, begins = _grouped(_digests((f"{seed}/{normalize_prompt(one.prompt())}" for one in examples), len(examples)))
    chosen, number = numpy.zeros(len(examples), dtype=bool), 0
    for begin, end in pairwise(begins):
        if number == limit:
            break
        if number + end - begin <= limit:
            chosen[order[begin:end]] = True
            number += end - begin
    return numpy.flatnonzero(~chosen), numpy.flatnonzero(chosen)


def exclude_prompts(examples: Sequence[Example], held_out: Sequence[Example]) -> Indices:
    """The places of the examples whose prompts do not stand in `held_out`."""
    import numpy

    prompts, gone = (
        _digests((normalize_prompt(one.prompt()) for one in side), len(side)) for side in (examples, held_out)
    )
    return numpy.flatnonzero(~numpy.isin(prompts, gone))


def sample_rows(examples: Sequence[Example], rows: int, seed: int) -> Indices:
    """The places of `rows` of the examples, chosen by the seed, in the order given."""
    import numpy

    keys = _digests((f"{seed}/{place}/{one.prompt()}" for place, one in enumerate(examples)), len(examples))
    return numpy.sort(numpy.argsort(keys, kind="stable")[:rows])


def count_duplicates(examples: Sequence[Example]) -> int:
    """How many examples repeat an earlier one, prompt and answer alike."""
    keys = _digests((f"{normalize_prompt(one.prompt())}\0{one.answer()}" for one in examples), len(examples))
    return len(examples) - (len(_grouped(keys)[1]) - 1)


def select_distinct(examples: Sequence[Example]) -> Indices:
    """The places of examples of which no two say the same, the last of each kind in the place of the first."""
    import numpy

    contents = (repr((one.turns, one.text, one.tools, one.completion)) for one in examples)
    order, begins = _grouped(_digests(contents, len(examples)))
    first, last = order[begins[:-1]], order[begins[1:] - 1]
    return last[numpy.argsort(first)]


def hash_prompts(examples: Sequence[Example]) -> PromptHashes:
    """What is asked anywhere in the examples, for `unseen`."""
    return _digests(normalize_prompt(prompt) for one in examples for prompt in one.prompts())


def select_unseen(examples: Sequence[Example], seen: PromptHashes) -> Indices:
    """The places of the examples that ask nothing of what was `seen`."""
    import numpy

    owners = numpy.repeat(numpy.arange(len(examples)), [len(one.prompts()) for one in examples])
    return numpy.setdiff1d(numpy.arange(len(examples)), owners[numpy.isin(hash_prompts(examples), seen)])


def _digests(keys: Iterable[str], number: int = -1) -> PromptHashes:
    """Sixteen bytes for each of `number` keys (-1: as many as come): two keys that differ never share them."""
    import numpy

    digests = (blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest() for key in keys)
    return numpy.fromiter(digests, dtype="S16", count=number)


def _grouped(digests: PromptHashes) -> tuple[Indices, Indices]:
    """Places in the order of their digests, and where in it each group of equal ones begins, with the end behind."""
    import numpy

    order = numpy.argsort(digests, kind="stable")
    ordered = digests[order]
    begins = 1 + numpy.flatnonzero(ordered[1:] != ordered[:-1])
    return order, numpy.unique(numpy.concatenate([[0], begins, [len(digests)]]))


def _kept(letter: str) -> str:
    """Letters, their marks and digits; signs of arithmetic and money as words of their own (3+5 is not 3*5)."""
    category = unicodedata.category(letter)
    if letter.isalnum() or category.startswith("M"):
        return letter
    return f" {letter} " if category in ("Sm", "Sc") or letter in "*/%^" else " "


class _Kept(dict[int, str]):
    """`_kept` of each letter, by its number; worked out once."""

    def __missing__(self, letter: int) -> str:
        self[letter] = kept = _kept(chr(letter))
        return kept


_KEPT = _Kept()
