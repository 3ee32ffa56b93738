"""neft from Python: `train`, `evaluate` and `sweep_alpha`, with the command line's settings and typed results.

    import neftcli

    run = neftcli.train("quickstart", {"neftune.alpha": 5, "training.max_steps": 20})
    report = neftcli.evaluate(run, baseline="quickstart-a0-s0")

Settings are a recipe's dotted keys. Everything that the command line prints as an error is raised as a `NeftError`, and
an interrupt saves a checkpoint and raises `Preempted`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.cli.display import Silent, choose_display
from neftcli.cli.options import QUICKSTART, recipe_of
from neftcli.errors import InputError, Problem
from neftcli.events import EvaluationReport, Observer, RunFinished, SweepReport

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neftcli.recipe.yaml_file import Layer
    from neftcli.training.signals import StopSignal

RecipeSettings = Mapping[str, Any]
"""Dotted keys of a recipe with their values: `{"training.max_steps": 20}`."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Its folder.
        results: Its losses and sample answers before and after training.
    """

    folder: Path
    results: RunFinished

    @property
    def model(self) -> Path:
        """Folder of the tuned model or adapter, for transformers or peft."""
        return self.folder / "model"

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the tuned model, with its adapter if it has one, and its tokenizer.

        Raises:
            ModelError: The base model of an adapter is missing or has changed.
        """
        from neftcli.evaluation.targets import resolve_target
        from neftcli.models.loading import load_tokenizer
        from neftcli.models.registry import ModelReference
        from neftcli.system.device import resolve_compute_config

        target = resolve_target(str(self.folder), "run", [])
        frozen_weights = target.has_adapter()
        recipe = target.recipe
        compute = resolve_compute_config(recipe.training.precision, recipe.model.dtype, frozen_weights=frozen_weights)
        target.identity(compute)  # rejects a base model that has changed
        saved = ModelReference(self.folder.name, "folder", str(self.model))
        tokenizer, _ = load_tokenizer(saved, recipe.model.trust_remote_code, None)
        return target.load(compute), tokenizer


def train(
    recipe: str | PathLike[str] | None = None,
    settings: RecipeSettings | None = None,
    *,
    resume: str | PathLike[str] | None = None,
    progress: bool | Observer = True,
) -> Run:
    """Fine-tune a model, as `neft train` does.

    Args:
        recipe: Name of a shipped recipe or a YAML file; by default the quickstart, or none if the settings name a model
            or data.
        settings: Options that override the recipe.
        resume: A stopped run to resume with its own recipe.
        progress: Print progress and results; an object with `notify` receives the events instead.

    Raises:
        InputError: The recipe, the model or the data can't be used; nothing was started.
        TrainingError: Training failed; the run's folder says why.
        Preempted: It was interrupted, and a checkpoint was saved.
    """
    from neftcli.training.resume import find_resume_state
    from neftcli.training.train import train as run_training

    if resume is not None and recipe is not None:
        raise InputError(Problem("resume and recipe can't be combined: a run has its own recipe", str(recipe)))
    layers = [_layer(settings)]
    with _display(progress) as display, _interrupts(display) as stop:
        if resume is None:
            resolved, state = recipe_of(layers, None if recipe is None else str(recipe)), None
        else:
            resolved, state = find_resume_state(str(resume), layers, accept_changes=False)
        if resolved.training.processes != 1:
            got = f"training.processes {resolved.training.processes}"
            raise InputError(Problem("several processes are started by the command line", got, "neft train"))
        results = run_training(resolved, display, stop=stop, resume=state)
    return Run(Path(results.run), results)


def evaluate(
    target: Run | str | PathLike[str],
    baseline: Run | str | PathLike[str] | None = None,
    settings: RecipeSettings | None = None,
    *,
    dataset: str | PathLike[str] | None = None,
    split: str | None = None,
    max_rows: int | None = None,
    base: bool = True,
    answers: bool = True,
    progress: bool | Observer = True,
) -> EvaluationReport:
    """Evaluate a run or a model on held-out rows and compare it, as `neft eval` does.

    Args:
        target: A run, its folder or name, or a model.
        baseline: Another one to compare with, usually the same recipe with alpha 0.
        settings: Options of the evaluation that override the run's.
        dataset: Rows to evaluate on; by default the run's held-out split.
        split: Split of a hub data set.
        max_rows: Number of rows to sample at random; by default all.
        base: Compare with the run's base model as well.
        answers: Generate answers.
        progress: Print progress and results; an object with `notify` receives the events instead.

    Raises:
        InputError: A model, the rows or a setting can't be used; nothing was started.
        JudgeError: The judge failed; its replies so far are kept.
        Preempted: It was interrupted; results so far are kept.
    """
    from neftcli.evaluation.evaluate import EvalRequest
    from neftcli.evaluation.evaluate import evaluate as run_evaluation

    request = EvalRequest(
        target=_name(target),
        baseline=None if baseline is None else _name(baseline),
        dataset=None if dataset is None else str(dataset),
        split=split,
        max_rows=max_rows,
        overrides=(_layer(settings),),
        base=base,
        answers=answers,
    )
    with _display(progress) as display, _interrupts(display) as stop, stop.interruptible():
        return run_evaluation(request, display)


def sweep_alpha(
    alphas: Sequence[float],
    recipe: str | PathLike[str] = QUICKSTART,
    settings: RecipeSettings | None = None,
    *,
    seeds: int = 3,
    progress: bool | Observer = True,
) -> SweepReport:
    """Train a grid of alphas over several seeds and test which differ, as `neft sweep-alpha` does.

    Called again with the same arguments it resumes: finished runs are kept. The runs are trained in processes of their
    own, so a script calls it below `if __name__ == "__main__":`.

    Args:
        alphas: Noise scales; 0, the baseline, is added if it is missing.
        recipe: Name of a shipped recipe or a YAML file.
        settings: Options that override the recipe, those of the sweep (`sweep.delta`, `sweep.metrics`) included.
        seeds: Number of seeds.
        progress: Print progress and results; an object with `notify` receives the events instead.

    Raises:
        InputError: The recipe, the model or the data can't be used; nothing was started.
        SweepError: Runs failed; the others are finished and reported.
        Preempted: It was interrupted; finished runs are kept.
    """
    from neftcli.recipe.loading import read_recipe_layers
    from neftcli.sweep.sweep_alpha import SweepRequest, run_sweep

    own = _layer({"sweep.alphas": list(alphas), "sweep.seeds": seeds})
    request = SweepRequest(layers=(*read_recipe_layers(str(recipe)), _layer(settings), own))
    with _display(progress) as display, _interrupts(display) as stop, stop.interruptible():
        report = run_sweep(request, display)
    assert report is not None  # noqa: S101 - only a dry run has none
    return report


def _layer(settings: RecipeSettings | None) -> Layer:
    """Return settings as a layer of the recipe, with values by the rules of a recipe file."""
    from neftcli.recipe.yaml_file import Setting, read_value

    layer: Layer = {}
    for key, value in (settings or {}).items():
        origin = f"settings[{key!r}]"
        try:
            text = json.dumps(value, default=str)
        except (TypeError, ValueError) as error:
            raise InputError(Problem(f"{origin}: not a value of a recipe", repr(value), str(error))) from None
        layer[key] = Setting(read_value(text, origin), origin, repr(value))
    return layer


def _name(target: Run | str | PathLike[str]) -> str:
    return str(target.folder if isinstance(target, Run) else target)


@contextmanager
def _display(progress: bool | Observer) -> Iterator[Observer]:
    """Yield the observer that was given, or a display for a terminal, a notebook or a file."""
    if progress is True:
        with choose_display(json_lines=False, quiet=False) as display:
            yield display
    else:
        yield progress or Silent()


@contextmanager
def _interrupts(display: Observer) -> Iterator[StopSignal]:
    """Let an interrupt stop the work after the current step; only the main thread receives signals."""
    from neftcli.training.signals import StopSignal

    stop = StopSignal()
    is_main = threading.current_thread() is threading.main_thread()
    with stop.handle_signals(first=lambda: stop.announce(display)) if is_main else nullcontext():
        yield stop
