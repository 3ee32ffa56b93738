"""The held-out rows of a sweep in two: one half chooses the arm, the other one, untouched, says how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from neftcli.data.splits import normalised


def chooses(questions: Sequence[str]) -> list[bool]:
    """For each question whether its row is of the half that chooses.

    Prompts are ordered by a hash and taken in turn, so that equal prompts stay on one side and the sides do not depend
    on the order of the rows.
    """
    prompts = [normalised(question) for question in questions]
    order = sorted(set(prompts), key=lambda prompt: blake2b(prompt.encode("utf-8", "surrogatepass")).digest())
    first = set(order[::2])
    return [prompt in first for prompt in prompts]
