"""An adapter in peft's terms, checks of the layers that it names, and notices about it."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from neftcli.errors import Problem, RecipeError

if TYPE_CHECKING:
    from neftcli.recipe.schema import Adapter


def lora_config(adapter: Adapter, trained_tokens: dict[str, list[int]] | None = None) -> Any:
    """Return peft's configuration of an adapter.

    Args:
        adapter: The adapter.
        trained_tokens: Ids of tokens that are trained as well, by the name of the layer that has a row for each.
    """
    from peft import LoraConfig

    named = adapter.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=named if isinstance(named, str) else list(named),
        modules_to_save=list(adapter.modules_to_save) or None,
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        init_lora_weights=_initialization(adapter),
        trainable_token_indices=trained_tokens or None,
    )


def _initialization(adapter: Adapter) -> Any:
    """Return peft's name of the weights that an adapter starts from."""
    if not adapter.uses_pissa():
        return True
    return "pissa" if adapter.pissa_niter is None else f"pissa_niter_{adapter.pissa_niter}"


def match_target_modules(model: Any, name: str) -> list[Any]:
    """List the modules whose dotted path ends with the parts of `name`, as peft matches `target_modules`."""
    return [module for path, module in model.named_modules() if f".{path}".endswith(f".{name}")]


def match_modules_to_save(model: Any, name: str) -> list[Any]:
    """List the modules whose dotted path ends with the string `name`, as peft matches `modules_to_save`."""
    return [module for path, module in model.named_modules() if path.endswith(name)]


def validate_adapter(model: Any, adapter: Adapter) -> None:
    """Check that the model has every layer that an adapter names; peft ignores a missing one if others match.

    Raises:
        RecipeError: A layer is missing, has a type that can't get low-rank matrices, or is the output layer, whose
            weight trl multiplies directly.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    if adapter.type == "none":
        return
    supported = (torch.nn.Linear, torch.nn.Embedding, Conv1D, torch.nn.Conv1d, torch.nn.Conv2d)
    modules = {path.rpartition(".")[2]: module for path, module in model.named_modules() if path}
    experts = {path.rpartition(".")[2] for path in find_fused_experts(model)}
    config = _converted_config(model, adapter)
    problems = []
    for name in () if adapter.target_modules == "all-linear" else adapter.target_modules:
        if name not in config.target_modules:
            continue  # peft maps it to the experts
        matches = match_target_modules(model, name)
        if any(module is model.get_output_embeddings() for module in matches):
            message = "adapter.target_modules: trl can't train low-rank matrices on the output layer"
            problems.append(Problem(message, name, f"--set adapter.modules_to_save=[{name}]    trains it in full"))
            continue
        if matches and all(isinstance(module, supported) for module in matches):
            continue
        if matches:
            message = "layers of this type can't get an adapter"
        elif name in experts:
            message = "this tensor holds the weights of all experts and can't be adapted by its name"
        else:
            message = "the model has no such layer"
        possible = [layer for layer, module in modules.items() if isinstance(module, supported)]
        problems.append(_layer_problem("target_modules", message, name, possible))
    for name in adapter.modules_to_save:
        if not match_modules_to_save(model, name):
            message = "the model has no such layer"
            if name in experts:
                message = "this tensor holds the weights of all experts and can't be adapted by its name"
            problems.append(_layer_problem("modules_to_save", message, name, list(modules)))
    if adapter.uses_pissa():
        problems += _pissa_layer_problems(model, adapter)
    if problems:
        raise RecipeError(*problems)


def _pissa_layer_problems(model: Any, adapter: Adapter) -> list[Problem]:
    """Return the problems of layers that PiSSA can't split: other than linear ones, and matrices below the rank."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head, targets = model.get_output_embeddings(), {}
    for path, module in model.named_modules():
        is_linear = isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
        if adapter.target_modules == "all-linear":
            is_target = is_linear
        else:
            is_target = any(f".{path}".endswith(f".{name}") for name in adapter.target_modules)
        if is_target and not is_linear:
            message = "adapter.init_lora_weights pissa can split linear layers only"
            return [Problem(message, path, "leave it out of adapter.target_modules")]
        if is_target:
            targets[path] = min(module.weight.shape)
    smallest = min(targets, key=lambda path: targets[path], default="")
    if smallest and targets[smallest] < adapter.r:
        message = f"adapter.r must be at most {targets[smallest]} with pissa: {smallest} has no more singular values"
        return [Problem(message, str(adapter.r), f"--lora-r {targets[smallest]}")]
    return []


def _layer_problem(option: str, message: str, name: str, possible: list[str]) -> Problem:
    """Return the problem of a layer name, with the possible names and the most similar one."""
    similar = "".join(get_close_matches(name, possible, n=1))
    names = sorted(layer for layer in possible if not layer.isdigit())
    return Problem(f"adapter.{option}: {message}", name, f"one of {', '.join(names)}", similar)


def find_fused_experts(model: Any) -> dict[str, int]:
    """Find the tensors that hold the weights of all experts of a layer, in mixtures of experts; path to size.

    They aren't linear layers, so "all-linear" doesn't match them.
    """
    from torch.nn.modules.conv import _ConvNd

    return {
        f"{path}.{name}": weight.numel()
        for path, module in model.named_modules()
        if not isinstance(module, _ConvNd)
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and weight.shape[0] > 1
    }


def _converted_config(model: Any, adapter: Adapter) -> Any:
    """Return peft's configuration of an adapter, in which layers that are part of an experts' tensor name that tensor.

    Raises:
        RecipeError: The adapter names one of two layers that are one tensor, or has dropout, which experts can't have.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    named = adapter.target_modules
    config = LoraConfig(r=adapter.r, target_modules=named if isinstance(named, str) else list(named))
    if not find_fused_experts(model):
        return config
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError as error:
        hint = "name both layers, or --set adapter.target_modules=all-linear"
        raise RecipeError(Problem(f"adapter.target_modules: {error}", ", ".join(named), hint)) from None
    if config.target_parameters and adapter.lora_dropout:
        message = "adapter.lora_dropout must be 0 if experts (one tensor per layer) get an adapter"
        raise RecipeError(Problem(message, f"{adapter.lora_dropout:g}", "--set adapter.lora_dropout=0"))
    if config.target_parameters and adapter.uses_pissa():
        message = "adapter.init_lora_weights must be default if experts (one tensor per layer) get an adapter"
        raise RecipeError(Problem(message, "pissa", "--set adapter.init_lora_weights=default"))
    if config.target_parameters and adapter.use_dora:
        message = "adapter.use_dora must be false if experts (one tensor per layer) get an adapter"
        raise RecipeError(Problem(message, "true", "--set adapter.use_dora=false"))
    return config


def find_adapted_experts(model: Any, adapter: Adapter) -> dict[str, int]:
    """Find the experts' tensors that peft adapts, although they aren't layers; path to rank.

    peft adapts the experts and the router of architectures that had them as layers in transformers 4. The experts of
    other architectures get no adapter.
    """
    if adapter.type == "none" or not find_fused_experts(model):
        return {}
    config = _converted_config(model, adapter)
    ranks = {}
    for path, _ in model.named_parameters():
        for name in config.target_parameters or ():
            if path.endswith(f".{name}"):
                ranks[path] = int(config.rank_pattern.get(rf".*\.{re.escape(name)}", adapter.r))
    return ranks


def adapter_notices(model: Any, adapter: Adapter) -> list[str]:
    """List notices about an adapter: weights without an adapter, and layers that merging would change."""
    if adapter.type == "none":
        return []
    notices = _tied_notices(model, adapter)
    adapted = find_adapted_experts(model, adapter)
    without = {
        path: size
        for path, size in find_fused_experts(model).items()
        if path not in adapted and not any(name in path.split(".") for name in adapter.modules_to_save)
    }
    if without:
        names = ", ".join(sorted({path.rpartition(".")[2] for path in without}))
        notices.append(
            f"{sum(without.values()):,} of {model.num_parameters():,} weights get no adapter and stay frozen: the "
            f"experts ({names}), one tensor per layer"
        )
    return notices


def _tied_notices(model: Any, adapter: Adapter) -> list[str]:
    """List notices about an adapter on one of two layers that share a matrix.

    Measured with peft 0.21 (tests/unit/models/test_adapters.py): merging low-rank matrices into a shared matrix changes
    both layers, also with peft's `ensure_weight_tying`; a copy that is trained in full is merged exactly.
    """
    layers = {"embedding": model.get_input_embeddings(), "output layer": model.get_output_embeddings()}
    if layers["output layer"] is None or layers["embedding"].weight is not layers["output layer"].weight:
        return []
    targets = () if adapter.target_modules == "all-linear" else adapter.target_modules
    low_rank = [
        name for name in targets if any(layer in match_target_modules(model, name) for layer in layers.values())
    ]
    copied = [
        name
        for name in adapter.modules_to_save
        if any(layer in match_modules_to_save(model, name) for layer in layers.values())
    ]
    notices = []
    if low_rank:
        embedding = next(path for path, layer in model.named_modules() if layer is layers["embedding"])
        notices.append(
            f"adapter.target_modules has {', '.join(low_rank)}, and this model's embedding and output layer share one "
            "matrix: peft's merge changes both, so the merged model is not the tuned one; run neft merge, keep the "
            f"adapter unmerged, leave out {' and '.join(low_rank)}, or train a copy: "
            f"--set adapter.modules_to_save=[{embedding.rpartition('.')[2]}]"
        )
    if copied:
        notices.append(
            f"adapter.modules_to_save has {', '.join(copied)}, and this model's embedding and output layer share one "
            "matrix: training changes a copy for that layer only, and the merged model has two matrices "
            "(tie_word_embeddings: false)"
        )
    return notices
