"""Text of an answer while its tokens arrive.

Oracles: the tokenizer's own decoding of all tokens at once, and the text before it was split into parts.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from neftcli.inference.text_stream import ReasoningSplitter, TextStream
from tests.tiny import VOCABULARY, tiny_tokenizer

TINY = tiny_tokenizer()


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer like Llama 2's: the decoder removes the space before a text, and bytes are tokens."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "▁", "▁Hello", "▁world", "s", ".", "\n"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


METASPACE = metaspace_tokenizer()


def streamed(tokenizer: Any, ids: list[int]) -> tuple[list[str], str]:
    """Return the parts of a streamed answer, and its whole text."""
    text = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
    stream = TextStream(tokenizer)
    parts = [stream.add(token) for token in ids]
    return [*parts, stream.finish(text)], text


@given(st.text(max_size=40))
def test_text_stream_joins_to_the_text(text: str) -> None:
    """Of any text; and no part ends in the middle of a character: joined parts are those of the text."""
    parts, whole = streamed(TINY, TINY(text)["input_ids"])
    assert "".join(parts) == whole == text.strip()
    assert all("\N{REPLACEMENT CHARACTER}" not in part for part in parts if "\N{REPLACEMENT CHARACTER}" not in text)


@given(st.lists(st.integers(0, VOCABULARY - 10), max_size=40))
def test_text_stream_any_tokens(ids: list[int]) -> None:
    """Also of bytes that are no characters and special tokens, which models write now and then."""
    parts, whole = streamed(TINY, ids)
    assert "".join(parts) == whole


@given(st.lists(st.integers(0, len(METASPACE) - 1), max_size=30))
@example([204, 138, 0, 138])  # the bytes C2 80 are a character, but not with the 80 after the special token
def test_text_stream_keeps_spaces_of_metaspace_tokenizers(ids: list[int]) -> None:
    parts, whole = streamed(METASPACE, ids)
    assert "".join(parts) == whole


def test_text_stream_shows_characters_once_they_are_complete() -> None:
    """The tiny tokenizer has a token for each byte."""
    parts, _ = streamed(TINY, TINY("aé你😀")["input_ids"])
    assert parts == ["a", "", "é", "", "", "你", "", "", "", "😀", ""]


def test_text_stream_holds_white_space_back_until_text_follows() -> None:
    parts, _ = streamed(TINY, TINY("  a \n b  ")["input_ids"])
    assert parts == ["", "", "a", "", "", "", " \n b", "", "", ""]


def test_text_stream_repeats_a_text_that_changes_at_its_end() -> None:
    """A tokenizer that removes the space in front of a full stop once it decodes both."""
    stream = TextStream(TINY)
    shown = "".join(map(stream.add, TINY("a .")["input_ids"]))
    assert shown + stream.finish("a.") == "a .\na."


@pytest.mark.parametrize("inside", [False, True])
@given(st.text("ab<>/think ", max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_reasoning_splitter_does_not_depend_on_the_parts(inside: bool, text: str, cuts: list[int]) -> None:
    """Nothing is lost, and the parts in which a text arrives don't matter."""
    bounds = [0, *sorted(cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(bounds)]

    def split(given: list[str]) -> list[tuple[str, bool]]:
        splitter = ReasoningSplitter(inside=inside)
        parts = [part for piece in given for part in splitter.add(piece)] + splitter.finish()
        return [(letter, reasoning) for part, reasoning in parts for letter in part]

    assert split(pieces) == split([text])
    assert "".join(letter for letter, _ in split(pieces)) == text


@pytest.mark.parametrize(
    ("text", "inside", "reasoning"),
    [
        ("<think>a</think>b", False, "<think>a</think>"),
        ("a</think>b", True, "a</think>"),
        ("a < b", False, ""),
        ("a<think>b</think>c<think>d", False, "<think>b</think><think>d"),
        ("</think>a", False, ""),
    ],
)
def test_reasoning_splitter_marks_reasoning(text: str, inside: bool, reasoning: str) -> None:
    splitter = ReasoningSplitter(inside=inside)
    parts = [part for letter in text for part in splitter.add(letter)] + splitter.finish()
    assert "".join(part for part, is_reasoning in parts if is_reasoning) == reasoning
    assert json.dumps(parts).count('""') == 0
