"""Runs and models that a command evaluates or lets answer: a run of neft, the base model of a run, or any model."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from hashlib import sha256
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neftcli.errors import InputError, ModelError, Problem, RecipeError
from neftcli.events import EvaluatedModel, ModelSource, Observer, PairedRun
from neftcli.models.registry import ALIASES, ModelReference, resolve_model
from neftcli.recipe.loading import load_recipe, resolve_recipe
from neftcli.recipe.relative_paths import find_relative_paths
from neftcli.recipe.trust import TRUST
from neftcli.recipe.yaml_file import Layer, Setting
from neftcli.runs.baseline import find_paired_run
from neftcli.runs.directory import CELLS, NAME, RECIPE, RunDirectory, find_run, find_sweep, list_runs
from neftcli.system.paths import closest_path, exists

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neftcli.data.chat import ChatFormat
    from neftcli.recipe.schema import Recipe
    from neftcli.system.device import ComputeConfig

Role = Literal["run", "baseline", "base", "model"]
VERSIONS = ("neftcli", "torch", "transformers", "tokenizers", "peft", "bitsandbytes")
SETTINGS_FILES = ("*.json", "*.jinja", "*.py")
USED_OPTIONS = (
    *("model.revision", "model.dtype", "model.chat_template", "model.trust_remote_code", "training.precision"),
    *("data.config", "data.format", "data.columns", "data.system_prompt", "data.max_length"),
    *("data.loss_on", "data.reasoning", "evaluation.per_device_eval_batch_size", "evaluation.generation"),
    *("evaluation.judge", "evaluation.tasks", "evaluation.task_settings"),
)
"""Recipe options that `neft eval` uses, and that can be set for it."""
RUN_HINT = "RUN is a folder written by `neft train`, or its name; `neft models` lists model names"
OPTIONS_HINT = "neft recipes show quickstart --all    for the options below evaluation"


@dataclass(frozen=True)
class EvalTarget:
    """A model to evaluate.

    Attributes:
        role: Its role in the table: run, baseline, base or model.
        name: Name of the run or model.
        recipe: The recipe that trained it, or that loads it.
        reference: Its weights; for a run with an adapter, the base model's.
        home: Folder in which its results are stored, in `evaluation/`.
        run: The run; None for a model.
        tokenizer: Folder of the tokenizer; None if it comes with the reference.
        expected_fingerprint: Fingerprint that the reference's weights must have; None if any will do.
    """

    role: Role
    name: str
    recipe: Recipe
    reference: ModelReference
    home: Path
    run: RunDirectory | None = None
    tokenizer: Path | None = None
    expected_fingerprint: str | None = None

    def column(self) -> EvaluatedModel:
        """Return its column of the table."""
        trained = self.run is not None
        return EvaluatedModel(
            role=self.role,
            name=self.name,
            source=ModelSource("run", str(self.run.path)) if self.run else self.reference.source(),
            alpha=self.recipe.neftune.alpha if trained else None,
            seed=self.recipe.training.seed if trained else None,
        )

    def paired_run(self) -> PairedRun | None:
        """Find the run that differs only in its noise; None for a model that is not a run."""
        if self.run is None:
            return None
        return find_paired_run(load_recipe(str(self.run.path / RECIPE), as_written=True), self.run.path.parent)

    def has_adapter(self) -> bool:
        """Return whether it is an adapter on the reference's weights."""
        return self.run is not None and self.recipe.adapter.type != "none"

    def with_trust(self, trust_remote_code: bool) -> EvalTarget:
        """Return the target with permission to run the model's own code, or without.

        Somebody else may have written the recipe of a run, so only the command line gives this permission.

        Raises:
            ModelError: It may run code, and comes from the hub without a commit.
        """
        from neftcli.models.loading import require_pinned_code

        require_pinned_code(self.reference, trust_remote_code)
        model = replace(self.recipe.model, trust_remote_code=trust_remote_code)
        return replace(self, recipe=replace(self.recipe, model=model))

    def saved_recipe(self) -> Recipe:
        """Return the run's recipe without overrides from the command line, or the recipe that loads a model."""
        return self.recipe if self.run is None else load_recipe(str(self.run.path / RECIPE))

    def load_chat_format(self, row_format: str, observer: Observer) -> ChatFormat:
        """Load its tokenizer and stop tokens, with a chat template unless the rows are plain text."""
        from neftcli.data.chat import build_chat_format, load_chat_format
        from neftcli.models.chat_templates import set_chat_template
        from neftcli.models.limits import load_embedding_size
        from neftcli.models.loading import load_tokenizer, read_stop_tokens
        from neftcli.models.new_tokens import require_new_tokens

        if self.tokenizer is None:
            return load_chat_format(self.recipe, self.reference, row_format, observer)[0]
        saved = ModelReference(self.name, "folder", str(self.tokenizer))
        trust = self.recipe.model.trust_remote_code
        tokenizer, _ = load_tokenizer(saved, trust, load_embedding_size(self.reference, trust))
        require_new_tokens(tokenizer, self.recipe, self.tokenizer)
        if row_format != "text":  # a saved tokenizer brings the template that the run was trained with
            set_chat_template(tokenizer, None if tokenizer.chat_template else self.recipe.model.chat_template)
        declared = read_stop_tokens(self.reference)
        return build_chat_format(tokenizer, declared, self.recipe, row_format)

    def load(self, compute: ComputeConfig) -> PreTrainedModel:
        """Load the model on the device, with its adapter.

        Raises:
            ModelError: It can't be found or read.
        """
        from neftcli.models.loading import load_adapter, load_model_for_recipe

        model = load_model_for_recipe(self.recipe, self.reference, compute)
        return load_adapter(model, self.run.model) if self.run and self.has_adapter() else model

    def compute_config(self) -> ComputeConfig:
        """Return the device and precision that it is evaluated with.

        Raises:
            InputError: A process sees several GPUs.
        """
        from neftcli.system.device import resolve_compute_config

        frozen_weights = self.has_adapter() or self.run is None
        precision, dtype = self.recipe.training.precision, self.recipe.model.dtype
        return resolve_compute_config(precision, dtype, frozen_weights=frozen_weights)

    def identity(self, compute: ComputeConfig, without_base: str = "--no-base") -> dict[str, Any]:
        """Return everything that its results depend on, except rows and settings.

        Args:
            compute: Device and precision.
            without_base: What to type to do without the base model of a run.

        Raises:
            ModelError: It can't be reached, or the base model of a run has changed since training.
        """
        from neftcli.models.loading import load_config, model_fingerprint
        from neftcli.models.model_files import folder_sha256

        weights = model_fingerprint(self.reference, load_config(self.reference, self.recipe.model.trust_remote_code))
        if self.expected_fingerprint is not None and weights != self.expected_fingerprint:
            raise ModelError(
                Problem(
                    f"{self.reference.name} is not the model that the run was trained on: its weights have changed",
                    f"{weights}, and {self.expected_fingerprint} in run.json",
                    without_base if self.run is None else "restore the original weights, e.g. with model.revision",
                )
            )
        settings, adapter = None, None
        if self.reference.kind == "folder":
            settings = folder_sha256(Path(self.reference.location), *SETTINGS_FILES)
        if self.run and self.has_adapter():
            adapter = folder_sha256(self.run.model, "*.safetensors", *SETTINGS_FILES)
        new_tokens = {"new_tokens": self.recipe.model.new_tokens} if self.recipe.model.new_tokens else {}
        return {
            **new_tokens,
            "weights": weights,
            "settings": settings,
            "adapter": adapter,
            "quantization": [self.recipe.quantization.type, self.recipe.quantization.double_quantization],
            "arithmetic": [str(compute.weights_dtype), compute.bfloat16, compute.device],
            "versions": {name: metadata.version(name) for name in VERSIONS if find_spec(name)},
        }


def resolve_target(
    name: str, role: Role, overrides: Sequence[Layer], used: tuple[str, ...] = USED_OPTIONS
) -> EvalTarget:
    """Resolve a name on the command line: a run's folder or name, or a model.

    Args:
        name: As typed.
        role: run or baseline; a model that is not a run becomes "model" instead of "run".
        overrides: Layers of the command line. A run is evaluated as it was trained, so only options of its evaluation
            can be set.
        used: Beginnings of the keys that the command uses.

    Raises:
        InputError: There is no such run or model, or the run has no model.
        RecipeError: An override does not fit.
    """
    try:
        folder = find_run(name)
        if folder is None and (sweep := find_sweep(name)) is not None:
            hint = f"ls {shlex.quote(f'{sweep}/{CELLS}')}    lists its runs"
            raise InputError(Problem("this is a sweep, not a run or a model", name, hint))
        if folder is None:
            return _resolve_model_target(name, role, overrides, used)
    except (OSError, ValueError, RuntimeError):  # a name that no file system has
        raise _unknown(name) from None
    run = RunDirectory.open(folder)
    recipe = load_recipe(str(folder / RECIPE), overrides)
    _require_used(overrides, used)
    fixed = [
        Problem(f"{setting.origin}: a run is used as it was trained", setting.typed, "leave it out")
        for layer in overrides
        for path, setting in layer.items()
        if not path.startswith(("evaluation.", "data.", "model.trust_remote_code"))
    ]
    if fixed:
        raise RecipeError(*fixed)
    if recipe.adapter.type == "none":
        reference = ModelReference(folder.name, "folder", str(run.model))
        expected_fingerprint = None
    else:
        reference = _base_reference(recipe, folder)
        expected_fingerprint = run.record().get("model_fingerprint")
    return EvalTarget(role, folder.name, recipe, reference, folder, run, run.model, expected_fingerprint)


def apply_typed_trust(target: EvalTarget, overrides: Sequence[Layer]) -> EvalTarget:
    """Return the target with permission to run the model's own code, if the command line gives it.

    Somebody else may have written the recipe of a run, so its permission does not count.

    Raises:
        ModelError: The model may run code, and comes from the hub without a commit.
    """
    trusted = False
    for layer in overrides:
        if TRUST in layer:
            trusted = layer[TRUST].value is True
    return target.with_trust(trusted)


def _base_reference(recipe: Recipe, run: Path) -> ModelReference:
    """Resolve the base model of a run.

    Raises:
        ModelError: It no longer exists.
    """
    name, relative_paths = recipe.model.name, find_relative_paths(run / RECIPE)
    try:
        return resolve_model(name, recipe.model.revision)
    except ModelError:
        if relative_paths is None or name not in relative_paths.local:
            raise
        message = f"{run}: the base model of this run is missing"
        hint = "--no-base" if recipe.adapter.type == "none" else "move the model back to one of these folders"
        raise ModelError(Problem(message, relative_paths.describe_search(name), hint)) from None


def _require_used(overrides: Sequence[Layer], used: tuple[str, ...]) -> None:
    """Reject options that the command does not use."""
    problems = [
        Problem(f"{setting.origin}: this command does not use this option", setting.typed, OPTIONS_HINT)
        for layer in overrides
        for path, setting in layer.items()
        if not path.startswith(used)
    ]
    if problems:
        raise RecipeError(*problems)


def base_model_target(target: EvalTarget) -> EvalTarget | None:
    """Return the model that a run was trained from; None for a model that is not a run."""
    if target.run is None:
        return None
    recipe = target.recipe
    reference = _base_reference(recipe, target.run.path)
    home = target.home.parent / _folder_name(reference)
    expected_fingerprint = target.run.record().get("model_fingerprint")
    return EvalTarget("base", reference.label(), recipe, reference, home, None, target.run.model, expected_fingerprint)


def _resolve_model_target(name: str, role: Role, overrides: Sequence[Layer], used: tuple[str, ...]) -> EvalTarget:
    """Resolve a name to a model that is not a run."""
    try:
        named: Layer = {"model.name": Setting(name, "RUN|MODEL", name)}
        recipe = resolve_recipe([named, *overrides])
        _require_used(overrides, used)
        reference = resolve_model(name, recipe.model.revision)
    except ModelError:
        if not exists(Path(name)) or (Path(name) / "model").is_dir():
            raise _unknown(name) from None
        if any((Path(name) / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise
        message = f"{name}: this is neither a run nor a model: run.json and config.json are missing"
        got = "a file"
        if Path(name).is_dir():
            got = ", ".join(sorted(item.name for item in Path(name).iterdir())[:6]) or "an empty folder"
        raise InputError(Problem(message, got, RUN_HINT)) from None
    if reference.kind == "hub" and reference.alias is None and Path(name).parent.is_dir():
        raise _unknown(name)  # such as runs/misspelt
    home = recipe.output_folder() / _folder_name(reference)
    return EvalTarget("model" if role == "run" else role, reference.label(), recipe, reference, home)


def _unknown(name: str) -> InputError:
    """Build the error for a name that is neither a run nor a model."""
    known = [*ALIASES, *(path.parent.name for path in Path("runs").glob("*/run.json"))]
    nearest = get_close_matches(Path(name).name, known, n=1, cutoff=0.5)
    folders = []
    with suppress(OSError, ValueError):  # a name that no file system has
        folders = [folder for folder in (Path(name), Path("runs") / name) if (folder / "model").is_dir()]
    if folders:
        return InputError(
            Problem(f"{folders[0]}: run.json is missing, so this is not a run", name, f"{folders[0]}/model")
        )
    near = "".join(nearest) or closest_path(Path(name))
    runs = list_runs()
    hint = f"in runs/: {runs}; `neft models` lists model names" if runs else RUN_HINT
    return InputError(Problem("no such run or model", name, hint, near))


def _folder_name(reference: ModelReference) -> str:
    """Return the label as the name of a folder, or its hash if it can't be one."""
    label = reference.label()
    return label if NAME.fullmatch(label) and label.strip(".") else sha256(label.encode()).hexdigest()[:16]
