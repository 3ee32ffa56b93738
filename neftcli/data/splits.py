"""Keeps rows for evaluation so that no prompt stands on both sides.

Rows whose prompts are the same but for case, punctuation and white space form one group, and a group goes to one side
whole. Which groups are held out depends on the seed and the prompts, not on the order of the rows.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b

from neftcli.data.formats import Example

LARGEST_SHARE = 0.2


def normalised(prompt: str) -> str:
    """The prompt in lower case: letters with their accents, digits and signs of arithmetic, one space between."""
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join("".join(_kept(letter) for letter in folded).split())


def hold_out(examples: Sequence[Example], rows: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Splits into training and held-out examples, each in the order given.

    Args:
        examples: All examples.
        rows: Rows to hold out; a fifth of all at most, and fewer where whole groups don't add up to it.
        seed: Chooses the groups.

    Returns:
        (training, held out).
    """
    limit = min(rows, int(len(examples) * LARGEST_SHARE))
    groups: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[normalised(example.prompt())].append(index)
    chosen: set[int] = set()
    for key in sorted(groups, key=lambda key: _order(seed, key)):
        if len(chosen) == limit:
            break
        if len(chosen) + len(groups[key]) <= limit:
            chosen.update(groups[key])
    train = [example for index, example in enumerate(examples) if index not in chosen]
    return train, [examples[index] for index in sorted(chosen)]


def without_prompts_of(examples: Sequence[Example], held_out: Sequence[Example]) -> list[Example]:
    """The examples whose prompts do not stand in `held_out`."""
    keys = {normalised(example.prompt()) for example in held_out}
    return [example for example in examples if normalised(example.prompt()) not in keys]


def choose(examples: Sequence[Example], rows: int, seed: int) -> list[Example]:
    """`rows` of the examples, chosen by the seed, in the order given."""
    order = sorted(range(len(examples)), key=lambda index: _order(seed, f"{index}/{examples[index].prompt()}"))
    return [examples[index] for index in sorted(order[:rows])]


def duplicates(examples: Sequence[Example]) -> int:
    """How many examples repeat an earlier one, prompt and answer alike."""
    return len(examples) - len({(normalised(example.prompt()), example.answer()) for example in examples})


def _kept(letter: str) -> str:
    """Letters, their marks and digits; signs of arithmetic and money as words of their own (3+5 is not 3*5)."""
    category = unicodedata.category(letter)
    if letter.isalnum() or category.startswith("M"):
        return letter
    return f" {letter} " if category in ("Sm", "Sc") or letter in "*/%^" else " "


def _order(seed: int, key: str) -> bytes:
    return blake2b(f"{seed}/{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
