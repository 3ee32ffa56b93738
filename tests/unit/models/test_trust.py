"""Code and pickles in models and adapters: what runs, what is read, and the messages.

Oracles: folders that only their code would make; the same files loaded by the library that would run them; the
written messages.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from neftcli.errors import ModelError
from neftcli.models.loading import (
    load_adapter,
    load_config,
    load_model,
    load_tokenizer,
    pretrained_arguments,
    require_pinned_code,
)
from neftcli.models.registry import ModelReference, resolve_model
from tests.tiny import tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OWN = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}


class Makes:
    """Make a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def pickles(folder: Path) -> dict[str, bytes]:
    """A bare pickle and one in torch's form that make `folder`."""
    stream = io.BytesIO()
    torch.save(Makes(folder), stream)
    return {"bare": pickle.dumps(Makes(folder), protocol=2), "torch": stream.getvalue()}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The folder that hostile files would create."""
    return tmp_path / "made"


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a tiny model, for changes."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "tiny"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as raised:
        load()
    return str(raised.value)


# Pickles


@pytest.mark.parametrize("kind", ["bare", "torch"])
def test_pickles_of_these_tests_make_the_folder(kind: str, made: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(pickles(made)[kind])
    if kind == "bare":
        pickle.loads((tmp_path / "x").read_bytes())  # noqa: S301 - that is the point
    else:
        torch.load(tmp_path / "x", weights_only=False)
    assert made.is_dir()


def only_pickle(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)


def an_index_that_names_pickles(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "shard.bin").write_bytes(content)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tiny_model("llama").state_dict(), "shard.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def an_adapter_beside_the_model(folder: Path, content: bytes) -> None:
    (folder / "adapter_model.bin").write_bytes(content)
    (folder / "adapter_config.json").write_text(
        json.dumps(LoraConfig(target_modules="all-linear").to_dict(), default=list)
    )


@pytest.mark.parametrize("kind", ["bare", "torch"])
@pytest.mark.parametrize("plant", [only_pickle, an_index_that_names_pickles])
def test_load_model_rejects_pickled_weights(
    plant: Callable[[Path, bytes], None], kind: str, folder: Path, made: Path
) -> None:
    plant(folder, pickles(made)[kind])
    said = refusal(lambda: load_model(resolve_model(str(folder)), torch.float32))
    assert "has only pickled weights (.bin), which can run code; neft doesn't read them" in said
    assert said.endswith(
        "  hint     load the model in an environment that you trust, and save it again with save_pretrained"
    )
    assert not made.exists()


def test_resolve_model_rejects_a_model_with_an_adapter(folder: Path, made: Path) -> None:
    """Otherwise transformers would load it on top of the model, from a pickle."""
    an_adapter_beside_the_model(folder, pickles(made)["torch"])
    assert "contains a model and an adapter" in refusal(lambda: resolve_model(str(folder)))
    assert not made.exists()


@pytest.mark.parametrize("kind", ["bare", "torch"])
def test_load_model_pickle_named_safetensors_is_damaged(kind: str, folder: Path, made: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickles(made)[kind])
    assert "is damaged" in refusal(lambda: load_model(resolve_model(str(folder)), torch.float32))
    assert not made.exists()


def test_load_model_does_not_open_pickles_next_to_safetensors(folder: Path, made: Path) -> None:
    """The weights are those in the safetensors file."""
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "vocab.pkl",
        "tokenizer.pkl",
        "tokenizer.bin",
    ):
        (folder / name).write_bytes(pickles(made)["torch"])
    model = load_model(resolve_model(str(folder)), torch.float32)
    load_tokenizer(resolve_model(str(folder)))
    expected = tiny_model("llama").state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    assert not made.exists()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The adapter's folder of a run."""
    get_peft_model(tiny_model("llama"), LoraConfig(target_modules="all-linear")).save_pretrained(
        tmp_path / "run" / "model"
    )
    return tmp_path / "run" / "model"


def test_load_adapter_rejects_a_pickle(adapter: Path, made: Path) -> None:
    """Also next to other safetensors files; and without any adapter file there is no request to the hub."""
    (adapter / "adapter_model.safetensors").rename(adapter / "other.safetensors")
    said = refusal(lambda: load_adapter(tiny_model("llama"), adapter))
    assert said.startswith(
        f"{adapter}: adapter_model.safetensors is missing\n  got      README.md, adapter_config.json"
    )
    for content in pickles(made).values():
        (adapter / "adapter_model.bin").write_bytes(content)
        said = refusal(lambda: load_adapter(tiny_model("llama"), adapter))
        assert said.startswith("model.name: run has only pickled weights (.bin)")
    assert not made.exists()


def test_load_adapter_rejects_other_types(adapter: Path) -> None:
    """Prompt tuning would load a tokenizer by name, with options (trust_remote_code) from its own file."""
    other = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    content = json.dumps(other.to_dict(), default=str)
    (adapter / "adapter_config.json").write_text(content.replace("PeftType.", ""))
    said = refusal(lambda: load_adapter(tiny_model("llama"), adapter))
    assert said.splitlines()[0] == f"{adapter}: the adapter of a run must be LoRA"


def test_load_adapter(adapter: Path) -> None:
    assert load_adapter(tiny_model("llama"), adapter).peft_config["default"].peft_type == "LORA"


# Code


def with_code(folder: Path, made: Path, prefix: str = "") -> ModelReference:
    """A model with its own configuration and model classes."""
    (folder / "own.py").write_text(
        f"import os\nos.makedirs({str(made)!r}, exist_ok=True)\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Own(LlamaConfig): model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM): config_class = Own\n"
    )
    edit(folder / "config.json", auto_map={key: prefix + name for key, name in OWN.items()}, model_type="own")
    return resolve_model(str(folder))


def test_load_model_runs_code_only_if_allowed(folder: Path, made: Path) -> None:
    reference = with_code(folder, made)
    load_tokenizer(reference)  # which has no code
    for load in (lambda: load_config(reference, False), lambda: load_model(reference, torch.float32)):
        said = refusal(load)
        assert "needs its own Python code, which neft doesn't run by default" in said
        assert said.endswith("  hint     read the code; if you trust it: --trust-remote-code")
    assert not made.exists()
    assert type(load_model(reference, torch.float32, trust_remote_code=True)).__name__ == "OwnModel"
    assert made.is_dir()


def test_load_tokenizer_does_not_run_code_by_default(folder: Path, made: Path) -> None:
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(made)!r})\n")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Slow", "own.Fast"]}, tokenizer_class="Fast")
    assert "doesn't run by default" in refusal(lambda: load_tokenizer(resolve_model(str(folder))))
    assert not made.exists()


HUB = ModelReference("owner/name", "hub", "owner/name")


@pytest.fixture
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on a request to the hub."""
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", pytest.fail)
    for module in ("transformers.utils.hub", "transformers.dynamic_module_utils"):
        monkeypatch.setattr(
            f"{module}.cached_file" if "dynamic" in module else f"{module}.hf_hub_download", pytest.fail
        )


@pytest.mark.usefixtures("_no_hub")
@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:7], COMMIT.upper(), f"{COMMIT}0", f" {COMMIT}"])
def test_require_pinned_code_rejects_hub_code_without_a_commit(revision: str | None) -> None:
    reference = ModelReference("owner/name", "hub", "owner/name", revision)
    for load in (
        lambda: require_pinned_code(reference, True),
        lambda: load_config(reference, True),
        lambda: load_tokenizer(reference, True),
        lambda: load_model(reference, torch.float32, trust_remote_code=True),
    ):
        assert refusal(load) == (
            "model.revision: code of owner/name runs only at a full commit id, which nobody can change\n"
            f"  got      {revision or 'no revision'}\n"
            "  hint     read the code at a commit, then: --trust-remote-code --revision COMMIT (all 40 characters)"
        )


def test_pretrained_arguments_use_the_commit() -> None:
    """Files and code; without code any revision is accepted."""
    assert pretrained_arguments(ModelReference("owner/name", "hub", "owner/name", COMMIT), True) == {
        "pretrained_model_name_or_path": "owner/name",
        "revision": COMMIT,
        "code_revision": COMMIT,
        "trust_remote_code": True,
    }
    assert pretrained_arguments(HUB, False)["revision"] is None


@pytest.mark.usefixtures("_no_hub")
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_require_pinned_code_rejects_code_from_the_hub(file: str, folder: Path) -> None:
    """The code there can change."""
    mapped = {"AutoConfig": "own.Own", "AutoTokenizer": ["own.Slow", "somebody/else--own.Fast"]}
    edit(folder / file, auto_map=mapped)
    assert refusal(lambda: load_tokenizer(resolve_model(str(folder)), True)) == (
        f"{folder / file}: code runs only from the model's own folder, where nobody else can change it\n"
        "  got      somebody/else--own.Fast\n"
        "  hint     copy the .py files into the folder (no links), and name them in auto_map as FILE.Class"
    )


@pytest.mark.parametrize("kind", ["absolute", "above", "in a linked folder", "custom_generate"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_require_pinned_code_rejects_code_outside_of_the_folder(
    kind: str, file: str, folder: Path, made: Path, tmp_path: Path
) -> None:
    """It could change without a trace in the model's fingerprint."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("own.py", "generate.py"):
        (outside / name).write_text(f"import os\nos.mkdir({str(made)!r})\n")
    (folder / "sub").symlink_to(outside)
    named = {"absolute": f"{outside}/own.Own", "above": "../outside/own.Own", "in a linked folder": "sub/own.Own"}
    if kind == "custom_generate":
        (folder / kind).symlink_to(outside)
    elif file == "config.json":
        edit(folder / file, auto_map={"AutoConfig": named[kind]}, model_type="own")
    else:
        edit(folder / file, auto_map={"AutoTokenizer": [None, named[kind]]}, tokenizer_class="Own")
    reference = resolve_model(str(folder))
    for load in (
        lambda: load_config(reference, True),
        lambda: load_tokenizer(reference, True),
        lambda: load_model(reference, torch.float32, trust_remote_code=True),
    ):
        said = refusal(load)
        assert "code runs only from the model's own folder, where nobody else can change it" in said
        assert f"got      {named.get(kind, 'a link')}\n" in said
    assert not made.exists()


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_load_model_does_not_fetch_kernels(name: str, folder: Path) -> None:
    """A configuration may name a kernel of the hub."""
    edit(folder / "config.json", **{name: "somebody/kernel"})
    said = refusal(lambda: load_model(resolve_model(str(folder)), torch.float32))
    assert "needs a package that is not installed" in said
    assert "kernels" in said
