"""Loading of tokenizers and models, and the messages of failures.

Oracles: the tiny model that was saved, weight for weight; NF4's table of levels for the 4-bit weights; files broken
on purpose, and the written message for each.
"""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from neftcli.errors import ModelError
from neftcli.models import gguf
from neftcli.models.gguf import pretrained_location
from neftcli.models.loading import (
    build_meta_model,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    read_stop_tokens,
)
from neftcli.models.registry import ModelReference, resolve_model
from tests.tiny import FAMILIES, Family, save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `save_pretrained` wrote; read-only."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    save_tiny(folder, "llama")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder in the current one, for changes."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(saved, "tiny"))


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes a key."""
    content = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")


def load(folder: Path, **options: Any) -> Any:
    return load_model(resolve_model(str(folder)), torch.float32, **options)


def said_of_model(folder: Path) -> str:
    with pytest.raises(ModelError) as raised:
        load(folder)
    return str(raised.value)


def said_of_tokenizer(folder: Path) -> str:
    with pytest.raises(ModelError) as raised:
        load_tokenizer(resolve_model(str(folder)))
    return str(raised.value)


# Tokenizers


def test_load_tokenizer_equals_the_saved_one(saved: Path) -> None:
    """The same tokens, and no notices."""
    tokenizer, notices = load_tokenizer(resolve_model(str(saved)))
    assert notices == []
    text = "Größe? 🦜"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "</s>")


@pytest.mark.parametrize(("unknown", "pads"), [("<unk>", "<unk>"), (None, "</s>")])
def test_load_tokenizer_sets_a_missing_pad_token(unknown: str | None, pads: str, folder: Path) -> None:
    """The unknown token, or the end-of-text token if there is none."""
    edit(folder / "tokenizer_config.json", pad_token=None, unk_token=unknown)
    tokenizer, notices = load_tokenizer(resolve_model("tiny"))
    assert tokenizer.pad_token == pads
    assert notices == [f"the tokenizer has no pad token; neft pads with {pads} (padding has neither loss nor noise)"]
    assert len(tokenizer) == len(tiny_tokenizer())


def test_load_tokenizer_pad_token_beyond_the_embedding(folder: Path) -> None:
    """A token with an embedding pads instead, with a notice."""
    edit(folder / "tokenizer_config.json", pad_token="[PAD]", unk_token=None)  # noqa: S106
    tokenizer, notices = load_tokenizer(resolve_model("tiny"), vocabulary=247)
    assert tokenizer.pad_token == "</s>"  # noqa: S105
    assert notices == [
        "the pad token [PAD] (id 247) has no embedding: the model has 247; neft pads with </s> "
        "(padding has neither loss nor noise)"
    ]
    assert load_tokenizer(resolve_model("tiny"), vocabulary=248)[0].pad_token == "[PAD]"  # noqa: S105


def test_load_tokenizer_end_of_text_token_beyond_the_embedding(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token="<end>")  # noqa: S106
    with pytest.raises(ModelError) as raised:
        load_tokenizer(resolve_model("tiny"), vocabulary=247)
    assert str(raised.value).splitlines()[:2] == [
        "the end-of-text token is a token without an embedding in the model",
        "  got      <end>, id 247; the model's vocabulary has 247 tokens (ids 0 to 246)",
    ]


def test_load_tokenizer_rejects_a_missing_end_of_text_token(folder: Path) -> None:
    """A model tuned with it would never learn to stop."""
    edit(folder / "tokenizer_config.json", eos_token=None)
    first, second, third = said_of_tokenizer(folder).splitlines()
    assert first == "model.name: the tokenizer of tiny has no end-of-text token"
    assert second.startswith("  got      ")
    assert third == "  hint     set eos_token in its tokenizer_config.json"


def test_load_tokenizer_missing(folder: Path) -> None:
    """A folder with weights only."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert said_of_tokenizer(folder) == (
        "model.name: tiny has no tokenizer\n"
        "  got      neither tokenizer.json nor files from which transformers can build it\n"
        f"  hint     save the tokenizer in the same folder: tokenizer.save_pretrained({str(folder)!r})"
    )


def test_load_tokenizer_damaged(folder: Path) -> None:
    """The message names the file."""
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    first, second, third = said_of_tokenizer(folder).splitlines()
    assert first == "model.name: tiny can't be loaded"
    assert second.startswith("  got      tokenizer.json is not valid JSON: ")
    assert third == "  hint     download the model again, or save it again with save_pretrained"


# Models


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_load_model_equals_the_saved_one(family: Family, tied: bool, tmp_path: Path) -> None:
    """Every weight equals the saved one in the requested type."""
    save_tiny(tmp_path, family, tie_word_embeddings=tied)
    expected = tiny_model(family, tie_word_embeddings=tied).state_dict()
    for dtype in (torch.float32, torch.bfloat16):
        found = load_model(resolve_model(str(tmp_path)), dtype).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight.to(dtype)) for name, weight in expected.items())


def test_load_model_of_a_gguf_uses_its_conversion(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights and tokenizer are read from the cache, not from the .gguf file."""
    asked = []

    def found(file: Path) -> Path:
        asked.append(file)
        return saved

    monkeypatch.setattr(gguf, "convert_gguf", found)
    reference = ModelReference("x.gguf", "gguf", str(tmp_path / "x.gguf"))
    assert pretrained_location(reference) == str(saved)
    assert load_model(reference, torch.float32).config.hidden_size == 64
    assert load_tokenizer(reference)[1] == []
    assert asked == [tmp_path / "x.gguf"] * 3


BREAK: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda whole: whole[:5000], "is truncated: 5,000 bytes instead of 462,176"),
    "truncated in its header": (lambda whole: whole[:100], "header can't be read (100 bytes)"),
    "a garbage header": (lambda whole: b"\xff" * len(whole), "header can't be read"),
    "a header that is not JSON": (lambda whole: whole[:8] + b"\xff" * 200 + whole[208:], "header can't be read"),
    "empty": (lambda whole: b"", "header can't be read (0 bytes)"),
}


@pytest.mark.parametrize("kind", BREAK)
def test_load_model_damaged_weights(kind: str, folder: Path) -> None:
    """The message names the file and its damage."""
    damage, reason = BREAK[kind]
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    first, second, third = said_of_model(folder).splitlines()
    assert first == "model.name: a weight file of tiny is damaged"
    assert second.startswith("  got      model.safetensors is ")
    assert reason in second
    assert third == "  hint     download model.safetensors again, or save the model again with save_pretrained"


class Runs:
    """Write a file when unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return _ran, ("ran",)


def _ran(name: str) -> None:
    Path(name).touch()


def test_load_model_rejects_pickled_weights_unopened(folder: Path) -> None:
    """The message has a hint, and no code runs."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs()))
    first, second, third = said_of_model(folder).splitlines()
    assert first == "model.name: tiny has only pickled weights (.bin), which can run code; neft doesn't read them"
    assert second.startswith("  got      ")
    assert third == "  hint     load the model in an environment that you trust, and save it again with save_pretrained"
    assert not Path("ran").exists()


def test_load_model_no_weights(folder: Path) -> None:
    """A folder with a tokenizer and a configuration only."""
    (folder / "model.safetensors").unlink()
    first, second, third = said_of_model(folder).splitlines()
    assert first == "model.name: tiny can't be read"
    assert second.startswith("  got      ")
    assert third == "  hint     download the model again, or save it again with save_pretrained"


def test_load_model_missing_weight_file(folder: Path) -> None:
    """An index that names a missing file."""
    shutil.move(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")
    weights = dict.fromkeys(tiny_model("llama").state_dict(), "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": weights | {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert said_of_model(folder).splitlines()[0] == "model.name: tiny can't be read"


@pytest.mark.parametrize(
    ("ending", "found"),
    [
        ("layers.1.mlp.up_proj.weight", "1 missing: model.layers.1.mlp.up_proj.weight"),
        (
            "proj.weight",
            "14 missing: model.layers.0.mlp.down_proj.weight, model.layers.0.mlp.gate_proj.weight, "
            "model.layers.0.mlp.up_proj.weight, ...",
        ),
    ],
)
def test_load_model_rejects_missing_weights(ending: str, found: str, folder: Path) -> None:
    """They are named; transformers would initialise them at random."""
    file = folder / "model.safetensors"
    kept = {name: weight for name, weight in load_file(file).items() if not name.endswith(ending)}
    save_file(kept, file, {"format": "pt"})
    assert said_of_model(folder) == (
        "model.name: the weight files of tiny lack weights of its config.json\n"
        f"  got      {found}\n"
        "  hint     download the model again, or save it again with save_pretrained"
    )


def test_load_model_rejects_different_shapes(folder: Path) -> None:
    """A config.json of a different model."""
    edit(folder / "config.json", vocab_size=300)
    assert said_of_model(folder) == (
        "model.name: the weights of tiny don't have the shapes given in its config.json\n"
        ""
        "  hint     download the model again, or save it again with save_pretrained"
    )


def test_load_model_damaged_config(folder: Path) -> None:
    """The model and the tokenizer give the same message."""
    (folder / "config.json").write_text("{", encoding="utf-8")
    for said in (said_of_model(folder), said_of_tokenizer(folder)):
        first, second, _ = said.splitlines()
        assert first == "model.name: tiny can't be read"
        assert "config.json" in second


@pytest.mark.parametrize(
    ("size", "received"),
    [
        (-1, "Trying to create tensor with negative dimension -1: [-1, 64]"),
        (2**62, f"Storage size calculation overflowed with sizes=[{2**62}, 64]"),
        (10**30, "empty(): argument 'size' failed to unpack the object"),
    ],
)
def test_load_model_impossible_sizes(size: int, received: str, folder: Path) -> None:
    """The message blames config.json, with and without loading weights."""
    edit(folder / "config.json", vocab_size=size, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    reference = resolve_model(str(folder))
    with pytest.raises(ModelError) as raised:
        build_meta_model(reference, load_config(reference, False), False)
    for said in (said_of_model(folder), str(raised.value)):
        first, second, _ = said.splitlines()
        assert first == "model.name: config.json of tiny has sizes that no model can have"
        assert second.startswith(f"  got      {received}")


OWN_MODEL = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
class Own(LlamaConfig): model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = Own
    def __init__(self, config):
        super().__init__(config)
        with open("built", "a") as file:
            file.write("1")
        {then}
"""


def with_own_model(folder: Path, then: str) -> None:
    (folder / "own.py").write_text(OWN_MODEL.format(then=then), encoding="utf-8")
    edit(folder / "config.json", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"})
    edit(folder / "config.json", model_type="own")


def test_load_model_passes_on_errors_of_model_code(folder: Path) -> None:
    """The error is that of the code, which builds the model once."""
    with_own_model(folder, 'raise RuntimeError("not here")')
    with pytest.raises(RuntimeError, match="not here"):
        load(folder, trust_remote_code=True)
    assert Path("built").read_text() == "1"
    reference = resolve_model(str(folder))
    with pytest.raises(ModelError) as raised:
        build_meta_model(reference, load_config(reference, True), True)
    assert str(raised.value) == (
        "model.name: the code of tiny can't build the model without its weights\n"
        "  got      not here\n"
        "  hint     build the model on torch's meta device, as transformers does"
    )


def test_load_model_passes_on_out_of_memory(folder: Path) -> None:
    with_own_model(folder, 'raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")')
    with pytest.raises(torch.OutOfMemoryError):
        load(folder, trust_remote_code=True)


def test_load_model_does_not_run_code_by_default(folder: Path) -> None:
    """The hint names the flag that allows it, and no code runs."""
    code = "from pathlib import Path\nPath('ran').touch()\n"
    for name in ("configuration_own.py", "modeling_own.py"):
        (folder / name).write_text(code, encoding="utf-8")
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    edit(folder / "config.json", auto_map=own, model_type="own")
    assert said_of_model(folder) == (
        "model.name: tiny needs its own Python code, which neft doesn't run by default\n"
        "  got      model.trust_remote_code: false\n"
        "  hint     read the code; if you trust it: --trust-remote-code"
    )
    assert not Path("ran").exists()


# 4-bit weights


# Levels of NF4 (Dettmers et al., arXiv 2305.14314, appendix E): the widest gap between two is from -1 to -0.6962.
WIDEST_GAP = 1 - 0.6961928


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_load_model_four_bit_weights_are_close_to_the_saved_ones(family: Family, double: bool, tmp_path: Path) -> None:
    """Linear layers are within half of NF4's widest gap of the saved weights; all others are equal."""
    import bitsandbytes

    save_tiny(tmp_path, family)
    original = tiny_model(family)
    model = load(tmp_path, four_bit=True, double_quantization=double, compute_dtype=torch.float32)
    quantised = {
        name: module for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)
    }
    linear = {name for name, module in original.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(quantised) == linear - {"lm_head"}
    for name, module in quantised.items():
        state = module.weight.quant_state
        assert (state.quant_type, state.nested, module.compute_dtype) == ("nf4", double, torch.float32)
        wanted = original.get_submodule(name).weight
        found = bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
        largest = wanted.abs().reshape(-1, 64).amax(1, keepdim=True)  # a constant for every 64 weights
        allowed = (WIDEST_GAP / 2 + (0.02 if double else 1e-5)) * largest  # doubly quantised constants are off by 2 %
        assert ((found - wanted).reshape(-1, 64).abs() <= allowed).all()
        assert module.weight.numel() == wanted.numel() / 2  # two weights a byte
    whole = {name: weight for name, weight in original.named_parameters() if weight.dim() == 1 or "embed" in name}
    assert all(torch.equal(dict(model.named_parameters())[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_load_model_stored_in_four_bits(compute: torch.dtype, saved: Path, tmp_path: Path) -> None:
    """The same weights as after quantisation while loading, multiplied in the requested type."""
    made = load(saved, four_bit=True, double_quantization=True, compute_dtype=compute).eval()
    made.save_pretrained(tmp_path)
    stored = load(tmp_path, four_bit=True, compute_dtype=compute).eval()
    layers = [module for module in stored.modules() if type(module).__name__ == "Linear4bit"]
    assert {layer.compute_dtype for layer in layers} == {compute}
    tokens = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(made(input_ids=tokens).logits, stored(input_ids=tokens).logits)


@pytest.mark.parametrize("part", ["weight_scale_inv", "qweight", "weight.absmax"])
def test_load_model_rejects_quantised_weights_without_a_quantization_config(part: str, folder: Path) -> None:
    """Otherwise transformers would misread the weights, or initialise them at random."""
    file = folder / "model.safetensors"
    save_file(load_file(file) | {f"model.layers.0.mlp.up_proj.{part}": torch.ones(1)}, file, {"format": "pt"})
    said = said_of_model(folder).splitlines()
    assert said[0] == "model.name: the weight files of tiny are quantised, but its config.json doesn't say how"
    assert said[1].startswith("  got      1 weight such as model.layers.0.mlp.up_proj.")


def test_load_model_four_bit_on_a_cpu(saved: Path) -> None:
    """Its loss is close to that of the saved model."""
    model = load(saved, four_bit=True, compute_dtype=torch.float32).eval()
    original = tiny_model("llama").eval()
    tokens = torch.arange(3, 60)[None]
    with torch.no_grad():
        losses = [one(input_ids=tokens, labels=tokens).loss.item() for one in (model, original)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


# Fingerprints


def test_model_fingerprint_of_a_folder(saved: Path, folder: Path) -> None:
    """It doesn't depend on location or other files, and changes with a single weight."""
    model = load(folder)
    before = model_fingerprint(resolve_model(str(saved)), model.config)
    (folder / "README.md").write_text("changed", encoding="utf-8")
    assert model_fingerprint(resolve_model("tiny"), model.config) == before
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert model_fingerprint(resolve_model("tiny"), model.config) != before


def test_model_fingerprint_of_a_gguf_and_a_hub_model(tmp_path: Path) -> None:
    """The hash of the file, and the loaded commit."""
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    model = tiny_model("llama")
    assert model_fingerprint(resolve_model(str(file)), model.config) == f"sha256 {hashlib.sha256(b'GGUF').hexdigest()}"
    model.config._commit_hash = "0123abc"
    assert model_fingerprint(resolve_model("owner/name"), model.config) == "commit 0123abc"


def test_load_tokenizer_is_fast(saved: Path) -> None:
    """Labels need the offsets of tokens."""
    assert AutoTokenizer.from_pretrained(saved)("ab", return_offsets_mapping=True)["offset_mapping"] == [(0, 1), (1, 2)]


def settings_folder(path: Path, config: Any, generation: Any = None) -> str:
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}), encoding="utf-8")
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, set()),
        ({"eos_token_id": 2}, None, {2}),
        ({"eos_token_id": [1, 106]}, None, {1, 106}),
        ({"eos_token_id": 2}, {"eos_token_id": [2, 106]}, {2, 106}),
        ({"eos_token_id": 2}, {"eos_token_id": 7}, {7}),
        ({"eos_token_id": 2}, {"temperature": 0.6}, {2}),
        ({"text_config": {"eos_token_id": [1, 106]}}, {}, {1, 106}),
    ],
)
def test_read_stop_tokens(tmp_path: Path, config: Any, generation: Any, expected: set[int]) -> None:
    """generation_config.json has precedence over config.json; one id or a list."""
    assert read_stop_tokens(resolve_model(settings_folder(tmp_path, config, generation))) == expected


def test_read_stop_tokens_damaged_file(tmp_path: Path) -> None:
    """A damaged generation_config.json is an error."""
    name = settings_folder(tmp_path, {"eos_token_id": 2})
    (tmp_path / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        read_stop_tokens(resolve_model(name))
