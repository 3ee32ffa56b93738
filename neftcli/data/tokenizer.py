"""Text through the model's tokenizer: special tokens in the data, text after other text, and failing tokenizers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from neftcli.errors import DataError, LibraryPanic, Problem, first_line, panics_as_errors
from neftcli.rows.example import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ESCAPE = 0x10F000
"""First of the private-use characters that replace special tokens of the data while a template is rendered.

This one escapes private-use characters of the data itself; each one after it stands for a character of a special token.
"""
THINK, THINK_END = "<think>", "</think>"
THINKING_TOKENS = frozenset((THINK, THINK_END, "[THINK]", "[/THINK]"))
"""Markers of reasoning; in an answer they are tokens even if the tokenizer calls them special."""


class SpecialTokenEscaper:
    """Replaces special tokens in the data with private-use characters while a template is rendered, and back.

    A special token in the data is text, not the end of a turn: templates must not see it, and it is tokenised as
    ordinary characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._special = _special_token_texts(tokenizer)
        letters = sorted(set("".join(self._special)))
        self._to_private = {ord(letter): chr(ESCAPE + 1 + index) for index, letter in enumerate(letters)}
        self._from_private = {private: chr(letter) for letter, private in self._to_private.items()}
        private = f"{chr(ESCAPE)}-{chr(ESCAPE + len(letters))}"
        self._to_escape = re.compile("|".join((f"[{private}]", *map(re.escape, self._special))))
        self._to_unescape = re.compile(f"{chr(ESCAPE)}(.)|[{private}]")
        self._escaped = re.compile(f"((?:{chr(ESCAPE)}.|[{private}])+)")

    def find_special_token(self, example: Example) -> str:
        """Return a special token of this tokenizer that occurs as text in the row, or an empty string."""
        texts = [example.text]
        for turn in example.turns:
            texts += [turn.content, turn.context, turn.reasoning, turn.tool_calls, turn.name]
        joined = "\n".join(texts)
        return next((token for token in self._special if token in joined), "")

    def escape(self, text: str) -> str:
        """Replace each special token in the text with private-use characters."""
        return self._to_escape.sub(self._escape_match, text)

    def _escape_match(self, match: re.Match[str]) -> str:
        is_private = match[0] in self._from_private or match[0] == chr(ESCAPE)
        return chr(ESCAPE) + match[0] if is_private else match[0].translate(self._to_private)

    def unescape(self, text: str) -> str:
        """Undo `escape`."""
        return self._to_unescape.sub(lambda match: match[1] or self._from_private.get(match[0], ""), text)

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Split an escaped text into unescaped pieces, each with whether it is a special token of the data."""
        pieces = self._escaped.split(text)
        return [(self.unescape(piece), bool(index % 2)) for index, piece in enumerate(pieces) if piece]


def _special_token_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the special tokens of a tokenizer as text, longest first: named ones, and special added ones.

    Most control tokens of chat templates (Llama 3's `<|start_header_id|>`, Mistral's `[INST]`) have no name.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts = {str(token) for token in tokenizer.all_special_tokens if token} | added
    return tuple(sorted(texts - THINKING_TOKENS - {""}, key=lambda text: (-len(text), text)))


class ContinuationEncoder:
    """Tokenises text that follows other text.

    Some tokenizers put a space before every text. Text that follows other text must not get one, unless it follows an
    added token, after which these tokenizers begin a new text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _added(self) -> dict[int, str]:
        return {index: text for text, index in self._tokenizer.get_added_vocab().items()}

    @cached_property
    def _without_space(self) -> Any:
        """The same tokenizer without the space before a text."""
        from tokenizers import Tokenizer

        settings = json.loads(self._tokenizer.backend_tokenizer.to_str())
        return Tokenizer.from_str(json.dumps(_remove_leading_space(settings)))

    def encode(self, text: str, before: Sequence[int], *, as_characters: bool) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: The text; not empty.
            before: Token ids of the text before it.
            as_characters: Tokenise special tokens in the text as ordinary characters.
        """
        ids: list[int]
        if as_characters:
            self._without_space.encode_special_tokens = True
            ids = self._without_space.encode(text, add_special_tokens=False).ids
            return ids
        if not before:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids
        if last := self._added.get(before[-1]):
            ids = self._tokenizer(last + text, add_special_tokens=False)["input_ids"]
            if ids[:1] == [before[-1]]:  # false if the added token is white space that merges with what follows
                return ids[1:]
        self._without_space.encode_special_tokens = False
        ids = self._without_space.encode(text, add_special_tokens=False).ids
        return ids


def _remove_leading_space(part: Any) -> Any:
    """Return a part of a tokenizer.json without the step that puts a space before a text."""
    if isinstance(part, list):
        return [_remove_leading_space(item) for item in part]
    if not isinstance(part, dict):
        return part
    changed = {key: _remove_leading_space(value) for key, value in part.items() if key not in ("vocab", "merges")}
    changed |= {key: part[key] for key in ("vocab", "merges") if key in part}
    if part.get("type") == "Metaspace":
        return changed | {"prepend_scheme": "never"}
    if part.get("type") == "ByteLevel":
        return changed | {"add_prefix_space": False}
    if part.get("type") == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    return changed


@contextmanager
def tokenizer_errors(tokenizer: Any, location: str) -> Iterator[None]:
    """Turn a failure of the tokenizer's compiled code within the block into an error that names tokenizer and row.

    An example is a regular expression that exceeds its backtracking limit.

    Raises:
        DataError: The tokenizer failed.
    """
    try:
        with panics_as_errors():
            yield
    except Exception as error:
        if not is_tokenizer_error(error):
            raise
        got = error.problems[0].got if isinstance(error, LibraryPanic) else first_line(error)
        raise DataError(
            Problem(
                f"{location}: the tokenizer of {tokenizer.name_or_path} fails on this text",
                got,
                "remove the row, or use a model with a different tokenizer",
            )
        ) from error


def is_tokenizer_error(error: Exception) -> bool:
    """Return whether compiled code raised an error: a panic, or a plain `Exception`, which only tokenizers raises."""
    return isinstance(error, LibraryPanic) or type(error) is Exception
