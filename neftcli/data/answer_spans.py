"""Positions of a conversation's turns in its rendering, found by marks around their contents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from neftcli.errors import DataError

if TYPE_CHECKING:
    from neftcli.data.chat import ChatFormat
    from neftcli.data.example import Example

MARK = 0xF8000
"""First of the private-use characters around each turn's content by which it is found in a rendering."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Marks in a rendering.

    Attributes:
        once: Number of a mark to its position, for the marks that occur once.
        seen: Numbers of all marks in the rendering.
        known: The marks change nothing else in the rendering.
    """

    once: dict[int, int]
    seen: frozenset[int]
    known: bool


class Marks:
    """Positions of the turns of a conversation in its rendering.

    The conversation is rendered once more with a private-use character on each side of every content, when a position
    is first needed. No position is known if that changes anything else in the rendering.

    Args:
        chat: The format that renders it.
        example: The conversation.
        text: Its rendering.
        turns: Number of turns that were rendered; None for all.
    """

    def __init__(self, chat: ChatFormat, example: Example, text: str, turns: int | None = None) -> None:
        self._chat, self._example, self._text, self._turns = chat, example, text, turns

    @cached_property
    def _found(self) -> _Found:
        try:
            marked = self._chat.marked(self._example, self._turns, self._turns is not None)
        except DataError:  # the template examines the contents, and rejects marked ones
            return _Found({}, frozenset(), known=False)
        every_mark = f"[{chr(MARK)}-{chr(MARK + 2 * len(self._example.turns))}]"
        places: dict[int, set[int]] = {}
        for before, mark in enumerate(re.finditer(every_mark, marked)):
            places.setdefault(ord(mark[0]) - MARK, set()).add(mark.start() - before)
        known = re.sub(every_mark, "", marked) == self._text
        once = {number: min(found) for number, found in places.items() if len(found) == 1 and known}
        return _Found(once, frozenset(places), known)

    @cached_property
    def starts(self) -> dict[int, int]:
        """Index of a turn to the first character of its content."""
        return {number // 2: at for number, at in self._found.once.items() if number % 2 == 0}

    @cached_property
    def ends(self) -> dict[int, int]:
        """Index of a turn to the character after its content."""
        return {number // 2: at for number, at in self._found.once.items() if number % 2}

    @cached_property
    def missing(self) -> set[int]:
        """Indices of turns whose content is not rendered."""
        places = range(len(self._example.turns[: self._turns]))
        found = self._found
        return {place for place in places if found.known and found.seen.isdisjoint((2 * place, 2 * place + 1))}

    @property
    def ends_if_known(self) -> dict[int, int]:
        """The ends, if they have been computed already; else empty."""
        return self.ends if "_found" in self.__dict__ else {}
