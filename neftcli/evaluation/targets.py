"""What can be evaluated: a run of this tool, the model that a run began from, or any model."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neftcli.errors import InputError, ModelError, Problem, RecipeError
from neftcli.events import EvaluatedModel, Observer, PairedRun
from neftcli.models.registry import ALIASES, ModelReference, resolve_model
from neftcli.recipe.loading import load_recipe
from neftcli.recipe.loading import resolve as resolve_recipe
from neftcli.recipe.relative_paths import find_relative_paths
from neftcli.recipe.yaml_file import Layer, Setting
from neftcli.runs.baseline import find_paired_run
from neftcli.runs.directory import CELLS, NAME, RECIPE, RunDirectory, find_run, find_sweep
from neftcli.system.paths import closest_path, exists

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neftcli.data.chat import ChatFormat
    from neftcli.recipe.schema import Recipe
    from neftcli.system.device import ComputeConfig

Role = Literal["run", "baseline", "base", "model"]
VERSIONS = ("neftcli", "torch", "transformers", "tokenizers", "peft", "bitsandbytes")
SETTINGS = ("*.json", "*.jinja", "*.py")
READ = (
    *("model.revision", "model.dtype", "model.chat_template", "model.trust_remote_code", "training.precision"),
    *("data.config", "data.format", "data.columns", "data.system_prompt", "data.max_length"),
    *("data.loss_on", "data.reasoning", "evaluation.per_device_eval_batch_size", "evaluation.generation"),
    *("evaluation.judge", "evaluation.tasks", "evaluation.task_settings"),
)
"""What of a recipe an evaluation reads, and so can be set for one."""
RUN = "neft eval RUN, where RUN is a folder that `neft train` made; `neft models` for the names of models"
ADVICE = "neft recipes show quickstart --all    for the options below evaluation"


@dataclass(frozen=True)
class EvalTarget:
    """A model that is evaluated.

    Attributes:
        role: What it is in the table.
        name: The run's name, or the model's.
        recipe: How it was trained, or how it is loaded.
        reference: The weights; of a run with an adapter those below it.
        home: The folder below which its results are kept.
        run: The run that it is; None for a model.
        tokenizer: The folder of the tokenizer, or None where it comes with the reference.
        began_as: The fingerprint that the reference's weights must have, or None.
    """

    role: Role
    name: str
    recipe: Recipe
    reference: ModelReference
    home: Path
    run: RunDirectory | None = None
    tokenizer: Path | None = None
    began_as: str | None = None

    def column(self) -> EvaluatedModel:
        """Its column of the table."""
        trained = self.run is not None
        return EvaluatedModel(
            role=self.role,
            name=self.name,
            source=str(self.run.path) if self.run else self.reference.describe_source(),
            alpha=self.recipe.neftune.alpha if trained else None,
            seed=self.recipe.training.seed if trained else None,
        )

    def paired_run(self) -> PairedRun | None:
        """What it is compared with to see what the noise did; None of a model that is no run."""
        if self.run is None:
            return None
        return find_paired_run(load_recipe(str(self.run.path / RECIPE), as_written=True), self.run.path.parent)

    def has_adapter(self) -> bool:
        """Whether it is an adapter on the reference's weights."""
        return self.run is not None and self.recipe.adapter.type != "none"

    def saved_recipe(self) -> Recipe:
        """How the run was trained, without what was typed since; of a model how it is loaded."""
        return self.recipe if self.run is None else load_recipe(str(self.run.path / RECIPE))

    def load_chat_format(self, row_format: str, observer: Observer) -> ChatFormat:
        """Load its tokenizer and stop tokens, with a chat template unless rows are plain text."""
        from neftcli.data.chat import build_chat_format, load_chat_format
        from neftcli.models.chat_templates import set_chat_template
        from neftcli.models.limits import load_embedding_size
        from neftcli.models.loading import load_tokenizer
        from neftcli.models.settings_files import declared_stop_tokens

        if self.tokenizer is None:
            return load_chat_format(self.recipe, self.reference, row_format, observer)[0]
        saved = ModelReference(self.name, "folder", str(self.tokenizer))
        trust = self.recipe.model.trust_remote_code
        tokenizer, _ = load_tokenizer(saved, trust, load_embedding_size(self.reference, trust))
        if row_format != "text":  # a saved tokenizer brings the template that the run was trained with
            set_chat_template(tokenizer, None if tokenizer.chat_template else self.recipe.model.chat_template)
        declared = declared_stop_tokens(self.reference)
        return build_chat_format(tokenizer, declared, self.recipe, row_format)

    def load(self, compute: ComputeConfig) -> PreTrainedModel:
        """The model on the device, with its adapter.

        Raises:
            ModelError: It can't be found or read.
        """
        from neftcli.models.loading import load_adapter, load_model_for_recipe

        model = load_model_for_recipe(self.recipe, self.reference, compute)
        return load_adapter(model, self.run.model) if self.run and self.has_adapter() else model

    def identity(self, compute: ComputeConfig) -> dict[str, Any]:
        """All that its numbers depend on, rows and settings aside.

        Raises:
            ModelError: It can't be reached, or a run's base model is not what the run was trained on.
        """
        from neftcli.models.files import folder_sha256
        from neftcli.models.loading import load_config, model_fingerprint

        weights = model_fingerprint(self.reference, load_config(self.reference, self.recipe.model.trust_remote_code))
        if self.began_as is not None and weights != self.began_as:
            raise ModelError(
                Problem(
                    f"{self.reference.name} is not what the run was trained on: its weights have changed since",
                    f"{weights}, and {self.began_as} in run.json",
                    "--no-base" if self.run is None else "the weights of then, e.g. by model.revision",
                )
            )
        local = self.reference.kind == "folder"
        return {
            "weights": weights,
            "settings": folder_sha256(Path(self.reference.location), *SETTINGS) if local else None,
            "adapter": folder_sha256(self.run.model, "*.safetensors", *SETTINGS)
            if self.run and self.has_adapter()
            else None,
            "quantization": [self.recipe.quantization.type, self.recipe.quantization.double_quantization],
            "arithmetic": [str(compute.weights_dtype), compute.bfloat16, compute.device],
            "versions": {name: metadata.version(name) for name in VERSIONS if find_spec(name)},
        }


def resolve_target(name: str, role: Role, overrides: Sequence[Layer]) -> EvalTarget:
    """What a name on the command line stands for: a run's folder or name, or a model.

    Args:
        name: As it was typed.
        role: run or baseline; a model that is no run becomes "model" in place of "run".
        overrides: Layers of the command line. A run's recipe says how it was trained, so only what concerns its
            evaluation can be set.

    Raises:
        InputError: It is neither, or the run has no model.
        RecipeError: An override does not fit.
    """
    try:
        folder = find_run(name)
        if folder is None and (sweep := find_sweep(name)) is not None:
            told = f"a run: ls {shlex.quote(f'{sweep}/{CELLS}')}    shows the sweep's"
            raise InputError(Problem("this is a sweep; what is evaluated is a run or a model", name, told))
        if folder is None:
            return _model(name, role, overrides)
    except (OSError, ValueError, RuntimeError):  # a name that no file system has
        raise _unknown(name) from None
    run = RunDirectory.open(folder)
    recipe = load_recipe(str(folder / RECIPE), overrides)
    _require_read(overrides)
    fixed = [
        Problem(f"{setting.origin}: a run is evaluated as it was trained", setting.typed, "leave it out")
        for layer in overrides
        for path, setting in layer.items()
        if not path.startswith(("evaluation.", "data.", "model.trust_remote_code"))
    ]
    if fixed:
        raise RecipeError(*fixed)
    reference = (
        _base_reference(recipe, folder)
        if recipe.adapter.type != "none"
        else ModelReference(folder.name, "folder", str(run.model))
    )
    began_as = run.record().get("model_fingerprint") if recipe.adapter.type != "none" else None
    return EvalTarget(role, folder.name, recipe, reference, folder, run, run.model, began_as)


def _base_reference(recipe: Recipe, run: Path) -> ModelReference:
    """The base model of a run.

    Raises:
        ModelError: It is no longer there.
    """
    name, relative_paths = recipe.model.name, find_relative_paths(run / RECIPE)
    try:
        return resolve_model(name, recipe.model.revision)
    except ModelError:
        if relative_paths is None or name not in relative_paths.local:
            raise
        said = f"{run}: the base model of this run is no longer there"
        hint = "--no-base" if recipe.adapter.type == "none" else "the model back in one of these folders"
        raise ModelError(Problem(said, relative_paths.describe_search(name), hint)) from None


def _require_read(overrides: Sequence[Layer]) -> None:
    """Refuses options that no evaluation reads."""
    typed = [setting for layer in overrides for path, setting in layer.items() if not path.startswith(READ)]
    if typed:
        unread = "an evaluation does not read this option"
        raise RecipeError(*(Problem(f"{one.origin}: {unread}", one.typed, ADVICE) for one in typed))


def base_model_target(subject: EvalTarget) -> EvalTarget | None:
    """The model that a run began from; None for a model that is no run."""
    if subject.run is None:
        return None
    recipe = subject.recipe
    reference = _base_reference(recipe, subject.run.path)
    home = subject.home.parent / _folder_name(reference)
    began_as = subject.run.record().get("model_fingerprint")
    return EvalTarget("base", reference.label(), recipe, reference, home, None, subject.run.model, began_as)


def _model(name: str, role: Role, overrides: Sequence[Layer]) -> EvalTarget:
    try:
        named: Layer = {"model.name": Setting(name, "neft eval", name)}
        recipe = resolve_recipe([named, *overrides])
        _require_read(overrides)
        reference = resolve_model(name, recipe.model.revision)
    except ModelError:
        if not exists(Path(name)) or (Path(name) / "model").is_dir():
            raise _unknown(name) from None
        if any((Path(name) / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise
        said = f"{name}: this is no run and no model: run.json and config.json are missing"
        found = "a file"
        if Path(name).is_dir():
            found = ", ".join(sorted(item.name for item in Path(name).iterdir())[:6]) or "nothing in it"
        raise InputError(Problem(said, found, RUN)) from None
    if reference.kind == "hub" and reference.alias is None and Path(name).parent.is_dir():
        raise _unknown(name)  # such as runs/misspelt
    home = Path(recipe.output_dir) / _folder_name(reference)
    return EvalTarget("model" if role == "run" else role, reference.label(), recipe, reference, home)


def _unknown(name: str) -> InputError:
    """What is said of a name that stands for nothing."""
    known = [*ALIASES, *(path.parent.name for path in Path("runs").glob("*/run.json"))]
    nearest = get_close_matches(Path(name).name, known, n=1, cutoff=0.5)
    folders = []
    with suppress(OSError, ValueError):  # a name that no file system has
        folders = [place for place in (Path(name), Path("runs") / name) if (place / "model").is_dir()]
    if folders:
        return InputError(Problem(f"{folders[0]}: run.json is missing, so this is no run", name, f"{folders[0]}/model"))
    near = "".join(nearest) or closest_path(Path(name))
    return InputError(Problem("there is no run and no model of this name", name, RUN, near))


def _folder_name(reference: ModelReference) -> str:
    """The label as the name of a folder, and where it can't be one, a hash of it."""
    label = reference.label()
    return label if NAME.fullmatch(label) and label.strip(".") else sha256(label.encode()).hexdigest()[:16]
