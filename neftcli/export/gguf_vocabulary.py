r"""The vocabulary of a .gguf file: tokens, types, merges or scores, special tokens, and the rule that splits text.

llama.cpp tokenizes in two ways, and a tokenizer of transformers must be one of them:

    gpt2     byte-level BPE; the merges are in the file; `pre` names the regular expressions that split the text first
    llama    BPE of SentencePiece with byte fallback; the scores of the tokens give the order of the merges

The names of `pre` and their regular expressions are those of llama.cpp (`src/llama-vocab.cpp`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neftcli.errors import ModelError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in a .gguf file."""
SPACE = "▁"
"""SentencePiece's sign for a space."""
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_ENDING = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = rf"{_CASELESS}|\p{{N}}{{1,3}}|{_ENDING}"
QWEN_2 = rf"{_CASELESS}|\p{{N}}|{_ENDING}"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    (LLAMA_3, True): "llama-bpe",
    (LLAMA_3, False): "smaug-bpe",
    (QWEN_2, False): "qwen2",
    (TEKKEN, True): "tekken",
}
"""`pre` by the regular expression, and whether a word that is a token is never split (`ignore_merges`)."""


@dataclass(frozen=True)
class GgufVocabulary:
    """The vocabulary of a .gguf file.

    Attributes:
        model: gpt2 or llama.
        pre: Rule that splits text before merging: a name of llama.cpp.
        tokens: Text of each token; a token without a text is named [PAD7].
        types: Type of each token.
        merges: Merges in their order, "a b"; empty for llama.
        scores: Scores of the tokens; empty if there are merges in the file.
        adds_space: A space is put before the text; None for gpt2.
        adds_bos: Every text begins with the BOS token.
        bos: Id of the BOS token, or None.
        unknown: Id of the token for unknown characters, or None.
        padding: Id of the pad token, or None.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    adds_space: bool | None
    adds_bos: bool
    bos: int | None
    unknown: int | None
    padding: int | None


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer puts the BOS token before every text; llama.cpp then does as well."""
    bos = tokenizer.bos_token_id
    return bos is not None and bool(tokenizer("a")["input_ids"][:1] == [bos])


def read_gguf_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> GgufVocabulary:
    """Describe a tokenizer as llama.cpp needs it.

    Args:
        tokenizer: A fast tokenizer.
        size: Number of tokens that the model has embeddings for.

    Raises:
        ModelError: llama.cpp has no such tokenizer.
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe = settings["model"]
    if bpe.get("type") != "BPE":
        raise _unsupported("a tokenizer that is not BPE", str(bpe.get("type")))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    sentencepiece = bool(bpe.get("byte_fallback"))
    if sentencepiece:
        pre, adds_space = "default", _adds_space(settings)
    else:
        pre, adds_space = _find_split(settings, merges), None
    texts = {number: text for text, number in tokenizer.get_vocab().items() if number < size}
    added = {token["id"]: token for token in settings["added_tokens"]}
    unknown = tokenizer.unk_token_id if sentencepiece else None
    tokens, types = [], []
    for number in range(size):
        text = texts.get(number)
        if text is None:
            tokens.append(f"[PAD{number}]")
            types.append(UNUSED)
            continue
        kind = _token_type(text, added.get(number), sentencepiece=sentencepiece, unknown=number == unknown)
        tokens.append(text.replace(SPACE, " ") if kind == USER_DEFINED and sentencepiece else text)
        types.append(kind)
    bos = tokenizer.bos_token_id
    return GgufVocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[] if sentencepiece else merges,
        scores=_scores(tokens, types, merges) if sentencepiece or not merges else [],
        adds_space=adds_space,
        adds_bos=adds_bos(tokenizer),
        bos=_within(bos, size),
        unknown=_within(tokenizer.unk_token_id, size),
        padding=_within(tokenizer.pad_token_id, size),
    )


def _unsupported(what: str, got: str) -> ModelError:
    return ModelError(
        Problem(
            f"neft can't write {what} to a .gguf file",
            got,
            "neft merge RUN --out FOLDER    then llama.cpp's convert_hf_to_gguf.py FOLDER",
        )
    )


def _within(token: int | None, size: int) -> int | None:
    return token if token is not None and token < size else None


def _token_type(text: str, added: dict[str, Any] | None, *, sentencepiece: bool, unknown: bool) -> int:
    """Return the type of a token.

    Args:
        text: Its text.
        added: Its entry among the added tokens, or None.
        sentencepiece: Bytes are tokens such as <0x0A>.
        unknown: It stands for unknown characters.
    """
    if unknown:
        return UNKNOWN
    if sentencepiece and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return BYTE
    if added is None:
        return NORMAL
    looks_special = text.startswith("<|") and text.endswith("|>")  # some models don't mark them
    return CONTROL if added.get("special") or looks_special else USER_DEFINED


def _scores(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> list[float]:
    """Return scores that give the order of the merges: minus the rank of a token's first merge; 0 for special ones.

    llama.cpp merges the pair whose token has the highest score, the leftmost first.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    lowest = len(ranks)
    return [
        -float(ranks.get(token, lowest)) if kind == NORMAL else 0.0 for token, kind in zip(tokens, types, strict=True)
    ]


def _find_split(settings: dict[str, Any], merges: Sequence[str]) -> str:
    """Return llama.cpp's name of the rule by which a byte-level tokenizer splits text.

    Raises:
        ModelError: llama.cpp has no such rule.
    """
    normalizer = settings.get("normalizer")
    if normalizer is not None and normalizer.get("type") not in ("NFC", None):
        raise _unsupported("this tokenizer's normalizer", str(normalizer.get("type")))
    steps = settings.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise _unsupported("a tokenizer that is neither byte-level nor SentencePiece", str(last.get("type")))
    if len(steps) == 1 and (last.get("use_regex", True) or not merges):
        return "gpt-2"
    if len(steps) == 2:
        first, by_regex = steps[0], last.get("use_regex", True)
        if first.get("type") == "Digits" and first.get("individual_digits") and by_regex:
            return "smollm"
        if first.get("type") == "Split" and first.get("behavior") == "Isolated" and not by_regex:
            regex = first.get("pattern", {}).get("Regex", "")
            pre = SPLITS.get((regex, bool(settings["model"].get("ignore_merges"))))
            if pre is not None:
                return pre
    shown = json.dumps(steps, ensure_ascii=False)
    raise _unsupported("this tokenizer's splitting rule", shown if len(shown) < 200 else f"{shown[:200]}...")


def _adds_space(settings: dict[str, Any]) -> bool:
    """Return whether a SentencePiece tokenizer puts a space before the text."""
    normalizer = settings.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    if any(step.get("type") == "Prepend" for step in steps):
        return True
    splitter = settings.get("pre_tokenizer") or {}
    return splitter.get("type") == "Metaspace" and splitter.get("prepend_scheme", "always") != "never"
