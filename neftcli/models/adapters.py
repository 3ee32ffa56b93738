"""The layers that an adapter names: checks against the model, and notices."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from neftcli.errors import Problem, RecipeError

if TYPE_CHECKING:
    from neftcli.recipe.schema import Adapter


def match_target_modules(model: Any, name: str) -> list[Any]:
    """The modules whose dotted path ends with `name`, part by part, as peft finds them."""
    return [module for path, module in model.named_modules() if f".{path}".endswith(f".{name}")]


def match_modules_to_save(model: Any, name: str) -> list[Any]:
    """The modules whose dotted path ends with the letters of `name`: peft's way with those that are trained in full."""
    return [module for path, module in model.named_modules() if path.endswith(name)]


def validate_adapter(model: Any, adapter: Adapter) -> None:
    """Checks that every layer which an adapter names is there; peft is silent where only some are.

    Raises:
        RecipeError: One is not, or is of a kind that gets no low-rank matrices.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    if adapter.type == "none":
        return
    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D, torch.nn.Conv1d, torch.nn.Conv2d)
    known = {path.rpartition(".")[2]: module for path, module in model.named_modules() if path}
    targets = () if adapter.target_modules == "all-linear" else adapter.target_modules
    problems = []
    experts = {path.rpartition(".")[2] for path in find_fused_experts(model)}
    taken = _converted_config(model, adapter)
    for option, names in (("target_modules", targets), ("modules_to_save", adapter.modules_to_save)):
        possible = [name for name, module in known.items() if option != "target_modules" or isinstance(module, kinds)]
        for name in names:
            found = (
                match_target_modules(model, name) if option == "target_modules" else match_modules_to_save(model, name)
            )
            if option == "target_modules" and name not in taken.target_modules:
                continue  # peft maps it to the experts
            if found and (option != "target_modules" or all(isinstance(module, kinds) for module in found)):
                continue
            said = "this layer of the model gets no adapter" if found else "the model has no layer of this name"
            if not found and name in experts:
                said = "this tensor holds the weights of all experts and can't be adapted by its name"
            near = "".join(get_close_matches(name, possible, n=1))
            hint = f"one of {', '.join(sorted(name for name in possible if not name.isdigit()))}"
            problems.append(Problem(f"adapter.{option}: {said}", name, hint, near))
    if problems:
        raise RecipeError(*problems)


def find_fused_experts(model: Any) -> dict[str, int]:
    """Path to size of the tensors that hold the weights of all experts of a layer, as mixtures of experts have them.

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
    """The adapter's configuration after peft replaced names of layers by the experts' tensors that they are part of.

    Raises:
        RecipeError: An adapter names one of two layers that are one tensor, or has dropout, which experts can't have.
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
        got, together = ", ".join(named), "both names, or --set adapter.target_modules=all-linear"
        raise RecipeError(Problem(f"adapter.target_modules: {error}", got, together)) from None
    if config.target_parameters and adapter.lora_dropout:
        message = "adapter.lora_dropout must be 0 if experts (one tensor per layer) get an adapter"
        raise RecipeError(Problem(message, f"{adapter.lora_dropout:g}", "--set adapter.lora_dropout=0"))
    return config


def find_adapted_experts(model: Any, adapter: Adapter) -> dict[str, int]:
    """Path to rank of the tensors that peft adapts though they are no layers.

    peft reaches the experts, and their router, of architectures that had them as layers in transformers 4. The experts
    of others get no adapter.
    """
    if adapter.type == "none" or not find_fused_experts(model):
        return {}
    config = _converted_config(model, adapter)
    found = {}
    for path, _ in model.named_parameters():
        for name in config.target_parameters or ():
            if path.endswith(f".{name}"):
                found[path] = int(config.rank_pattern.get(rf".*\.{re.escape(name)}", adapter.r))
    return found


def adapter_notices(model: Any, adapter: Adapter) -> list[str]:
    """Notices before an adapter is trained: weights that get none, and what merging will change."""
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
    """Notices for an adapter on one of two layers that share a matrix.

    Measured with peft 0.21 (tests/unit/models/test_layers.py): merging low-rank matrices into a shared matrix changes
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
            f"adapter.target_modules has {', '.join(low_rank)}, and this model's embedding and output layer are one "
            "matrix: merging the adapter changes both, so the merged model is not the tuned one; use it unmerged, "
            f"leave {' and '.join(low_rank)} out, or train a copy: "
            f"--set adapter.modules_to_save=[{embedding.rpartition('.')[2]}]"
        )
    if copied:
        notices.append(
            f"adapter.modules_to_save has {', '.join(copied)}, and this model's embedding and output layer are one "
            "matrix: what is trained is a copy for that layer alone, and merged the model has two matrices "
            "(tie_word_embeddings false)"
        )
    return notices
