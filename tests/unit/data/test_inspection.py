"""Rows shown token by token.

Oracles: the tokenizer's own decoding of the whole row, Python's UTF-8 codec for the bytes of a character, and labels
written out by hand.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from neftcli.data.inspection import UNKNOWN, decode_tokens, inspect_row
from neftcli.data.tokens import IGNORE_INDEX, TokenRow
from tests.tiny import tiny_tokenizer

TEXT = "The kettle boils. Die Brücke ist naß. 你好 世界 🙂 ok\n\tdef f(): return 1\n" * 3
TEXTS = [
    "",
    "plain",
    " two  spaces ",
    "你好，世界",
    "🙂🙂",
    "a🙂b你c",
    "naïve façade",
    "\n\n\t x",
    "👩‍👩‍👧 family",
    "� and �",
]


def byte_level() -> PreTrainedTokenizerFast:
    """Build a tokenizer like GPT-2's and SmolLM2's: rare characters are several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")  # noqa: S106


def byte_fallback() -> PreTrainedTokenizerFast:
    """Build one like LLaMA's: an unknown character becomes bytes such as <0xE4>; the first space is stripped."""
    vocabulary = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"Thektlboisadn.", "▁a", "he"]
    numbers = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
    model = models.BPE(numbers, [("▁", "a"), ("h", "e")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)  # noqa: S106
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")  # noqa: S106


TOKENIZERS = {"tiny": tiny_tokenizer(), "byte level": byte_level(), "byte fallback": byte_fallback()}


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=20)), cut=st.integers(0, 5))
def test_decode_tokens_joined_is_the_text(name: str, text: str, cut: int) -> None:
    """If the row is truncated within a character, the texts before that character."""
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(decode_tokens(tokenizer, ids)) == decoded(tokenizer, ids)
    kept = ids[: max(0, len(ids) - cut)]
    texts = decode_tokens(tokenizer, kept)
    assert len(texts) == len(kept)
    assert decoded(tokenizer, ids).startswith("".join(texts).rstrip(UNKNOWN))


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("character", ["好", "🙂", "ß"])
def test_inspect_row_character_of_several_tokens(name: str, character: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(f"a{character}a", add_special_tokens=False)["input_ids"]
    row = inspect_row(tokenizer, TokenRow(ids, ids, False, False, "row 1"))
    shown = [token.text for token in row.tokens]
    place = next(place for place, text in enumerate(shown) if character in text)
    if name != "byte level":  # one token for each byte; merges were learned there
        parts = [f"<0x{byte:02X}>" for byte in character.encode()]
        assert shown[place - len(parts) + 1 : place + 1] == [*parts[:-1], character]
    assert all(shown)
    assert "".join(span.text for span in row.spans) == decoded(tokenizer, ids)
    assert [token.id for token in row.tokens] == ids


def test_inspect_row_ends_within_a_character() -> None:
    tokenizer = TOKENIZERS["tiny"]
    ids = tokenizer("a🙂", add_special_tokens=False)["input_ids"][:-1]
    row = inspect_row(tokenizer, TokenRow(ids, ids, True, False, "row 1"))
    assert [token.text for token in row.tokens] == ["a", "<0xF0>", "<0x9F>", "<0x99>"]
    assert "".join(span.text for span in row.spans) == "a\N{REPLACEMENT CHARACTER}"


def test_inspect_row_merges_spans() -> None:
    """Tokens with the same loss form a span; the first token never carries loss, whatever its label."""
    tokenizer = TOKENIZERS["tiny"]
    ids = tokenizer("abcdef</s>", add_special_tokens=False)["input_ids"]
    labels = [ids[0], IGNORE_INDEX, ids[2], ids[3], IGNORE_INDEX, ids[5], ids[6]]
    row = inspect_row(tokenizer, TokenRow(ids, labels, False, True, "row 1", ("a note",)))
    spans = [(span.text, span.loss, span.tokens) for span in row.spans]
    assert spans == [("ab", False, 2), ("cd", True, 2), ("e", False, 1), ("f</s>", True, 2)]
    assert [token.loss for token in row.tokens] == [False, False, True, True, False, True, True]
    assert (row.loss_tokens(), row.notes) == (4, ("a note",))
