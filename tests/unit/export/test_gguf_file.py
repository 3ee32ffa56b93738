"""Writing .gguf files of each family.

Oracles: transformers' readers of .gguf files (weights, configuration, tokenizer), and its own scaling of Llama 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from neftcli.errors import ModelError
from neftcli.events import Event, Notice
from neftcli.export.gguf_file import GGUF_FAMILIES, load_gguf, require_gguf_support, write_gguf
from neftcli.export.gguf_vocabulary import LLAMA_3, QWEN_2, TEKKEN, read_gguf_vocabulary
from neftcli.export.logits import RunLogits
from neftcli.export.tuned_model import TunedModel
from tests.conftest import new_run
from tests.tiny import tiny_model, tiny_tokenizer

TEXT = "It's 1234 naïve words,\n\n  don't   split 🙂 <|im_end|> x</s>y"
SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA_3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


class Recorder:
    """Keep the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def notify(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def notices(self) -> list[str]:
        """Return the messages of the notices."""
        return [event.message for event in self.events if isinstance(event, Notice)]


def write(model: Any, tokenizer: Any, tmp_path: Path, quantization: str = "f32") -> Recorder:
    """Write a model to x.gguf."""
    recorder = Recorder()
    run = new_run(tmp_path, "tiny-a5-s0")
    tuned = TunedModel(model, tokenizer, RunLogits([], []), untied=False)
    write_gguf(tuned, run, quantization, tmp_path / "x.gguf", recorder)
    return recorder


def family_model(family: str, **overrides: Any) -> Any:
    if family == "llama":
        return tiny_model("llama", num_attention_heads=4, num_key_value_heads=2, **overrides).eval()
    configs: dict[str, Any] = {"mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs[family](**SIZES, **overrides), dtype=torch.float32)
    for parameter in model.parameters():  # otherwise biases are 0 and norms 1
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) * 0.1
    return model.eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", GGUF_FAMILIES)
def test_write_gguf_is_read_back(family: str, tied: bool, tmp_path: Path) -> None:
    model = family_model(family, tie_word_embeddings=tied)
    write(model, tiny_tokenizer(), tmp_path)
    read = load_gguf(tmp_path / "x.gguf", model.config)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        assert torch.equal(read.eval()(ids).logits, model(ids).logits)
    assert read.config.tie_word_embeddings is tied
    config = AutoConfig.from_pretrained(tmp_path, gguf_file="x.gguf")
    for name in ("hidden_size", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "vocab_size"):
        assert getattr(config, name) == pytest.approx(getattr(model.config, name)), name
    assert config.rope_parameters["rope_theta"] == model.config.rope_parameters["rope_theta"]


def test_write_gguf_with_biases(tmp_path: Path) -> None:
    model = family_model("llama", attention_bias=True)
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(projection.bias)
    write(model, tiny_tokenizer(), tmp_path)
    import gguf

    biases = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    attention = model.model.layers[1].self_attn
    assert torch.equal(biases["blk.1.attn_v.bias"], attention.v_proj.bias)
    assert torch.equal(biases["blk.1.attn_output.bias"], attention.o_proj.bias)
    for name, bias, heads in (("attn_q", attention.q_proj.bias, 4), ("attn_k", attention.k_proj.bias, 2)):
        width = len(bias) // heads
        order = [
            start + half * width // 2 + pair
            for start in range(0, len(bias), width)
            for pair in range(width // 2)
            for half in (0, 1)
        ]
        assert torch.equal(biases[f"blk.1.{name}.bias"], bias[order])


def test_write_gguf_llama_3_scaling(tmp_path: Path) -> None:
    import gguf

    model = family_model("llama", rope_parameters=LLAMA_3_SCALING, max_position_embeddings=512)
    write(model, tiny_tokenizer(), tmp_path)
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    plain = 1 / 10000 ** (torch.arange(0, 16, 2) / 16)
    expected = plain / model.model.rotary_emb.inv_freq  # transformers' own scaled frequencies
    torch.testing.assert_close(torch.tensor(tensors["rope_freqs.weight"]), expected)


@pytest.mark.parametrize(("quantization", "bound"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 127)])
def test_write_gguf_rounds_matrices(quantization: str, bound: float, tmp_path: Path) -> None:
    model = family_model("llama")
    write(model, tiny_tokenizer(), tmp_path, quantization)
    read = load_gguf(tmp_path / "x.gguf", model.config).state_dict()
    for name, weight in model.state_dict().items():
        difference = (read[name] - weight).abs().max()
        assert difference <= bound * weight.abs().max(), name
        if weight.dim() == 1:
            assert difference == 0
        elif quantization == "q8_0" and "proj" in name:
            assert difference > 0


def byte_level(pre_tokenizer: Any, *, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer on a few words."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT, "the words that they don't split", "12 123 1234"] * 3, trainer)
    special_tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)


def split(regex: str) -> Any:
    from tokenizers import Regex

    steps = [
        pre_tokenizers.Split(Regex(regex), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(steps)


BYTE_LEVEL = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "smollm": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        False,
    ),
    "llama-bpe": (split(LLAMA_3), True),
    "smaug-bpe": (split(LLAMA_3), False),
    "qwen2": (split(QWEN_2), False),
    "tekken": (split(TEKKEN), True),
}


@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_byte_level_tokenizer_is_read_back(pre: str, tmp_path: Path) -> None:
    tokenizer = byte_level(BYTE_LEVEL[pre][0], ignore_merges=BYTE_LEVEL[pre][1])
    assert read_gguf_vocabulary(tokenizer, len(tokenizer)).pre == pre
    write(family_model("llama", vocab_size=len(tokenizer)), tokenizer, tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    assert read(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert read.eos_token_id == tokenizer.eos_token_id


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Return a tokenizer such as Llama 2's: BPE with byte fallback, and a space before the text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "w"), ("o", "r"), ("d", "s"), ("▁w", "or")]
    pieces += ["".join(merge) for merge in merges]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz.,'0123456789"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    bpe = models.BPE(vocabulary, merges, unk_token=special["unk_token"], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_sentencepiece_tokenizer_is_read_back(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    vocabulary = read_gguf_vocabulary(tokenizer, len(tokenizer))
    assert (vocabulary.model, vocabulary.adds_space, vocabulary.unknown) == ("llama", True, 0)
    assert vocabulary.types[:4] == [2, 3, 3, 6]
    scores = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    assert scores["▁t"] > scores["he"] > scores["▁the"] > scores["▁wor"] > scores["a"]
    write(family_model("llama", vocab_size=len(tokenizer)), tokenizer, tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    text = "the words, there é\n12"
    assert read(text, add_special_tokens=False)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_tokens_without_embedding_or_text(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    vocabulary = read_gguf_vocabulary(tokenizer, 256)
    assert len(vocabulary.tokens) == 256
    assert vocabulary.tokens[-1] == "[PAD255]"
    assert vocabulary.types[-1] == 5
    assert len(read_gguf_vocabulary(tokenizer, 200).tokens) == 200


@pytest.mark.parametrize(
    ("pre_tokenizer", "message"),
    [(pre_tokenizers.Whitespace(), "neither byte-level nor"), (split(r"\w+"), "splitting rule")],
)
def test_unknown_tokenizer_is_rejected(pre_tokenizer: Any, message: str) -> None:
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    with pytest.raises(ModelError, match=message):
        read_gguf_vocabulary(tokenizer, len(tokenizer))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "opt"}, "the type opt"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "SiLU only"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "position scaling"),
    ],
)
def test_require_gguf_support_rejects(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        require_gguf_support(config)


def test_require_gguf_support_accepts_every_family() -> None:
    for kind in GGUF_FAMILIES:
        require_gguf_support({"model_type": kind})


def test_sliding_window_is_a_notice(tmp_path: Path) -> None:
    model = family_model("mistral", sliding_window=64)
    assert any("the last 64 tokens" in notice for notice in write(model, tiny_tokenizer(), tmp_path).notices())


def test_stop_tokens_are_eos_eot_eom(tmp_path: Path) -> None:
    from neftcli.models.gguf import read_gguf_stop_tokens

    run = new_run(tmp_path, "tiny-a5-s0")
    run.model.mkdir()
    (run.model / "generation_config.json").write_text('{"eos_token_id": [2, 7, 9, 11]}', encoding="utf-8")
    recorder = Recorder()
    tuned = TunedModel(family_model("llama"), tiny_tokenizer(), RunLogits([], []), untied=False)
    write_gguf(tuned, run, "f32", tmp_path / "x.gguf", recorder)
    assert read_gguf_stop_tokens(tmp_path / "x.gguf") == {2, 7, 9}
    assert any("three stop tokens" in notice for notice in recorder.notices())
    assert AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf").eos_token_id == 2
