"""Splits of examples into training and held-out rows, so that no prompt is in both.

Rows whose prompts differ only in case, punctuation and white space form a group, and each group belongs to one split.
Which groups are held out depends on the seed and the prompts, not on the order of the rows. A row takes 24 bytes of
memory: a hash and an index.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from neftcli.rows.example import Example

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Indices: TypeAlias = NDArray[numpy.int64]
    PromptHashes: TypeAlias = NDArray[numpy.bytes_]

MAX_HELD_OUT_FRACTION = 0.2


def normalize_prompt(prompt: str) -> str:
    """Return the prompt in lower case: letters with accents, digits and arithmetic signs, with single spaces."""
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(folded.translate(_NORMALIZED).split())


def split_held_out(examples: Sequence[Example], rows: int, seed: int) -> tuple[Indices, Indices]:
    """Split examples into training and held-out ones.

    Args:
        examples: All examples.
        rows: Number of rows to hold out; at most a fifth of all, and fewer if whole groups don't add up to it.
        seed: Seed that chooses the groups.

    Returns:
        The indices of the training and of the held-out examples, in order.
    """
    import numpy

    limit = min(rows, int(len(examples) * MAX_HELD_OUT_FRACTION))
    keys = (f"{seed}/{normalize_prompt(example.prompt())}" for example in examples)
    order, bounds = _group(_hash(keys, len(examples)))
    is_held_out = numpy.zeros(len(examples), dtype=bool)
    number = 0
    for begin, end in pairwise(bounds):
        if number == limit:
            break
        if number + end - begin <= limit:
            is_held_out[order[begin:end]] = True
            number += end - begin
    return numpy.flatnonzero(~is_held_out), numpy.flatnonzero(is_held_out)


def exclude_prompts(examples: Sequence[Example], held_out: Sequence[Example]) -> Indices:
    """Return the indices of the examples whose prompts are not in `held_out`."""
    import numpy

    prompts = _hash((normalize_prompt(example.prompt()) for example in examples), len(examples))
    excluded = _hash((normalize_prompt(example.prompt()) for example in held_out), len(held_out))
    return numpy.flatnonzero(~numpy.isin(prompts, excluded))


def sample_rows(examples: Sequence[Example], rows: int, seed: int) -> Indices:
    """Return the indices of a random sample of the examples, in order."""
    import numpy

    keys = (f"{seed}/{index}/{example.prompt()}" for index, example in enumerate(examples))
    return numpy.sort(numpy.argsort(_hash(keys, len(examples)), kind="stable")[:rows])


def count_duplicates(examples: Sequence[Example]) -> int:
    """Return the number of examples with the same prompt and answer as an earlier one."""
    keys = (f"{normalize_prompt(example.prompt())}\0{example.answer()}" for example in examples)
    bounds = _group(_hash(keys, len(examples)))[1]
    return len(examples) - (len(bounds) - 1)


def select_distinct(examples: Sequence[Example]) -> Indices:
    """Return the indices of examples without repeats; the last of identical ones takes the position of the first."""
    import numpy

    keys = (repr((example.turns, example.text, example.tools, example.completion)) for example in examples)
    order, bounds = _group(_hash(keys, len(examples)))
    first, last = order[bounds[:-1]], order[bounds[1:] - 1]
    return last[numpy.argsort(first)]


def hash_prompts(examples: Sequence[Example]) -> PromptHashes:
    """Return the hashes of all prompts of the examples, one for each answer, for `select_unseen`."""
    return _hash(normalize_prompt(prompt) for example in examples for prompt in example.prompts())


def select_unseen(examples: Sequence[Example], seen: PromptHashes) -> Indices:
    """Return the indices of the examples without a prompt in `seen`."""
    import numpy

    owners = numpy.repeat(numpy.arange(len(examples)), [len(example.prompts()) for example in examples])
    return numpy.setdiff1d(numpy.arange(len(examples)), owners[numpy.isin(hash_prompts(examples), seen)])


def _hash(keys: Iterable[str], number: int = -1) -> PromptHashes:
    """Return a 16-byte hash of each key; `number` is the number of keys, -1 if unknown."""
    import numpy

    digests = (blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest() for key in keys)
    return numpy.fromiter(digests, dtype="S16", count=number)


def _group(hashes: PromptHashes) -> tuple[Indices, Indices]:
    """Return the indices in the order of their hashes, and the bounds of the groups of equal hashes in that order."""
    import numpy

    order = numpy.argsort(hashes, kind="stable")
    ordered = hashes[order]
    begins = 1 + numpy.flatnonzero(ordered[1:] != ordered[:-1])
    return order, numpy.unique(numpy.concatenate([[0], begins, [len(hashes)]]))


def _normalize_letter(letter: str) -> str:
    """Return letters, marks and digits unchanged, signs of arithmetic and money as words, others as a space."""
    category = unicodedata.category(letter)
    if letter.isalnum() or category.startswith("M"):
        return letter
    return f" {letter} " if category in ("Sm", "Sc") or letter in "*/%^" else " "


class _NormalizedLetters(dict[int, str]):
    """Code point to `_normalize_letter`, computed once for each."""

    def __missing__(self, code_point: int) -> str:
        self[code_point] = normalized = _normalize_letter(chr(code_point))
        return normalized


_NORMALIZED = _NormalizedLetters()
