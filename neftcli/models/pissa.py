"""PiSSA (Meng et al., NeurIPS 2024, arXiv 2404.02948): LoRA that starts from the largest singular values of a weight.

peft splits each adapted weight W into the adapter and a frozen rest, with LoRA's scaling s:

    W = R + s B0 A0    trained: R + s B A

R exists only in memory during training, and each process that resumes a run computes it again. The saved adapter is one
of twice the rank that fits the original weights, as peft's `save_pretrained` converts it:

    R + s B A = W + s [B, -B0] [A; A0]
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import ModelError, Problem

if TYPE_CHECKING:
    from torch import Tensor

    from neftcli.recipe.schema import Recipe
    from neftcli.system.device import ComputeConfig


def require_float32_weights(recipe: Recipe, compute: ComputeConfig) -> None:
    """Check that the weights that PiSSA splits are float32.

    In 16 bits the rest would be rounded, and the saved adapter would not be the trained one.

    Raises:
        ModelError: They are not.
    """
    import torch

    if recipe.adapter.uses_pissa() and compute.weights_dtype != torch.float32:
        message = "adapter.init_lora_weights pissa needs weights in float32: the rest of each weight would be rounded"
        dtype = str(compute.weights_dtype).removeprefix("torch.")
        raise ModelError(Problem(message, f"model.dtype {dtype}", "--set model.dtype=float32"))


def adapter_weights(model: Any) -> dict[str, Tensor]:
    """Return copies of an adapter's weights, with the names that they have in its file."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: weight.detach().clone() for name, weight in weights.items()}


def subtract_initial(weights: dict[str, Tensor], initial: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an adapter that fits the original base model: [A; A0] and [B, -B0].

    Args:
        weights: Weights of the trained adapter.
        initial: The weights that it started from.
    """
    import torch

    converted = dict(weights)  # layers that are trained in full stay as they are
    for name, weight in weights.items():
        if name.endswith(".lora_A.weight"):  # (r, in)
            converted[name] = torch.cat([weight, initial[name]], dim=0)
        elif name.endswith(".lora_B.weight"):  # (out, r)
            converted[name] = torch.cat([weight, -initial[name]], dim=1)
    return converted


def save_converted(model: Any, folder: Path, initial: dict[str, Tensor]) -> None:
    """Save the adapter for the original base model: LoRA of twice the rank with the same scaling."""
    from safetensors.torch import save_file

    config = copy.deepcopy(model.peft_config["default"])
    config.init_lora_weights, config.inference_mode = True, True
    config.r *= 2
    config.lora_alpha *= 2**0.5 if config.use_rslora else 2
    converted = subtract_initial(adapter_weights(model), initial)
    content = {name: weight.cpu().contiguous() for name, weight in converted.items()}
    save_file(content, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def load_converted(model: Any, folder: Path) -> None:
    """Load an adapter that `save_converted` wrote into the model that it was trained in."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    rank = model.peft_config["default"].r
    weights = load_file(folder / "adapter_model.safetensors")
    for name, weight in weights.items():
        if name.endswith(".lora_A.weight"):
            weights[name] = weight[:rank]
        elif name.endswith(".lora_B.weight"):
            weights[name] = weight[:, :rank]
    set_peft_model_state_dict(model, weights)
