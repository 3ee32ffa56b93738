"""Text of an answer while its tokens arrive: whole characters only, and where its reasoning begins and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neftcli.data.inspection import BYTE_TOKEN, UNKNOWN
from neftcli.data.tokenizer import THINK, THINK_END

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextStream:
    """Decodes the tokens of an answer one by one.

    The parts that `add` and `finish` return, joined, are the answer's text: without special tokens and without white
    space around it. A character of several tokens is returned once it is complete.

    Decodes a few tokens at a time, each piece together with the one before it, since a decoder may treat the beginning
    of a text differently.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._previous = self._start = 0  # first token of the previous piece, and of the piece that is not complete yet
        self._white_space = ""  # which may be at the end of the answer
        self._text = ""

    def add(self, token: int) -> str:
        """Add a token and return the text that is certain now; often empty."""
        self._ids.append(token)
        if BYTE_TOKEN.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token))):
            return ""  # if a run of such tokens is not UTF-8, its decoder replaces all of it
        if not self._decode([token]):
            return ""  # a special token: such a run continues after it
        known = self._decode(self._ids[self._previous : self._start])
        text = self._decode(self._ids[self._previous :])
        if text == known or not text.startswith(known) or text.endswith(UNKNOWN):
            return ""
        self._previous, self._start = self._start, len(self._ids)
        waiting = self._white_space + text[len(known) :]
        complete = waiting.rstrip()
        self._white_space = waiting[len(complete) :]
        if not self._text:
            complete = complete.lstrip()
            self._white_space = self._white_space if complete else ""
        self._text += complete
        return complete

    def finish(self, text: str) -> str:
        """Return what is left of the answer's whole text; all of it on a new line if the parts were not its beginning.

        Args:
            text: All tokens of the answer, decoded at once.
        """
        if text.startswith(self._text):
            return text[len(self._text) :]
        return f"\n{text}"  # of tokenizers that change the white space before a token once they see the token

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


class ReasoningSplitter:
    """Splits a text that arrives in parts into reasoning, from <think> to </think>, and the rest.

    Args:
        inside: The text begins within reasoning, because the prompt ends with <think>.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._inside = inside
        self._waiting = ""

    def add(self, text: str) -> list[tuple[str, bool]]:
        """Return parts of the text, each with whether it is reasoning; the markers belong to the reasoning."""
        self._waiting += text
        parts: list[tuple[str, bool]] = []
        while True:
            marker = THINK_END if self._inside else THINK
            before, found, after = self._waiting.partition(marker)
            if not found:
                break
            if self._inside:
                parts.append((before + marker, True))
                self._waiting = after
            else:
                parts.append((before, False))
                self._waiting = after
                parts.append((marker, True))
            self._inside = not self._inside
        held = _partial_marker(self._waiting, marker)
        parts.append((self._waiting[: len(self._waiting) - held], self._inside))
        self._waiting = self._waiting[len(self._waiting) - held :]
        return [part for part in parts if part[0]]

    def finish(self) -> list[tuple[str, bool]]:
        """Return what is left at the end of the text."""
        rest, self._waiting = self._waiting, ""
        return [(rest, self._inside)] if rest else []


def _partial_marker(text: str, marker: str) -> int:
    """Return the number of characters at the end of a text that may be the beginning of a marker."""
    return next((length for length in range(len(marker) - 1, 0, -1) if text.endswith(marker[:length])), 0)
