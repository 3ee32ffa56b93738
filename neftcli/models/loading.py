"""Load a tokenizer, a model and an adapter, and turn the libraries' errors into messages with a hint.

Only safetensors files are read, never pickles. Code that comes with a model runs only if the recipe allows it.
"""

from __future__ import annotations

import importlib.util
import re
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from neftcli.errors import LibraryPanic, ModelError, NeftError, Problem, panics_as_errors
from neftcli.models.files import (
    CODE_SETTINGS,
    CUSTOM_GENERATE,
    REFETCH,
    code_file,
    code_references,
    find_damaged_file,
    is_code_elsewhere,
    model_sha256,
    require_inside,
)
from neftcli.models.gguf import convert_gguf
from neftcli.models.registry import ALIASES, ModelReference
from neftcli.models.validate import find_file, read_json, stored_quantization
from neftcli.system.files import file_sha256
from neftcli.system.hub import add_hub_settings
from neftcli.system.paths import closest_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neftcli.recipe.schema import Recipe
    from neftcli.system.device import ComputeConfig

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A full commit id of the hub."""
IMPOSSIBLE_SIZE = re.compile("negative dimension|Storage size calculation overflowed|Overflow when unpacking")
"""torch's messages for a tensor whose size is negative or exceeds 64 bits."""


def pretrained_location(reference: ModelReference) -> str:
    """Return a model's hub id or folder for `from_pretrained`; a .gguf file is converted first."""
    return str(convert_gguf(Path(reference.location))) if reference.kind == "gguf" else reference.location


def pretrained_arguments(reference: ModelReference, trust_remote_code: bool) -> dict[str, Any]:
    """Return the arguments of every `from_pretrained`: location, revision, and whether the model's code may run.

    Raises:
        ModelError: The recipe allows code that somebody else can change, or a file is not in the model's folder.
    """
    if reference.kind == "folder":
        require_inside(Path(reference.location), reference.name)
    require_pinned_code(reference, trust_remote_code)
    return {
        "pretrained_model_name_or_path": pretrained_location(reference),
        "revision": reference.revision,
        # Without it transformers would take the newest code of a different repository that the configuration names.
        "code_revision": reference.revision,
        "trust_remote_code": trust_remote_code,
    }


def require_pinned_code(reference: ModelReference, trust_remote_code: bool) -> None:
    """Check that code which may run comes from one commit of the hub, or is in the model's folder.

    Raises:
        ModelError: Somebody else can change the code.
    """
    if not trust_remote_code:
        return
    if reference.kind == "hub" and not COMMIT.fullmatch(reference.revision or ""):
        raise ModelError(
            Problem(
                f"model.revision: code of {reference.location} runs only at a full commit id, which nobody can change",
                reference.revision or "no revision",
                "read the code at a commit, then: --trust-remote-code --revision COMMIT (all 40 characters)",
            )
        )
    if reference.kind == "folder":
        _require_own_code(Path(reference.location))


def _require_own_code(folder: Path) -> None:
    """Check that all code that a trusted model names is in its folder.

    Raises:
        ModelError: Some of it is elsewhere: on the hub, at an absolute path, above the folder, or in a linked folder.
    """
    named = [(file, name) for file in CODE_SETTINGS for name in code_references(folder / file)]
    elsewhere = [(file, name) for file, name in named if "--" in name or is_code_elsewhere(folder, code_file(name))]
    if is_code_elsewhere(folder, CUSTOM_GENERATE):
        elsewhere.append((CUSTOM_GENERATE, "a link"))
    if elsewhere:
        file, got = elsewhere[0]
        raise ModelError(
            Problem(
                f"{folder / file}: code runs only from the model's own folder, where nobody else can change it",
                got,
                "copy the .py files into the folder (no links), and name them in auto_map as FILE.Class",
            )
        )


def load_tokenizer(
    reference: ModelReference, trust_remote_code: bool = False, vocabulary: int | None = None
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Load a tokenizer, and set a pad token if it has none.

    Args:
        reference: The model.
        trust_remote_code: Run code that comes with the tokenizer.
        vocabulary: Number of tokens that the model has embeddings for; None if unknown.

    Returns:
        The tokenizer, and notices about a pad token that was set.

    Raises:
        ModelError: It can't be reached or read, is a slow tokenizer without token offsets, or the model has no
            embedding for its end-of-text token.
    """
    from transformers import AutoTokenizer

    with translate_load_errors(reference):
        tokenizer = AutoTokenizer.from_pretrained(**pretrained_arguments(reference, trust_remote_code))
        tokenizer("a")  # a damaged tokenizer_config.json fails only when the tokenizer is used
    if not tokenizer.is_fast:
        raise ModelError(
            Problem(
                f"model.name: {reference.name} has a slow tokenizer, without the offsets of tokens",
                "no tokenizer.json",
                f"save a fast tokenizer in the same folder: {_save_call(reference)}",
            )
        )
    if tokenizer.eos_token is None:
        raise ModelError(
            Problem(
                f"model.name: the tokenizer of {reference.name} has no end-of-text token",
                "eos_token is not set",
                "set eos_token in its tokenizer_config.json",
            )
        )
    if vocabulary is not None and tokenizer.eos_token_id >= vocabulary:
        raise missing_embedding_error("the end-of-text token", tokenizer, tokenizer.eos_token_id, vocabulary)
    return tokenizer, _set_missing_pad_token(tokenizer, vocabulary)


def _save_call(reference: ModelReference) -> str:
    """Return the Python call that saves a tokenizer in the model's folder."""
    folder = repr(reference.location) if reference.kind == "folder" else "folder"
    return f"tokenizer.save_pretrained({folder})"


def _set_missing_pad_token(tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> list[str]:
    """Set a pad token that the model has an embedding for, unless there is one; return notices."""
    pad_token, pad_id = tokenizer.pad_token, tokenizer.pad_token_id
    if pad_token is not None and (vocabulary is None or pad_id < vocabulary):
        return []
    has_unknown = tokenizer.unk_token is not None and (vocabulary is None or tokenizer.unk_token_id < vocabulary)
    tokenizer.pad_token = tokenizer.unk_token if has_unknown else tokenizer.eos_token
    if pad_token is None:
        reason = "the tokenizer has no pad token"
    else:
        reason = f"the pad token {pad_token} (id {pad_id}) has no embedding: the model has {vocabulary}"
    return [f"{reason}; neft pads with {tokenizer.pad_token} (padding has neither loss nor noise)"]


def missing_embedding_error(
    location: str, tokenizer: PreTrainedTokenizerBase, token: int, vocabulary: int
) -> ModelError:
    """Return the error for a token id that the model has no embedding for.

    Args:
        location: Location and role of the token, the beginning of the message.
        tokenizer: The tokenizer.
        token: The token id.
        vocabulary: Number of tokens that the model has embeddings for.
    """
    text = tokenizer.convert_ids_to_tokens(token)
    return ModelError(
        Problem(
            f"{location} is a token without an embedding in the model",
            f"{text}, id {token}; the model's vocabulary has {vocabulary} tokens (ids 0 to {vocabulary - 1})",
            "use the tokenizer of this model, or extend the model: "
            "model.resize_token_embeddings(len(tokenizer)), then save_pretrained",
        )
    )


QUANTISED_PARTS = (
    *(".qweight", ".qzeros", ".scales", ".absmax", ".quant_map", ".SCB"),
    *(".weight_scale", ".weight_scale_inv", ".weight_packed", "_blocks", "_scales"),
)
"""Suffixes of tensor names that occur only in quantised weights."""


def load_model(
    reference: ModelReference,
    dtype: torch.dtype,
    *,
    four_bit: bool = False,
    double_quantization: bool = True,
    compute_dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a model: on the training device if it is quantised, else on the CPU.

    Args:
        reference: The model.
        dtype: Type of the weights that aren't quantised.
        four_bit: Quantise the weights to NF4 (QLoRA).
        double_quantization: Quantise the quantisation constants too.
        compute_dtype: Type in which 4-bit weights are multiplied.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ModelError: It can't be reached or read, or weights are missing.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    require_pinned_code(reference, trust_remote_code)
    stored = stored_quantization(read_json(reference, "config.json"))
    if (four_bit or stored) and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            Problem(
                "4-bit and 8-bit weights need the bitsandbytes package",
                "it is not installed",
                "pip install bitsandbytes, or use unquantised weights with --lora",
            )
        )
    if stored:  # validated before; only the type of the products is changed
        options["config"] = config = load_config(reference, trust_remote_code)
        config.quantization_config["bnb_4bit_compute_dtype"] = str(compute_dtype or dtype).removeprefix("torch.")
    elif four_bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double_quantization,
            bnb_4bit_compute_dtype=compute_dtype,
        )
    model: PreTrainedModel
    with translate_load_errors(reference):
        model, report = AutoModelForCausalLM.from_pretrained(
            **pretrained_arguments(reference, trust_remote_code),
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if reference.kind == "hub" and (file := find_file(reference, "config.json", cached=True)) is not None:
        require_inside(file.parent, reference.name)
    if leftover := sorted(name for name in report["unexpected_keys"] if name.endswith(QUANTISED_PARTS)):
        raise ModelError(
            Problem(
                f"model.name: the weight files of {reference.name} are quantised, but its config.json doesn't say how",
                f"{len(leftover)} weights such as {leftover[0]}",
                "use the folder as published, or a model with unquantised weights",
            )
        )
    if report["missing_keys"]:  # transformers would initialise them at random
        missing = sorted(report["missing_keys"])
        raise ModelError(
            Problem(
                f"model.name: the weight files of {reference.name} lack weights of its config.json",
                f"{len(missing)} missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
                REFETCH,
            )
        )
    disable_avx512_repacking(model)
    return model


def load_model_for_recipe(recipe: Recipe, reference: ModelReference, compute: ComputeConfig) -> PreTrainedModel:
    """Load the model of a recipe onto the device, quantised if the recipe says so, without adapters.

    Raises:
        ModelError: It can't be found or read.
    """
    import torch

    quantization = recipe.quantization
    model = load_model(
        reference,
        compute.weights_dtype,
        four_bit=quantization.type == "nf4",
        double_quantization=quantization.double_quantization,
        compute_dtype=torch.bfloat16 if compute.bfloat16 else torch.float32,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    if not getattr(model, "is_quantized", False):  # quantised models are on the device already
        model.to(compute.device)
    return model


def load_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add the LoRA adapter in `folder` to a model.

    Raises:
        ModelError: The adapter's files are missing, pickled or damaged, or it isn't LoRA, or doesn't fit the model.
    """
    from peft import PeftConfig, PeftModel

    reference = ModelReference(folder.parent.name, "folder", str(folder))
    if not (folder / "adapter_model.safetensors").is_file():  # peft would try a pickle, and then the hub
        files = ", ".join(sorted(item.name for item in folder.iterdir()))
        if (folder / "adapter_model.bin").is_file():
            raise _pickled_error(reference, files)
        raise ModelError(
            Problem(f"{folder}: adapter_model.safetensors is missing", files, "repeat the run with neft train")
        )
    require_inside(folder, str(folder))
    with translate_load_errors(reference):
        kind = PeftConfig.from_pretrained(str(folder)).peft_type
        if kind != "LORA":  # other types can load further models and tokenizers that their files name
            raise ModelError(
                Problem(f"{folder}: the adapter of a run must be LoRA", str(kind), "repeat the run with neft train")
            )
        return PeftModel.from_pretrained(model, str(folder))


def disable_avx512_repacking(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit weights when they are evaluated on a CPU.

    On processors with AVX512-BF16, its layers repack themselves permanently for a kernel without a gradient, at their
    first forward pass in evaluation mode. A model that is evaluated before training, as in every run of neft, would
    then be trained with wrong gradients; torch only warns.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def model_fingerprint(reference: ModelReference, config: Any) -> str:
    """Return a model's fingerprint: the commit on the hub, or the SHA-256 of the .gguf file or the folder's files."""
    if reference.kind == "hub":
        return f"commit {getattr(config, '_commit_hash', None)}"
    with translate_load_errors(reference):
        if reference.kind == "gguf":
            return f"sha256 {file_sha256(Path(reference.location))}"
        return f"sha256 {model_sha256(Path(reference.location))}"


def load_config(reference: ModelReference, trust_remote_code: bool) -> Any:
    """Load a model's configuration, without its weights.

    Raises:
        ModelError: The model can't be reached.
    """
    from transformers import AutoConfig

    with translate_load_errors(reference):
        return AutoConfig.from_pretrained(**pretrained_arguments(reference, trust_remote_code))


def build_meta_model(reference: ModelReference, config: Any, trust_remote_code: bool) -> PreTrainedModel:
    """Build a model from its configuration on the meta device, without storage for its weights.

    Raises:
        ModelError: The configuration describes no model that can be built.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with translate_load_errors(reference), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except RuntimeError as error:
        if not trust_remote_code or isinstance(error, torch.OutOfMemoryError):
            raise
        message = f"model.name: the code of {reference.name} can't build the model without its weights"
        hint = "build the model on torch's meta device, as transformers does"
        raise ModelError(Problem(message, _first_line(error), hint)) from error
    return model


@contextmanager
def translate_load_errors(reference: ModelReference) -> Iterator[None]:
    """Turn the libraries' exceptions within the block into a `ModelError` with a hint."""
    from huggingface_hub import errors as hub

    name = reference.name
    try:
        with panics_as_errors():
            yield
    except hub.GatedRepoError:
        raise _gated_error(reference) from None
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError):
        raise ModelError(
            Problem(
                "model.name: the hub has no such model or revision, or it is private",
                reference.describe_source(),
                "neft models    lists the aliases; log in for a private model: hf auth login",
            )
        ) from None
    except OSError as error:
        raise _unreadable_error(reference, error) from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                Problem(
                    f"model.name: {name} needs its own Python code, which neft doesn't run by default",
                    "model.trust_remote_code: false",
                    "read the code; if you trust it: --trust-remote-code"
                    + (", with a commit as --revision" if reference.kind == "hub" else ""),
                )
            ) from None
        if "backend tokenizer" in str(error):
            raise ModelError(
                Problem(
                    f"model.name: {name} has no tokenizer",
                    "neither tokenizer.json nor files from which transformers can build it",
                    f"save the tokenizer in the same folder: {_save_call(reference)}",
                )
            ) from error
        raise _unloadable_error(reference, error) from error
    except UnpicklingError as error:  # an index that names pickles; torch rejects them with weights_only
        raise _pickled_error(reference, "an index of safetensors that names files of other types") from error
    except ImportError as error:
        raise ModelError(
            Problem(f"model.name: {name} needs a package that is not installed", _first_line(error))
        ) from error
    except LibraryPanic as error:  # in tokenizer.json or in weights
        raise _unloadable_error(reference, error) from error
    except NeftError:
        raise
    except Exception as error:
        model_error = _damaged_file_error(reference, error)
        if model_error is None:
            raise
        raise model_error from error


def _damaged_file_error(reference: ModelReference, error: Exception) -> ModelError | None:
    """Return the error for damaged files; None if a library or the machine is the cause."""
    name = reference.name
    if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
        details = _find_damage(reference) or (str(error), REFETCH)
        return ModelError(Problem(f"model.name: a weight file of {name} is damaged", *details))
    if isinstance(error, RuntimeError | TypeError) and IMPOSSIBLE_SIZE.search(str(error)):
        message = f"model.name: config.json of {name} has sizes that no model can have"
        return ModelError(Problem(message, _first_line(error), REFETCH))
    if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in str(error):
        message = f"model.name: the weights of {name} don't have the shapes given in its config.json"
        return ModelError(Problem(message, "", REFETCH))
    # The libraries fail in many ways on unexpected files. A RuntimeError comes from the machine, except for the
    # RecursionError in files that are nested too deeply.
    from_machine = isinstance(error, RuntimeError | MemoryError) and not isinstance(error, RecursionError)
    if reference.kind == "folder" and not from_machine:
        return _unloadable_error(reference, error)
    return None


def _find_damage(reference: ModelReference) -> tuple[str, str] | None:
    """Find a damaged file in the model's folder, or in its snapshot in the hub's cache."""
    if reference.kind == "folder":
        return find_damaged_file(Path(reference.location))
    config = find_file(reference, "config.json", cached=True) if reference.kind == "hub" else None
    return find_damaged_file(config.parent) if config is not None else None


def _unloadable_error(reference: ModelReference, error: Exception) -> ModelError:
    """Return the error for a model whose files the libraries can't load, for any reason."""
    message = f"model.name: {reference.name} can't be loaded"
    damage = find_damaged_file(Path(reference.location)) if reference.kind == "folder" else None
    if damage is not None:
        return ModelError(Problem(message, *damage))
    got = _first_line(error)
    if not isinstance(error, ValueError):
        got = f"the libraries fail on its files: {got}"
        if type(error).__name__ not in got:
            got = f"{got} ({type(error).__name__})"
    return ModelError(Problem(message, got, f"{REFETCH}; or upgrade transformers: pip install -U transformers"))


def _unreadable_error(reference: ModelReference, error: OSError) -> ModelError:
    """Return the error for a model whose files can't be read or downloaded."""
    text, first = str(error), _first_line(error)
    if "gated" in text.lower():
        return _gated_error(reference)
    if reference.kind == "hub" and "safetensors" not in text.split("and")[0]:
        return ModelError(
            Problem(
                f"model.name: {reference.describe_source()} can't be reached, and is not in the local cache",
                add_hub_settings(first),
                _offline_hint(reference),
                closest_path(Path(reference.location)) if Path(reference.location).parent.is_dir() else "",
            )
        )
    pickled = any(Path(reference.location).glob("*.bin")) if reference.kind == "folder" else "safetensors" in text
    if pickled:
        return _pickled_error(reference, first)
    damage = find_damaged_file(Path(reference.location)) if reference.kind == "folder" else None
    return ModelError(Problem(f"model.name: {reference.name} can't be read", *(damage or (first, REFETCH))))


def _offline_hint(reference: ModelReference) -> str:
    """Name what works without a network: this model, or a different one, from an installed package."""
    alias = reference.alias
    if alias is not None and alias.package:
        return "leave out --revision    the installed package has the model" if alias.packaged_file() else alias.install
    name, packaged = next((name, alias) for name, alias in ALIASES.items() if alias.package)
    install = "" if packaged.packaged_file() else f"{packaged.install}, then "
    return f"go online once, or use a local folder; without a network: {install}--model {name}"


def _pickled_error(reference: ModelReference, got: str) -> ModelError:
    """Return the error for a model without safetensors files."""
    return ModelError(
        Problem(
            f"model.name: {reference.name} has only pickled weights (.bin), which can run code; neft doesn't read them",
            got,
            "load the model in an environment that you trust, and save it again with save_pretrained",
        )
    )


def _gated_error(reference: ModelReference) -> ModelError:
    """Return the error for a model whose licence must be accepted on the hub."""
    return ModelError(
        Problem(
            f"model.name: {reference.location} is gated: accept its licence on the hub first",
            "no access with the current login",
            f"accept it on the page of {reference.location}, then: hf auth login",
        )
    )


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, with the next one if it ends in a colon; its type if empty."""
    if isinstance(error, LibraryPanic):
        return error.problems[0].got
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:2]) if lines[0].endswith(":") else lines[0]
