"""Load a tokenizer and a model, with plain messages about what is missing.

Only safetensors are read, never pickles. Code that comes with a model runs only if the recipe says so.
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
IMPOSSIBLE_SIZE = re.compile("negative dimension|Storage size calculation overflowed|Overflow when unpacking")
"""Torch's messages for a tensor whose size is negative, or beyond 64 bits."""


def pretrained_location(reference: ModelReference) -> str:
    """Resolve a model to a hub id, a folder, or the folder of a converted .gguf, for `from_pretrained`."""
    return str(convert_gguf(Path(reference.location))) if reference.kind == "gguf" else reference.location


def pretrained_arguments(reference: ModelReference, trust_remote_code: bool) -> dict[str, Any]:
    """Arguments of every `from_pretrained`: the place of the files, their version, and whether their code may run.

    Raises:
        ModelError: Code is to run that somebody else can change, or a file is not in the model's folder.
    """
    if reference.kind == "folder":
        require_inside(Path(reference.location), reference.name)
    require_pinned_code(reference, trust_remote_code)
    return {
        "pretrained_model_name_or_path": pretrained_location(reference),
        "revision": reference.revision,
        # Of another repository, which a configuration may name, transformers would take the newest code.
        "code_revision": reference.revision,
        "trust_remote_code": trust_remote_code,
    }


def require_pinned_code(reference: ModelReference, trust_remote_code: bool) -> None:
    """Check that code which may run is of one commit of the hub, or is in the model's folder.

    Raises:
        ModelError: Somebody else can change it.
    """
    if not trust_remote_code:
        return
    if reference.kind == "hub" and not COMMIT.fullmatch(reference.revision or ""):
        raise ModelError(
            Problem(
                f"model.revision: code of {reference.location} runs only at a full commit id, which nobody can change",
                reference.revision or "no revision",
                "read the code at a commit, then: --trust-remote-code --revision COMMIT, all 40 characters of it",
            )
        )
    if reference.kind == "folder":
        _require_own_code(Path(reference.location))


def _require_own_code(folder: Path) -> None:
    """Check that all code that a trusted model names is in its folder.

    Raises:
        ModelError: Some is elsewhere: on the hub, by an absolute name or `..`, or in a linked folder.
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
                "copy its .py files into the folder, no links; name them in auto_map as FILE.Class",
            )
        )


def load_tokenizer(
    reference: ModelReference, trust_remote_code: bool = False, vocabulary: int | None = None
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer, with a pad token, and notices about what had to be filled in.

    Args:
        reference: What to load.
        trust_remote_code: Run code that comes with the tokenizer.
        vocabulary: Tokens that the model embeds; None if that isn't known.

    Raises:
        ModelError: It can't be reached or read, is a slow tokenizer without the offsets of tokens, or ends
            texts with a token that the model doesn't embed.
    """
    from transformers import AutoTokenizer

    with translate_load_errors(reference):
        tokenizer = AutoTokenizer.from_pretrained(**pretrained_arguments(reference, trust_remote_code))
        tokenizer("a")  # a damaged tokenizer_config.json shows only when the tokenizer is used
    if not tokenizer.is_fast or tokenizer.eos_token is None:
        missing = "an end-of-text token" if tokenizer.is_fast else "a tokenizer.json"
        raise ModelError(
            Problem(
                f"model.name: {reference.name} has a tokenizer without {missing}",
                type(tokenizer).__name__,
                "eos_token in its tokenizer_config.json" if tokenizer.is_fast else "tokenizer.save_pretrained(FOLDER)",
            )
        )
    if vocabulary is not None and tokenizer.eos_token_id >= vocabulary:
        raise missing_embedding_error("the end-of-text token", tokenizer, tokenizer.eos_token_id, vocabulary)
    return tokenizer, _filled_in_pad_token(tokenizer, vocabulary)


def _filled_in_pad_token(tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> list[str]:
    """Set a pad token that the model has an embedding for, if there is none; returns notices."""
    known, number = tokenizer.pad_token, tokenizer.pad_token_id
    if known is not None and (vocabulary is None or number < vocabulary):
        return []
    unknown = tokenizer.unk_token is not None and (vocabulary is None or tokenizer.unk_token_id < vocabulary)
    tokenizer.pad_token = tokenizer.unk_token if unknown else tokenizer.eos_token
    why = (
        "the tokenizer has no pad token"
        if known is None
        else f"the pad token {known} has id {number}, and the model embeds {vocabulary} tokens"
    )
    return [f"{why}; {tokenizer.pad_token} pads (pads carry neither loss nor noise)"]


def missing_embedding_error(where: str, tokenizer: PreTrainedTokenizerBase, token: int, vocabulary: int) -> ModelError:
    """The error for a token id that the model has no embedding for."""
    text = tokenizer.convert_ids_to_tokens(token)
    return ModelError(
        Problem(
            f"{where} is a token that the model has no embedding for",
            f"{text}, id {token}; the model's vocabulary has {vocabulary} tokens (ids 0 to {vocabulary - 1})",
            "the tokenizer of this model; or give the model the tokens: resize_token_embeddings(len(tokenizer)), then "
            "save_pretrained",
        )
    )


QUANTISED_PARTS = (
    *(".qweight", ".qzeros", ".scales", ".absmax", ".quant_map", ".SCB"),
    *(".weight_scale", ".weight_scale_inv", ".weight_packed", "_blocks", "_scales"),
)
"""Suffixes of the names of tensors that belong to quantised weights."""


def load_model(
    reference: ModelReference,
    dtype: torch.dtype,
    *,
    four_bit: bool = False,
    double_quantization: bool = True,
    compute_dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model, on the device that it is trained on if it is quantised, else on the CPU.

    Args:
        reference: What to load.
        dtype: Type of the weights that aren't quantised.
        four_bit: NF4 weights (QLoRA).
        double_quantization: Quantise the quantisation constants, too.
        compute_dtype: Type in which 4-bit weights are multiplied.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ModelError: It can't be reached or read.
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
                "pip install bitsandbytes; or unquantised weights, with --lora",
            )
        )
    if stored:  # already as they are wanted, but for the type in which they are multiplied
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
                f"model.name: the weight files of {reference.name} are quantised, and its config.json does not say how",
                f"{len(leftover)} weights such as {leftover[0]}",
                "the folder as it was published, or a model with unquantised weights",
            )
        )
    if report["missing_keys"]:  # they would be random numbers, and nobody would be told
        missing = sorted(report["missing_keys"])
        raise ModelError(
            Problem(
                f"model.name: the weight files of {reference.name} lack weights that its config.json asks for",
                f"{len(missing)} missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
                REFETCH,
            )
        )
    disable_avx512_repacking(model)
    return model


def load_model_for_recipe(recipe: Recipe, reference: ModelReference, compute: ComputeConfig) -> PreTrainedModel:
    """The model on the device, quantised if the recipe says so, without adapters.

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
    if not getattr(model, "is_quantized", False):  # those are on the device already
        model.to(compute.device)
    return model


def load_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the LoRA adapter that `folder` holds on it.

    Raises:
        ModelError: The adapter's files are missing, pickled, damaged, of another kind, or do not fit the model.
    """
    from peft import PeftConfig, PeftModel

    reference = ModelReference(folder.parent.name, "folder", str(folder))
    if not (folder / "adapter_model.safetensors").is_file():  # peft would go on to a pickle, and then to the hub
        found = ", ".join(sorted(item.name for item in folder.iterdir()))
        if (folder / "adapter_model.bin").is_file():
            raise _pickled(reference, found)
        raise ModelError(Problem(f"{folder}: adapter_model.safetensors is missing", found, "neft train    again"))
    require_inside(folder, str(folder))
    with translate_load_errors(reference):
        kind = PeftConfig.from_pretrained(str(folder)).peft_type
        if kind != "LORA":  # others fetch more models and tokenizers, with options from their own files
            raise ModelError(Problem(f"{folder}: the adapter of a run is LoRA", str(kind), "neft train    again"))
        return PeftModel.from_pretrained(model, str(folder))


def disable_avx512_repacking(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit weights when they are evaluated on a CPU.

    On processors with AVX512-BF16 its layers repack themselves for a kernel that has no gradient at their first forward
    pass in evaluation mode, for good. A model that is evaluated before it is trained (as every run here is) would train
    with wrong gradients; torch only warns.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def model_fingerprint(reference: ModelReference, config: Any) -> str:
    """Fingerprint of a model: the hub's commit, or the SHA-256 of the .gguf file or of the folder's files."""
    if reference.kind == "hub":
        return f"commit {getattr(config, '_commit_hash', None)}"
    with translate_load_errors(reference):
        if reference.kind == "gguf":
            return f"sha256 {file_sha256(Path(reference.location))}"
        return f"sha256 {model_sha256(Path(reference.location))}"


def load_config(reference: ModelReference, trust_remote_code: bool) -> Any:
    """The model's configuration, without its weights.

    Raises:
        ModelError: The model can't be reached.
    """
    from transformers import AutoConfig

    with translate_load_errors(reference):
        return AutoConfig.from_pretrained(**pretrained_arguments(reference, trust_remote_code))


def build_meta_model(reference: ModelReference, config: Any, trust_remote_code: bool) -> PreTrainedModel:
    """Build a model by its configuration, on the meta device: without storage for its weights.

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
        hint = "code that builds it on torch's meta device, as transformers does"
        raise ModelError(Problem(message, _first_line(error), hint)) from error
    return model


@contextmanager
def translate_load_errors(reference: ModelReference) -> Iterator[None]:
    """Turn the libraries' exceptions into a message with a hint."""
    from huggingface_hub import errors as hub

    name = reference.name
    try:
        with panics_as_errors():
            yield
    except hub.GatedRepoError:
        raise _gated(reference) from None
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        raise ModelError(
            Problem(
                "model.name: the hub has no model or revision of this name, or it is private: "
                + reference.describe_source(),
                type(error).__name__,
                "neft models    to see the aliases, or `hf auth login` for a private model",
            )
        ) from None
    except OSError as error:
        raise _unreadable(reference, error) from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                Problem(
                    f"model.name: {name} comes with Python code of its own, which does not run unasked",
                    "model.trust_remote_code false",
                    "read the code; if you trust it: --trust-remote-code"
                    + (", with a commit as --revision" if reference.kind == "hub" else ""),
                )
            ) from None
        if "backend tokenizer" in str(error):
            raise ModelError(
                Problem(
                    f"model.name: {name} comes without a tokenizer",
                    "neither tokenizer.json nor files that it could be made from",
                    "write it into the same folder: tokenizer.save_pretrained(FOLDER)",
                )
            ) from error
        raise _unloadable(reference, error) from error
    except UnpicklingError as error:  # of an index that names pickles; torch opened it with weights_only and refused it
        raise _pickled(reference, "an index of safetensors that names other files") from error
    except ImportError as error:
        raise ModelError(
            Problem(f"model.name: {name} needs a package that is not installed", _first_line(error))
        ) from error
    except LibraryPanic as error:  # of a tokenizer.json or of weights
        raise _unloadable(reference, error) from error
    except NeftError:
        raise
    except Exception as error:
        told = _of_damaged_files(reference, error)
        if told is None:
            raise
        raise told from error


def _of_damaged_files(reference: ModelReference, error: Exception) -> ModelError | None:
    """The message if files are to blame; None if a library or the machine is."""
    name = reference.name
    if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
        found = _damage(reference) or (str(error), REFETCH)
        return ModelError(Problem(f"model.name: a weight file of {name} is damaged", *found))
    if isinstance(error, RuntimeError | TypeError) and IMPOSSIBLE_SIZE.search(str(error)):
        message = f"model.name: config.json of {name} describes no model that can be built"
        return ModelError(Problem(message, _first_line(error), REFETCH))
    if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in str(error):
        message = f"model.name: the weights of {name} have other sizes than its config.json says"
        return ModelError(Problem(message, "weights that do not fit", REFETCH))
    # The libraries fail in many ways on files that are not what they expect; a RuntimeError is the machine's, but for
    # the recursion in files that are nested too deep.
    of_the_machine = isinstance(error, RuntimeError | MemoryError) and not isinstance(error, RecursionError)
    if reference.kind == "folder" and not of_the_machine:
        return _unloadable(reference, error)
    return None


def _damage(reference: ModelReference) -> tuple[str, str] | None:
    return find_damaged_file(Path(reference.location)) if reference.kind == "folder" else None


def _unloadable(reference: ModelReference, error: Exception) -> ModelError:
    """The error for a model whose files the libraries fail on, in whichever way."""
    said = _first_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {_first_line(error)}"
    newer = f"{REFETCH}, or with a newer transformers: pip install -U transformers"
    return ModelError(Problem(f"model.name: {reference.name} can't be loaded", *(_damage(reference) or (said, newer))))


def _unreadable(reference: ModelReference, error: OSError) -> ModelError:
    text, first = str(error), _first_line(error)
    if "gated" in text.lower():
        return _gated(reference)
    if reference.kind == "hub" and "safetensors" not in text.split("and")[0]:
        return ModelError(
            Problem(
                f"model.name: {reference.describe_source()} can't be reached, and is not in the local cache",
                add_hub_settings(first),
                _without_a_network(reference),
                closest_path(Path(reference.location)) if Path(reference.location).parent.is_dir() else "",
            )
        )
    pickled = any(Path(reference.location).glob("*.bin")) if reference.kind == "folder" else "safetensors" in text
    if pickled:
        return _pickled(reference, first)
    return ModelError(Problem(f"model.name: {reference.name} can't be read", *(_damage(reference) or (first, REFETCH))))


def _without_a_network(reference: ModelReference) -> str:
    """The hint if the hub can't be reached: this model, or a different one, from an installed package."""
    alias = reference.alias
    if alias is not None and alias.package:
        return "leave --revision out    the installed package has the model" if alias.packaged_file() else alias.install
    other, known = next((name, one) for name, one in ALIASES.items() if one.package)
    first = "" if known.packaged_file() else f"{known.install}, then "
    return f"go online once, or give a folder: --model FOLDER; without a network: {first}--model {other}"


def _pickled(reference: ModelReference, said: str) -> ModelError:
    return ModelError(
        Problem(
            f"model.name: {reference.name} has only pickled weights (.bin), which can run code and are not read",
            said,
            "load it where you trust it and write it again with save_pretrained",
        )
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, LibraryPanic):
        return error.problems[0].got
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:2]) if lines[0].endswith(":") else lines[0]


def _gated(reference: ModelReference) -> ModelError:
    return ModelError(
        Problem(
            f"model.name: {reference.location} is gated: its licence must be accepted on the hub first",
            "no access with the current login",
            f"accept it on the page of {reference.location}, then: hf auth login",
        )
    )
