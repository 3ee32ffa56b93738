"""The layers that an adapter names, and whether the model has them."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from neftcli.errors import Problem, RecipeError

if TYPE_CHECKING:
    from neftcli.recipe.schema import Adapter


def layers_named(model: Any, name: str) -> list[Any]:
    """The modules whose dotted path ends with `name`, part by part, as peft finds them."""
    return [module for path, module in model.named_modules() if f".{path}".endswith(f".{name}")]


def layers_saved(model: Any, name: str) -> list[Any]:
    """The modules whose dotted path ends with the letters of `name`: peft's way with those that are trained in full."""
    return [module for path, module in model.named_modules() if path.endswith(name)]


def require_layers(model: Any, adapter: Adapter) -> None:
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
    for option, names in (("target_modules", targets), ("modules_to_save", adapter.modules_to_save)):
        possible = [name for name, module in known.items() if option != "target_modules" or isinstance(module, kinds)]
        for name in names:
            found = layers_named(model, name) if option == "target_modules" else layers_saved(model, name)
            if found and (option != "target_modules" or all(isinstance(module, kinds) for module in found)):
                continue
            said = "this layer of the model gets no adapter" if found else "the model has no layer of this name"
            near = "".join(get_close_matches(name, possible, n=1))
            remedy = f"one of {', '.join(sorted(name for name in possible if not name.isdigit()))}"
            problems.append(Problem(f"adapter.{option}: {said}", name, remedy, near))
    if problems:
        raise RecipeError(*problems)
