"""Tokenises text that follows other text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Continuation:
    """Tokenises text that follows other text.

    Some tokenizers put a space before every text they are given. What follows other text has none, unless it follows an
    added token, after which those tokenizers begin a new text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _added(self) -> dict[int, str]:
        return {index: text for text, index in self._tokenizer.get_added_vocab().items()}

    @cached_property
    def _backend(self) -> Any:
        """The same tokenizer without the space before a text."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(
            json.dumps(_without_leading_space(json.loads(self._tokenizer.backend_tokenizer.to_str())))
        )

    def encode(self, text: str, before: Sequence[int], *, as_characters: bool) -> list[int]:
        """The tokens of a text after those of `before`.

        Args:
            text: Not empty.
            before: Token ids of what it follows.
            as_characters: Special tokens in it are ordinary characters.
        """
        ids: list[int]
        if as_characters:
            self._backend.encode_special_tokens = True
            ids = self._backend.encode(text, add_special_tokens=False).ids
            return ids
        if not before:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids
        if last := self._added.get(before[-1]):
            ids = self._tokenizer(last + text, add_special_tokens=False)["input_ids"]
            if ids[:1] == [before[-1]]:  # not so if the token is white space that grows with what follows
                return ids[1:]
        self._backend.encode_special_tokens = False
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return ids


def _without_leading_space(part: Any) -> Any:
    """A part of a tokenizer.json with no space put before a text."""
    if isinstance(part, list):
        return [_without_leading_space(item) for item in part]
    if not isinstance(part, dict):
        return part
    changed = {key: _without_leading_space(value) for key, value in part.items() if key not in ("vocab", "merges")}
    changed |= {key: part[key] for key in ("vocab", "merges") if key in part}
    if part.get("type") == "Metaspace":
        return changed | {"prepend_scheme": "never"}
    if part.get("type") == "ByteLevel":
        return changed | {"add_prefix_space": False}
    if part.get("type") == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    return changed
