"""`neft merge`: write the tuned model of a run as a model of its own, in safetensors and without an adapter.

The folder has what transformers, vLLM and llama.cpp's converter expect: weights, config.json, generation settings,
tokenizer and chat template. It is loaded again, and its logits are compared with the run's, before it gets its name.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from neftcli.errors import Checks, InputError, Problem
from neftcli.events import LogitComparison, MergeFinished, Phase, PhaseId
from neftcli.export.logits import compare_logits
from neftcli.export.output import (
    explain_failures,
    hidden_output,
    require_new_output,
    require_output_space,
    total_size,
)
from neftcli.export.tuned_model import TunedModel, check_run, load_tuned_model, resolve_finished_run
from neftcli.models.model_files import MODEL_MANIFEST, folder_sha256
from neftcli.models.registry import ModelReference
from neftcli.runs.markdown import quote_markdown
from neftcli.system.files import atomic_write, file_sha256, open_without_links, require_no_links
from neftcli.system.libraries import capture_library_output, prepare_libraries
from neftcli.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neftcli.evaluation.targets import EvalTarget
    from neftcli.events import Observer
    from neftcli.runs.directory import RunDirectory

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Types of the written weights, and their bytes."""
SHARD_SIZE = "5GB"
CARD = "README.md"
MANIFEST_VERSION = 1


def merge(name: str, out: str, dtype: str | None, observer: Observer, *, trust_remote_code: bool = False) -> None:
    """Write the tuned model of a run to a new folder.

    Args:
        name: The run, as typed.
        out: The folder, as typed; it must not exist, or be empty.
        dtype: Type of the written weights; None for that of the base model's weights.
        observer: Receives the events.
        trust_remote_code: Run code that comes with the base model.

    Raises:
        InputError: The run, the folder or the type can't be used; nothing was written.
        ExportError: The written model differs from the run, or the disk is full; nothing stays.
        Interrupted: It was stopped by a signal; nothing stays.
    """
    checks = Checks()
    with checks:
        if dtype is not None and dtype not in DTYPE_BYTES:
            raise InputError(Problem("--dtype must be a type of weights", dtype, f"--dtype {' or '.join(DTYPE_BYTES)}"))
    with checks:
        folder = require_new_output(out, folder=True)
    with checks:
        target, run = resolve_finished_run(name, "neft merge", observer, trust_remote_code=trust_remote_code)
    checks.raise_errors()
    if not target.has_adapter() and dtype is None:
        hint = f"use {run.model}, or convert it: neft merge {name} --out {out} --dtype bfloat16"
        message = f"{run.path}: this run has no adapter to merge; its model folder is complete as it is"
        raise InputError(Problem(message, f"method {target.recipe.method().describe()}", hint))
    observer.notify(write_merged(target, run, folder, dtype, observer, trust_remote_code=trust_remote_code))


def write_merged(
    target: EvalTarget,
    run: RunDirectory,
    folder: Path,
    dtype: str | None,
    observer: Observer,
    *,
    trust_remote_code: bool,
) -> MergeFinished:
    """Write the tuned model of a run to `folder`, after `require_new_output`, and return the result.

    Raises:
        InputError: The run can't be merged; nothing was written.
        ExportError: The written model differs from the run, or the disk is full; nothing stays.
        Interrupted: It was stopped by a signal; nothing stays.
    """
    started = time.perf_counter()
    require_no_links(run.model)
    prepare_libraries()
    with explain_failures(folder), TemporaryDirectory() as scratch, capture_library_output(Path(scratch) / "log"):
        parameters = check_run(target, observer)
        dtype = dtype or _base_dtype(target)
        require_output_space(folder, parameters * DTYPE_BYTES[dtype])
        tuned = load_tuned_model(target, run, observer)
        base = _base_config(target)
        with hidden_output(folder, folder=True) as hidden:
            observer.notify(Phase(PhaseId.SAVING_MERGED))
            write_model_folder(tuned, run, base, dtype, hidden)
            observer.notify(Phase(PhaseId.COMPARING_LOGITS))
            comparison = _compare_folder(tuned, hidden, folder, dtype, trust_remote_code=trust_remote_code)
            atomic_write(hidden / CARD, _merge_card(target, run, tuned, dtype, comparison))
            manifest = json.dumps(_build_manifest(target, run, hidden, dtype, comparison), indent=1) + "\n"
            atomic_write(hidden / MODEL_MANIFEST, manifest)
    return MergeFinished(
        run=str(run.path),
        folder=str(folder),
        base=target.recipe.model.name,
        method=target.recipe.method().type,
        dtype=dtype,
        size=total_size(folder),
        untied=tuned.untied,
        comparison=comparison,
        seconds=time.perf_counter() - started,
    )


def _base_config(target: EvalTarget) -> dict[str, Any]:
    """Read the base model's config.json; for a run without an adapter, its own."""
    from neftcli.models.gguf import settings_reference
    from neftcli.models.settings_files import read_base_settings

    return read_base_settings(settings_reference(target.reference))[0]


def _base_dtype(target: EvalTarget) -> str:
    """Return the type of the base model's weights; float32 if its config.json names none that can be written."""
    config = _base_config(target)
    dtype = config.get("torch_dtype") or config.get("dtype")
    return dtype if isinstance(dtype, str) and dtype in DTYPE_BYTES else "float32"


def write_model_folder(
    tuned: TunedModel, run: RunDirectory, base_config: dict[str, Any], dtype: str, folder: Path
) -> None:
    """Write weights, configuration, generation settings and tokenizer to an empty folder.

    Args:
        tuned: The model; its weights are rounded to `dtype` in place.
        run: The run, whose tokenizer and generation settings are copied.
        base_config: The base model's `config.json`.
        dtype: Type of the written weights.
        folder: The folder.
    """
    import torch
    from transformers import GenerationConfig

    from neftcli.models.settings_files import CONFIG, GENERATION, TOKENIZER_FILES, write_config

    model = tuned.model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    model.generation_config = GenerationConfig()  # the run's own is copied below
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    config = {key: value for key, value in base_config.items() if key != "quantization_config"}
    if tuned.untied:
        config["tie_word_embeddings"] = False
        if isinstance(config.get("text_config"), dict):
            config["text_config"] = config["text_config"] | {"tie_word_embeddings": False}
    if config:
        write_config(folder, config, dtype)
    if not (folder / CONFIG).is_file():  # pragma: no cover - save_pretrained writes it
        raise FileNotFoundError(folder / CONFIG)
    vocabulary = (str(name) for name in getattr(tuned.tokenizer, "vocab_files_names", {}).values())
    for name in dict.fromkeys((GENERATION, *TOKENIZER_FILES, *vocabulary)):
        if (run.model / name).is_file():
            with open_without_links(run.model / name, "rb") as file:
                atomic_write(folder / name, file.read())


def _compare_folder(
    tuned: TunedModel, hidden: Path, folder: Path, dtype: str, *, trust_remote_code: bool
) -> LogitComparison:
    """Load the written folder in float32 and compare its logits with the run's."""
    import torch

    from neftcli.models.loading import load_model

    tuned.model.to("meta")  # frees its memory
    written = load_model(
        ModelReference(str(folder), "folder", str(hidden)), torch.float32, trust_remote_code=trust_remote_code
    )
    return compare_logits(written, tuned.logits, dtype, str(folder))


def _describe_merge(target: EvalTarget, tuned: TunedModel, dtype: str) -> list[str]:
    """Describe in sentences how the model was made."""
    method = target.recipe.method()
    if method.type == "full":
        return [f"The weights were converted to {dtype}."]
    sentences = [f"The LoRA adapter (rank {method.r}) was merged in float32; the result was rounded to {dtype} once."]
    if dtype == "float32":
        sentences = [f"The LoRA adapter (rank {method.r}) was merged in float32."]
    if method.type in ("qlora", "lora_int8"):
        bits = 4 if method.type == "qlora" else 8
        sentences.append(
            f"It was trained on {bits}-bit weights, and is merged into these weights, dequantised: not into the "
            "original weights of the base model."
        )
    if tuned.untied:
        sentences.append("The base model's embedding and output layer share a matrix; here they are two.")
    return sentences


def _merge_card(
    target: EvalTarget, run: RunDirectory, tuned: TunedModel, dtype: str, comparison: LogitComparison
) -> str:
    """Write the model card."""
    recipe, reference = target.recipe, target.reference
    hub_id = _hub_id(target)
    base = quote_markdown(recipe.model.name)
    lines = ["---", "library_name: transformers"]
    lines += [f"base_model: {json.dumps(hub_id)}"] if hub_id else []
    lines += ["tags: [neftune, sft]", "---", "", f"# {run.path.name}", ""]
    source = f" ({quote_markdown(reference.describe_source())})" if target.has_adapter() else ""
    lines.append(f"{base}{source}, fine-tuned by the run {quote_markdown(run.path.name)} with NEFTune alpha ")
    lines[-1] += (
        f"{recipe.neftune.alpha:g} ({recipe.method().describe()}) on {quote_markdown(recipe.data.source_name())}."
    )
    lines += ["", " ".join(_describe_merge(target, tuned, dtype)), ""]
    run_s = "the run's"
    if recipe.quantization.type == "int8":
        run_s = "those of the adapter on dequantised weights (the run's 8-bit layers round their inputs as well)"
    lines += [
        f"Its logits differ from {run_s} by at most {comparison.difference:.2g} (largest logit "
        f"{comparison.largest:.3g}, {comparison.tokens} tokens, computed in float32). Both predict the same "
        f"token after {comparison.same_token} of {comparison.tokens}.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "."  # where this card is',
        f"model = AutoModelForCausalLM.from_pretrained(folder, dtype={json.dumps(dtype)})",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "```",
        "",
        f"`{MODEL_MANIFEST}` has the hashes of the base model, the adapter and the files.",
        "",
    ]
    return "\n".join(lines)


def _hub_id(target: EvalTarget) -> str | None:
    """Return the hub id of the base model, or None."""
    from neftcli.models.registry import ALIASES

    if target.reference.alias:
        return target.reference.alias.hub_id
    if target.reference.kind == "hub":
        return target.reference.location
    alias = ALIASES.get(target.recipe.model.name)
    return alias.hub_id if alias else None


def _build_manifest(
    target: EvalTarget, run: RunDirectory, folder: Path, dtype: str, comparison: LogitComparison
) -> dict[str, Any]:
    """Return what the model was made from, and the size and SHA-256 of each file but the card, which may be edited."""
    record = run.record()
    files: Sequence[Path] = sorted(file for file in folder.iterdir() if file.is_file() and file.name != CARD)
    return {
        "version": MANIFEST_VERSION,
        "neft": VERSION,
        "run": run.path.name,
        "recipe_sha256": record["recipe_sha256"],
        "base": {
            "name": target.recipe.model.name,
            "revision": target.recipe.model.revision,
            "fingerprint": record.get("model_fingerprint"),
        },
        "method": target.recipe.method().type,
        "tuned_sha256": folder_sha256(run.model, "*.safetensors", "adapter_config.json"),
        "dtype": dtype,
        "comparison": asdict(comparison),
        "files": {file.name: [file.stat().st_size, file_sha256(file)] for file in files},
    }
