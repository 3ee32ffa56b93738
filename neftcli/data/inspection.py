"""Rows as the model sees them: the text of each token, and whether it carries loss."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from neftcli.data.tokens import IGNORE_INDEX, TokenRow
from neftcli.events import InspectedRow, Span, Token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that `surrogateescape` could not decode


def inspect_row(tokenizer: PreTrainedTokenizerBase, row: TokenRow) -> InspectedRow:
    """Return a row with the text of its tokens, and its spans with and without loss."""
    losses = [False, *(label != IGNORE_INDEX for label in row.labels[1:])]
    texts = decode_tokens(tokenizer, row.input_ids)
    shown = display_texts(tokenizer, row.input_ids, texts)
    tokens = tuple(Token(*fields) for fields in zip(row.input_ids, shown, losses, strict=True))
    spans = []
    for loss, group in groupby(zip(texts, losses, strict=True), key=lambda pair: pair[1]):
        parts = [text for text, _ in group]
        spans.append(Span("".join(parts), loss, len(parts)))
    return InspectedRow(row.location, tokens, tuple(spans), row.truncated, row.ends_with_stop_token, row.remarks)


def decode_tokens(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds; joined they are the row's text.

    Of the tokens of one character, the last one adds it. Decodes a few tokens at a time, each piece together with the
    one before it, since a decoder may treat the beginning of a text differently.
    """
    texts: list[str] = []
    previous = start = 0  # first token of the previous piece, and of the piece that is not complete yet
    for end in range(1, len(token_ids) + 1):
        known = _decode(tokenizer, token_ids[previous:start])
        text = _decode(tokenizer, token_ids[previous:end])
        is_complete = text.startswith(known) and not text.endswith(UNKNOWN)
        if is_complete or end == len(token_ids):
            texts.append(text[len(known) :])
            previous, start = start, end
        else:
            texts.append("")
    return texts


def display_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], texts: Sequence[str]) -> list[str]:
    """Return each token for display: its text, or its bytes as <0xE4> if it is a part of a character."""
    alphabet = _byte_alphabet(tokenizer)
    displayed = []
    for text, piece in zip(texts, tokenizer.convert_ids_to_tokens(list(token_ids)), strict=True):
        if not text or text.endswith(UNKNOWN):
            text = _format_bytes(str(piece), alphabet) or text or UNKNOWN
        displayed.append(text)
    return displayed


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))


def _byte_alphabet(tokenizer: Any) -> dict[str, int]:
    """Return the byte that each character of a byte-level tokenizer's tokens stands for; empty for other tokenizers."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    if "ByteLevel" not in json.dumps(decoder):
        return {}
    return {character: byte for byte, character in bytes_to_unicode().items()}


def _format_bytes(piece: str, alphabet: dict[str, int]) -> str:
    """Return the text of a partial character, with its undecodable bytes as <0xE4>; an empty string if unknown."""
    if BYTE_TOKEN.fullmatch(piece):
        return piece
    if not alphabet or not all(character in alphabet for character in piece):
        return ""
    text = bytes(alphabet[character] for character in piece).decode("utf-8", "surrogateescape")
    return UNDECODED.sub(lambda match: f"<0x{ord(match[0]) - 0xDC00:02X}>", text)
