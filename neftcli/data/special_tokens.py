"""Special tokens in the data, kept apart from those that a chat template writes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from neftcli.data.formats import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ESCAPE = 0x10F000
"""First of the private characters that stand for special tokens in the data while a template is rendered.

Before one of these characters in the data itself; each one after it stands for a character of a special token.
"""
THINKING_TOKENS = frozenset(("<think>", "</think>", "[THINK]", "[/THINK]"))
"""In an answer they are the reasoning as the model writes it, also if the tokenizer calls them special."""


class Quoting:
    """Replaces special tokens in the data by private characters while a template is rendered, and back.

    Args:
        tokenizer: Whose special tokens they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._special = _special_texts(tokenizer)
        letters = sorted(set("".join(self._special)))
        self._hidden = {ord(letter): chr(ESCAPE + 1 + index) for index, letter in enumerate(letters)}
        self._letters = {hidden: chr(letter) for letter, hidden in self._hidden.items()}
        hidden = f"{chr(ESCAPE)}-{chr(ESCAPE + len(letters))}"
        self._to_quote = re.compile("|".join((f"[{hidden}]", *map(re.escape, self._special))))
        self._to_unquote = re.compile(f"{chr(ESCAPE)}(.)|[{hidden}]")
        self._quotes = re.compile(f"((?:{chr(ESCAPE)}.|[{hidden}])+)")

    def special_text(self, example: Example) -> str:
        """A special token of this tokenizer that occurs as text in the row, or an empty string."""
        texts = [example.text]
        for turn in example.turns:
            texts += [turn.content, turn.context, turn.reasoning, turn.tool_calls, turn.name]
        whole = "\n".join(texts)
        return next((token for token in self._special if token in whole), "")

    def quoted(self, text: str) -> str:
        """Replace each special token in the text by private characters.

        A special token in the data is text, not the end of a turn, so it is tokenised as ordinary characters
        (`pieces`); templates must not see it either.
        """
        return self._to_quote.sub(self._quote, text)

    def _quote(self, found: re.Match[str]) -> str:
        hidden = found[0] in self._letters or found[0] == chr(ESCAPE)
        return chr(ESCAPE) + found[0] if hidden else found[0].translate(self._hidden)

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """The text in pieces, each with whether it is a special token of the data (given back as it was written)."""
        pieces = self._quotes.split(text)
        return [(self.unquoted(piece), bool(index % 2)) for index, piece in enumerate(pieces) if piece]

    def unquoted(self, text: str) -> str:
        """The text as it was before `quoted`."""
        return self._to_unquote.sub(lambda found: found[1] or self._letters.get(found[0], ""), text)


def _special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The special tokens of a tokenizer as text, the longest first: named ones, and added ones that are special.

    Most control tokens of a chat template (Llama 3's `<|start_header_id|>`, Mistral's `[INST]`) have no name.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts = {str(token) for token in tokenizer.all_special_tokens if token} | added
    return tuple(sorted(texts - THINKING_TOKENS - {""}, key=lambda text: (-len(text), text)))
