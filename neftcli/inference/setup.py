"""Runs and models that answer: resolved, checked before anything is loaded, and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neftcli.errors import InputError, Problem
from neftcli.evaluation.targets import EvalTarget, apply_typed_trust, base_model_target, resolve_target
from neftcli.events import Observer
from neftcli.models.chat_templates import validate_chat_template
from neftcli.models.validate import validate_model, validate_weight_files
from neftcli.system.hub import notify_if_unreachable

if TYPE_CHECKING:
    from neftcli.recipe.yaml_file import Layer
    from neftcli.system.device import ComputeConfig

MODEL_OPTIONS = (
    *("model.revision", "model.dtype", "model.chat_template", "model.trust_remote_code", "training.precision"),
    *("data.system_prompt", "data.reasoning", "data.format", "evaluation.generation"),
)
"""Recipe options that both commands use."""
BASE = "base"
"""Name of a run's own base model in `--against`."""
TEXT = "text"


def resolve_answering_target(
    name: str, overrides: Sequence[Layer], used: tuple[str, ...] = MODEL_OPTIONS
) -> EvalTarget:
    """Resolve a run or model that answers.

    Raises:
        InputError: There is no such run or model, or an option does not fit.
    """
    return apply_typed_trust(resolve_target(name, "run", overrides, used), overrides)


def resolve_second_model(name: str, main: EvalTarget, overrides: Sequence[Layer]) -> EvalTarget:
    """Resolve the model that a run is compared with: "base" for its base model, or another run or model.

    Raises:
        InputError: There is no such model, or it is the run itself.
    """
    if name == BASE:
        base = base_model_target(main)
        if base is None:
            hint = "--against RUN or --against MODEL"
            raise InputError(Problem(f"{main.name} is not a run, so it has no base model", f"--against {BASE}", hint))
        return base
    shared = [
        {path: setting for path, setting in layer.items() if path.startswith(("evaluation.", "data."))}
        for layer in overrides
    ]
    second = apply_typed_trust(resolve_target(name, "baseline", shared, MODEL_OPTIONS), overrides)
    ours, theirs = (target.run.path.resolve() if target.run else target.reference for target in (main, second))
    if ours == theirs:
        raise InputError(Problem("a model can't be compared with itself", f"--against {name}", f"--against {BASE}"))
    return second


def check_targets(targets: Sequence[EvalTarget], observer: Observer, *, reads_hub: bool = False) -> None:
    """Check the models before anything is loaded; without the hub, switch to the local cache with a notice.

    Args:
        targets: The models.
        observer: Receives the notice.
        reads_hub: Something other than the models is read from the hub.

    Raises:
        InputError: A model can't be used.
    """
    if reads_hub or any(target.reference.kind == "hub" for target in targets):
        notify_if_unreachable(observer)
    for target in targets:
        if target.tokenizer is None:  # a saved tokenizer has its own template
            validate_chat_template(target.recipe.model.chat_template)
        validate_model(target.reference, target.recipe, trains=False)
        validate_weight_files(target.reference)


def require_original_weights(target: EvalTarget, compute: ComputeConfig) -> None:
    """Check that the base model of a run has the weights that the run was trained on.

    Raises:
        ModelError: It doesn't.
    """
    if target.expected_fingerprint is not None:
        target.identity(compute, "restore the original weights, or leave out --against")


def is_plain_text(target: EvalTarget) -> bool:
    """Return whether a run was trained on plain text, or plain text is requested."""
    row_format = target.recipe.data.format
    if row_format == "auto" and target.run is not None:
        row_format = target.run.record().get("row_format", row_format)
    return row_format == TEXT
