"""Load a tokenizer, a model and an adapter, and read the tokens that end an answer.

Only safetensors files are read, never pickles. Code that comes with a model runs only if the recipe allows it.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import ModelError, Problem
from neftcli.models.gguf import pretrained_location, settings_reference
from neftcli.models.load_errors import (
    library_message,
    pickled_weights_error,
    save_tokenizer_call,
    translate_load_errors,
)
from neftcli.models.model_files import (
    CODE_SETTINGS,
    CUSTOM_GENERATE,
    REFETCH,
    code_file,
    code_references,
    is_code_elsewhere,
    model_sha256,
    require_inside,
)
from neftcli.models.registry import ModelReference
from neftcli.models.settings_files import CONFIG, find_file, read_generation_settings, read_json
from neftcli.models.validate import stored_quantization
from neftcli.system.files import file_sha256_once
from neftcli.wording import count_noun

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neftcli.recipe.schema import Recipe
    from neftcli.system.device import ComputeConfig

BITSANDBYTES_PRODUCTS = "bitsandbytes.autograd._functions"
"""Logger of the products with quantised weights."""
COMMIT = re.compile(r"[0-9a-f]{40}")
"""A full commit id of the hub."""


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
                f"save a fast tokenizer in the same folder: {save_tokenizer_call(reference)}",
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
    eight_bit: bool = False,
    double_quantization: bool = True,
    compute_dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a model: on the training device if it is quantised, else on the CPU.

    Args:
        reference: The model.
        dtype: Type of the weights that aren't quantised.
        four_bit: Quantise the weights to NF4 (QLoRA).
        eight_bit: Quantise the weights to int8 (LLM.int8).
        double_quantization: Quantise the quantisation constants too.
        compute_dtype: Type in which 4-bit weights are multiplied.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ModelError: It can't be reached or read, or weights are missing.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    logging.getLogger(BITSANDBYTES_PRODUCTS).setLevel(logging.ERROR)  # warns in each product with 8-bit weights
    require_pinned_code(reference, trust_remote_code)
    stored = stored_quantization(read_json(reference, "config.json"))
    if (four_bit or eight_bit or stored) and importlib.util.find_spec("bitsandbytes") is None:
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
    elif eight_bit:
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
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
                f"{count_noun(len(leftover), 'weight')} such as {leftover[0]}",
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

    from neftcli.models.new_tokens import add_embeddings

    quantization = recipe.quantization
    model = load_model(
        reference,
        compute.weights_dtype,
        four_bit=quantization.type == "nf4",
        eight_bit=quantization.type == "int8",
        double_quantization=quantization.double_quantization,
        compute_dtype=torch.bfloat16 if compute.bfloat16 else torch.float32,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    if recipe.model.new_tokens:
        tokenizer, _ = load_tokenizer(reference, recipe.model.trust_remote_code)
        add_embeddings(model, tokenizer, recipe)
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
            raise pickled_weights_error(reference, files)
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
        try:
            return PeftModel.from_pretrained(model, str(folder))
        except RuntimeError as error:
            mismatches = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
            if not mismatches:
                raise
            message = f"{folder}: adapter_config.json and adapter_model.safetensors do not fit together"
            raise ModelError(Problem(message, mismatches[0], "repeat the run with neft train")) from None


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
            return f"sha256 {file_sha256_once(Path(reference.location))}"
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
        raise ModelError(Problem(message, library_message(error), hint)) from error
    return model


def read_stop_tokens(reference: ModelReference) -> set[int]:
    """Read the stop tokens: `eos_token_id` of generation_config.json, else of config.json; empty if neither has any.

    Raises:
        ModelError: generation_config.json is damaged, or the hub can't be reached.
    """
    base = settings_reference(reference)
    config = read_json(base, CONFIG)
    text_config = config.get("text_config")
    for settings in (read_generation_settings(base), config, text_config if isinstance(text_config, dict) else {}):
        ids: Any = settings.get("eos_token_id")
        if ids is not None:
            return {token for token in (ids if isinstance(ids, list) else [ids]) if isinstance(token, int)}
    return set()
