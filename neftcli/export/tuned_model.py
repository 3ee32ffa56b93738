"""Load the tuned model of a run, with its adapter merged into the base model's weights.

Everything is computed in float32, so a weight is rounded once, when it is written:

    W' = W + s B A    s = lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA

DoRA's magnitudes are merged by peft's formula. QLoRA's base is dequantised first. If the embedding shares its matrix
with the output layer and the adapter changes only one of them, the merged model has two matrices.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import OUT_OF_MEMORY, InputError, Problem
from neftcli.evaluation.progress import ProgressReporter
from neftcli.evaluation.targets import EvalTarget, resolve_target
from neftcli.events import Notice, Phase, PhaseId
from neftcli.export.logits import RunLogits, compute_run_logits
from neftcli.recipe.trust import TRUST
from neftcli.recipe.yaml_file import Setting
from neftcli.system.files import format_bytes
from neftcli.system.hub import notify_if_unreachable

if TYPE_CHECKING:
    from neftcli.events import Observer
    from neftcli.runs.directory import RunDirectory
    from neftcli.system.device import ComputeConfig

BYTES = 4
"""Bytes of a weight in float32."""
DEQUANTIZED = (
    "the adapter was trained on 4-bit weights, so it is merged into these, dequantised, and not into the original "
    "weights"
)
DEQUANTIZED_INT8 = (
    "the adapter was trained on 8-bit weights, so it is merged into these, dequantised, and not into the original "
    "weights; the logits are compared with those of dequantised weights, because 8-bit layers also round their inputs"
)
UNTIED = (
    "embedding and output layer shared a matrix, and the adapter changes one of them: the merged model has two "
    "matrices (tie_word_embeddings: false)"
)


@dataclass(frozen=True)
class TunedModel:
    """The tuned model of a run in memory, in float32 and without an adapter.

    Attributes:
        model: The model.
        tokenizer: The run's tokenizer.
        logits: Logits of the run, with its adapter on the base as it was trained; on dequantised weights with int8.
        untied: Embedding and output layer shared a matrix before, and have one each now.
    """

    model: Any
    tokenizer: Any
    logits: RunLogits
    untied: bool


def resolve_finished_run(
    name: str, command: str, observer: Observer, *, trust_remote_code: bool
) -> tuple[EvalTarget, RunDirectory]:
    """Resolve the name of a run with a model.

    Args:
        name: As typed.
        command: The command, such as "neft merge", for messages.
        observer: Receives a notice if the hub can't be reached.
        trust_remote_code: Run code that comes with the base model.

    Raises:
        InputError: It is not a run, or has no model.
    """
    layers = [{TRUST: Setting(True, "--trust-remote-code", "--trust-remote-code")}] if trust_remote_code else []
    target = resolve_target(name, "run", layers)
    if target.run is None:
        raise InputError(
            Problem(
                f"{command} takes a run, and this is a model", name, f"{command} RUN    a folder that neft train wrote"
            )
        )
    if target.reference.kind == "hub":
        notify_if_unreachable(observer)
    return target.with_trust(trust_remote_code), target.run


def check_run(target: EvalTarget, observer: Observer) -> int:
    """Check that a run's model can be loaded into memory, and return its number of parameters.

    Raises:
        ModelError: The base model can't be found or read, or has changed since training.
        InputError: There is too little memory.
    """
    from neftcli.models.validate import validate_model, validate_weight_files

    validate_model(target.reference, target.recipe, trains=False)
    validate_weight_files(target.reference)
    observer.notify(Phase(PhaseId.LOADING_LIBRARIES))
    if target.reference.kind == "gguf":
        _convert_base(target, observer)
    target.identity(_float32_on_cpu())
    parameters = _count_parameters(target)
    _require_memory(target, parameters * BYTES)
    return parameters


def load_tuned_model(target: EvalTarget, run: RunDirectory, observer: Observer) -> TunedModel:
    """Load a run's model after `check_run`, compute its logits, and merge its adapter if it has one."""
    from neftcli.models.loading import load_tokenizer
    from neftcli.models.new_tokens import require_new_tokens
    from neftcli.models.registry import ModelReference

    reference = ModelReference(target.name, "folder", str(run.model))
    tokenizer, _ = load_tokenizer(reference, target.recipe.model.trust_remote_code)
    require_new_tokens(tokenizer, target.recipe, run.model)
    observer.notify(Phase(PhaseId.LOADING_MODEL))
    model: Any = target.load(_float32_on_cpu())
    observer.notify(Phase(PhaseId.COMPUTING_LOGITS))
    if target.has_adapter() and target.recipe.quantization.type == "int8":
        observer.notify(Notice(DEQUANTIZED_INT8))
        model = _dequantize(model, run.model)
    logits = compute_run_logits(model, tokenizer, run)
    if not target.has_adapter():
        return TunedModel(model, tokenizer, logits, untied=False)
    if getattr(model.get_base_model(), "is_quantized", False):
        observer.notify(Notice(DEQUANTIZED))
        model = _dequantize(model, run.model)
    untied = _untie(model)
    _merge_layers(model, observer)
    merged = model.unload()
    if untied:
        merged.config.get_text_config().tie_word_embeddings = merged.config.tie_word_embeddings = False
        observer.notify(Notice(UNTIED))
    gc.collect()
    return TunedModel(merged, tokenizer, logits, untied)


def _float32_on_cpu() -> ComputeConfig:
    """Return a configuration that computes in float32 on the CPU."""
    import torch

    from neftcli.events import Device
    from neftcli.system.device import ComputeConfig

    return ComputeConfig("cpu", Device("cpu", threads=torch.get_num_threads()), False, torch.float32)


def _convert_base(target: EvalTarget, observer: Observer) -> None:
    """Convert the base model's .gguf file, with a notice that it takes time if it was not converted before."""
    from neftcli.models.gguf import convert_gguf, is_gguf_converted

    file = Path(target.reference.location)
    if not is_gguf_converted(file):
        observer.notify(Phase(PhaseId.CONVERTING_GGUF))
    convert_gguf(file)


def _count_parameters(target: EvalTarget) -> int:
    """Count the parameters of the base model, which are not loaded."""
    from neftcli.models.loading import build_meta_model, load_config

    trust = target.recipe.model.trust_remote_code
    config = load_config(target.reference, trust)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return int(build_meta_model(target.reference, config, trust).num_parameters())


def _require_memory(target: EvalTarget, needed: int) -> None:
    """Check that the memory can hold the weights.

    Raises:
        InputError: It can't.
    """
    from neftcli.system.device import available_memory

    available = available_memory("cpu")
    if needed > available:
        raise InputError(
            Problem(
                f"{target.name}: there is too little memory for its weights in float32",
                f"{format_bytes(needed)} are needed, {format_bytes(available)} are free",
                "use a machine with more memory; a GPU is not needed",
                code=OUT_OF_MEMORY,
            )
        )


def _dequantize(model: Any, adapter: Path) -> Any:
    """Replace the quantised layers of an adapted model by float32 layers with the same values, and adapt it again.

    peft's own merge would quantise the merged weights again, which rounds most of a small adapter away.
    """
    import torch
    from bitsandbytes import functional, nn
    from peft.utils.integrations import dequantize_bnb_weight

    from neftcli.models.loading import load_adapter

    base = model.unload()
    for path, module in list(base.named_modules()):
        if isinstance(module, nn.Linear4bit):
            weight = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, nn.Linear8bitLt):
            weight = dequantize_bnb_weight(module.weight, module.state)
        else:
            continue
        layer = torch.nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        layer.weight = torch.nn.Parameter(weight.float().cpu(), requires_grad=False)
        if module.bias is not None:
            layer.bias = torch.nn.Parameter(module.bias.data.float().cpu(), requires_grad=False)
        base.set_submodule(path, layer)
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(base, mark):
            delattr(base, mark)
    base.is_quantized = base.is_loaded_in_4bit = base.is_loaded_in_8bit = False
    if hasattr(base.config, "quantization_config"):
        del base.config.quantization_config
    return load_adapter(base.float().cpu(), adapter)


def _untie(model: Any) -> bool:
    """Give the output layer its own matrix if it shares the embedding's and the adapter changes one of them.

    Returns:
        Whether the matrices were shared and are separate now.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    base = model.get_base_model()
    layers = [base.get_input_embeddings(), base.get_output_embeddings()]
    if layers[1] is None or not any(isinstance(layer, BaseTunerLayer | ModulesToSaveWrapper) for layer in layers):
        return False
    original = []
    for layer in layers:
        if isinstance(layer, ModulesToSaveWrapper):
            original.append(layer.original_module)
        else:
            original.append(layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer)
    if original[0].weight is not original[1].weight:
        return False
    original[1].weight = torch.nn.Parameter(original[1].weight.detach().clone(), requires_grad=False)
    return True


def _merge_layers(model: Any, observer: Observer) -> None:
    """Merge the low-rank matrices of each layer into its weights; `unload` then removes the adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    progress = ProgressReporter(PhaseId.MERGING_LAYERS, "", 0, len(layers), observer)
    for number, layer in enumerate(layers, 1):
        layer.merge()
        progress.add(number, 1)
