"""Tiny models and a tokenizer for tests: built in memory with random weights, from no file and no network.

Two layers, 64 wide (4-bit weights come in blocks of 64), a vocabulary of 256, dropout off. The four families differ in
what they do to their embeddings: Llama nothing, OPT adds learned positions, Gemma multiplies them by sqrt(hidden) in
the embedding itself, and Granite multiplies them by 12 after it. OPT and Gemma tie them to the output by default.
"""

import os
from typing import Any, Literal, get_args

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from neftcli.data.tokens import IGNORE_INDEX, TokenRow

Family = Literal["opt", "llama", "gemma", "granite"]
FAMILIES: tuple[Family, ...] = get_args(Family)
VOCABULARY = 256
HIDDEN = 64
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROTARY = {"intermediate_size": 128, "num_key_value_heads": 2}
_FAMILIES: dict[Family, tuple[Any, Any, dict[str, Any]]] = {
    "opt": (OPTConfig, OPTForCausalLM, {"ffn_dim": 128, "dropout": 0.0}),
    "llama": (LlamaConfig, LlamaForCausalLM, _ROTARY),
    "gemma": (GemmaConfig, GemmaForCausalLM, {**_ROTARY, "head_dim": 32}),
    "granite": (GraniteConfig, GraniteForCausalLM, {**_ROTARY, "embedding_multiplier": 12.0}),
}


def tiny_model(family: Family, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Build a causal language model in float32 and training mode; the same `seed` gives the same weights.

    Args:
        family: One of FAMILIES.
        seed: Seed of the weights; the global random state is unchanged.
        overrides: Fields of the configuration, such as `tie_word_embeddings=True` or `attention_dropout=0.1`.
    """
    config_class, model_class, extra = _FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config_class(**{**_BASE, **extra, **overrides}))
    return model.train()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token for each byte that UTF-8 uses, 247 in all: it encodes and decodes any text."""
    alphabet = _byte_characters()
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS.values(), *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=1024, **SPECIAL_TOKENS)


def save_tiny(folder: str | os.PathLike[str], family: Family, **overrides: Any) -> None:
    """Write `tiny_model(family, **overrides)` and its tokenizer to `folder`."""
    tiny_model(family, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def _byte_characters() -> list[str]:
    """Return the printable characters that byte-level tokenizers use, for the 243 bytes that UTF-8 text can hold."""
    # Steps of 63 meet every leading byte (64 characters or more share one) and every trailing byte.
    sample = [*range(0x80), *range(0x80, 0xD800, 63), *range(0xE000, 0x110000, 63)]
    step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return sorted(set(step.pre_tokenize_str("".join(map(chr, sample)))[0][0]))


def random_token_rows(lengths: list[int], seed: int = 0) -> list[TokenRow]:
    """Return rows of random tokens; a part in the middle of each has no loss."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        labels = [IGNORE_INDEX if length // 4 < place <= length // 2 else token for place, token in enumerate(ids)]
        rows.append(TokenRow(ids, labels, False, True, f"row {number}"))
    return rows
