"""Rows as the model sees them: `neft data inspect`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from neftcli.data.tokens import IGNORED, TokenRow
from neftcli.events import InspectedRow, Observer, Span, Token
from neftcli.training.assets import report_data
from neftcli.training.validate import prepare_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neftcli.recipe.schema import Recipe

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as `surrogateescape` leaves them


def inspect_data(recipe: Recipe, rows: int, observer: Observer) -> None:
    """Counts the data and shows its first training rows token by token.

    Raises:
        InputError: The recipe names a model or data that can't be used.
    """
    prepared, chat, notices = prepare_inputs(recipe, observer, weights=False)
    report_data(prepared, notices, observer)
    for row in prepared.train[:rows]:
        observer.notify(inspect_row(chat.tokenizer, row))


def inspect_row(tokenizer: PreTrainedTokenizerBase, row: TokenRow) -> InspectedRow:
    """A row with the text of its tokens, and its spans with and without loss."""
    losses = [False, *(label != IGNORED for label in row.labels[1:])]
    texts = token_texts(tokenizer, row.input_ids)
    shown = token_labels(tokenizer, row.input_ids, texts)
    tokens = tuple(Token(*fields) for fields in zip(row.input_ids, shown, losses, strict=True))
    spans = []
    for loss, group in groupby(zip(texts, losses, strict=True), key=lambda pair: pair[1]):
        parts = [text for text, _ in group]
        spans.append(Span("".join(parts), loss, len(parts)))
    return InspectedRow(row.where, tokens, tuple(spans), row.cut, row.stops, row.remarks)


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds; joined they are the row's text. The last token of a character adds it.

    Decodes a few tokens at a time: a decoder may treat the beginning of a text differently, so each piece is
    decoded after the one before it.
    """
    texts: list[str] = []
    before = start = 0  # tokens of the piece before, and of the piece that is not complete yet
    for end in range(1, len(token_ids) + 1):
        known = _decoded(tokenizer, token_ids[before:start])
        text = _decoded(tokenizer, token_ids[before:end])
        complete = text.startswith(known) and not text.endswith(UNKNOWN)
        if complete or end == len(token_ids):
            texts.append(text[len(known) :])
            before, start = start, end
        else:
            texts.append("")
    return texts


def token_labels(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], texts: Sequence[str]) -> list[str]:
    """The label of each token: its text, or its bytes as <0xE4> if it is a part of a character."""
    alphabet = _byte_alphabet(tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(list(token_ids))
    return [
        text if text and not text.endswith(UNKNOWN) else _bytes_of(str(piece), alphabet) or text or UNKNOWN
        for text, piece in zip(texts, pieces, strict=True)
    ]


def _decoded(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False))


def _byte_alphabet(tokenizer: Any) -> dict[str, int]:
    """Character of a token to the byte that it stands for, with a byte-level tokenizer; empty for other tokenizers."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    if "ByteLevel" not in json.dumps(decoder):
        return {}
    return {character: byte for byte, character in bytes_to_unicode().items()}


def _bytes_of(piece: str, alphabet: dict[str, int]) -> str:
    """The text of a token that is a part of a character, its bytes that are no text as <0xE4>; "" if unknown."""
    if BYTE_TOKEN.fullmatch(piece):
        return piece
    if not alphabet or not all(character in alphabet for character in piece):
        return ""
    text = bytes(alphabet[character] for character in piece).decode("utf-8", "surrogateescape")
    return UNDECODED.sub(lambda found: f"<0x{ord(found[0]) - 0xDC00:02X}>", text)
