"""State of a run that its checkpoints store, and the checks before a stopped run resumes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.remote import strip_file_scheme
from neftcli.data.sources import is_local_path
from neftcli.errors import InputError, ModelError, Problem
from neftcli.events import Evaluated, Notice, Observer
from neftcli.events.data import BUILTIN
from neftcli.metrics.registry import HELD_OUT_LOSS, is_better
from neftcli.models.registry import resolve_model
from neftcli.recipe.keys import format_value
from neftcli.recipe.loading import load_recipe, read_recipe_layers, recipe_differences, resolve_recipe, rewrite_paths
from neftcli.recipe.relative_paths import RelativePaths, find_relative_paths, relative_paths_record
from neftcli.recipe.trust import require_typed_trust
from neftcli.runs.checkpoints import Checkpoint, CheckpointFolder
from neftcli.runs.directory import BEST_MODEL, RECIPE, RECORD, RunDirectory, find_run, find_sweep, list_runs
from neftcli.system.files import require_no_link, require_no_links
from neftcli.system.paths import closest_path, exists, expand_home
from neftcli.training.inputs import local_paths
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.evaluation.loss import RowLoss
    from neftcli.recipe.schema import Recipe
    from neftcli.recipe.yaml_file import Layer
    from neftcli.runs.schemas import BaseMeasurements, TrainingState, UnloggedSums

MEASUREMENT_SETTINGS = ("evaluation.samples", "evaluation.probe_rows", "evaluation.generation", "evaluation.during")
"""Beginnings of the options of measurements before, during and after training; they must be equal for a comparison."""
FIXED = (
    *("adapter.", "quantization.", "model."),  # the checkpoint's tensors would not fit
    "training.processes",  # the checkpoint has a part of each process
    "training.freeze",  # the checkpoint has optimiser states of the trained weights only
    *("training.optim", "training.learning_rate", "training.weight_decay", "training.logging_steps"),  # stored in it
    *MEASUREMENT_SETTINGS,
)
"""Options that --accept-changes can't change."""
PATH_FLAGS = {
    "model.name": "--model PATH    the new path",
    "data.source": "--dataset PATH    the new path",
    "data.sources": "--set data.sources='[...]'    the entries with their new paths",
    "data.held_out_source": "--held-out PATH    the new path",
}
"""Options that hold a path, with the hint if it has moved. Moved files are compared by their content."""
NO_RUN_YET = "run the command that started it again; a run killed in its first seconds leaves no folder"
ACCEPT = "--accept-changes    resumes anyway; the run is then recorded as mixed"


@dataclass(frozen=True)
class LossEvaluation:
    """Evaluation of the model during training.

    Attributes:
        measured: The mean losses and the metrics of answers, and the step after which they were measured.
        held_out: The loss of each held-out row.
    """

    measured: Evaluated
    held_out: Sequence[RowLoss]


@dataclass(frozen=True)
class BaseEvaluation:
    """Measurements of the model before training.

    Attributes:
        evaluated: Its losses.
        answers: Its answers to the first held-out prompts.
        evaluation_seconds: Seconds that the losses took, to estimate the time left.
        answer_seconds: Seconds that the answers took, to estimate the time left.
    """

    evaluated: Evaluated
    answers: list[str]
    evaluation_seconds: float = 0.0
    answer_seconds: float = 0.0

    @classmethod
    def restore(cls, saved: BaseMeasurements) -> BaseEvaluation:
        """Restore the measurements that a checkpoint stores."""
        evaluated = Evaluated(**saved["evaluated"])
        return cls(evaluated, saved["answers"], saved["evaluation_seconds"], saved["answer_seconds"])


@dataclass
class RunState:
    """State of a run that its checkpoints store in addition to the trainer's own.

    Attributes:
        base: Measurements before training.
        started: When the run started, by time.perf_counter, less the seconds that earlier processes took.
        manifest: Facts for the checkpoints' manifests: recipe, data and model by their hashes, versions.
        recipe_yaml: Content of the run's recipe.yaml.
        last_evaluation: The last evaluation of this process.
        restored: Losses of the last evaluation of an earlier process.
        unlogged: Sums of the incomplete log row at the last checkpoint, by process.
        best_metric: Id of the metric that evaluations are compared by.
        best: The evaluation with the best value of that metric so far, the first of equal ones; without the losses of
            rows if an earlier process measured it.
        without_improvement: Evaluations since then.
        trained: Training is over, and the weights in memory are those that were kept.
        total_steps: Steps of the whole recipe; 0 before they are counted.
    """

    base: BaseEvaluation
    started: float
    manifest: Mapping[str, Any]
    recipe_yaml: str
    last_evaluation: LossEvaluation | None = None
    restored: Evaluated | None = None
    unlogged: UnloggedSums | None = None
    best_metric: str = HELD_OUT_LOSS
    best: LossEvaluation | None = None
    without_improvement: int = 0
    trained: bool = False
    total_steps: int = 0

    @property
    def evaluated(self) -> Evaluated | None:
        """Losses of the last evaluation during training."""
        return self.last_evaluation.measured if self.last_evaluation else self.restored

    @property
    def evaluated_step(self) -> int:
        """Step of the last evaluation; 0 before the first one."""
        return self.evaluated.step if self.evaluated else 0

    @property
    def held_out_losses(self) -> Sequence[RowLoss]:
        """Losses of the held-out rows at the last evaluation; empty if an earlier process measured them."""
        return self.last_evaluation.held_out if self.last_evaluation else ()

    def restore(self, saved: TrainingState) -> None:
        """Restore the state that a checkpoint stores."""
        self.restored = Evaluated(**saved["evaluated"]) if saved["evaluated"] else None
        self.unlogged = saved["unlogged"]
        if best := saved.get("best"):
            self.best = LossEvaluation(Evaluated(**best), ())
        self.without_improvement = saved.get("without_improvement", 0)
        self.trained = saved.get("trained", False)

    def add_evaluation(self, evaluation: LossEvaluation) -> bool:
        """Store an evaluation during training, and return whether it is the best so far."""
        self.last_evaluation = evaluation
        value = evaluation.measured.value(self.best_metric)
        best = self.best.measured.value(self.best_metric) if self.best else None
        if value is None:
            return False
        if best is None or is_better(self.best_metric, value, best):
            self.best, self.without_improvement = evaluation, 0
            return True
        self.without_improvement += 1
        return False

    def require_best_model(self, checkpoint: Checkpoint | None, total_steps: int) -> None:
        """Forget a best evaluation whose weights were not saved: the run kept the weights of the last step so far."""
        if checkpoint is None or self.best is None or self.trained or (checkpoint.path / BEST_MODEL).is_dir():
            return
        if self.best.measured.step != total_steps:  # after the last step the checkpoint itself has them
            self.best = None

    def is_over(self, step: int, total_steps: int, patience: int | None) -> bool:
        """Return whether no step is left to train after `step`."""
        return step == total_steps or self.trained or self.has_lost_patience(patience)

    def has_lost_patience(self, patience: int | None) -> bool:
        """Return whether `patience` evaluations, or more, have not improved the metric."""
        return patience is not None and self.without_improvement >= patience

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON for a checkpoint."""
        return {
            "evaluated": asdict(self.evaluated) if self.evaluated else None,
            "unlogged": self.unlogged,
            "base": asdict(self.base),
            "seconds": time.perf_counter() - self.started,
            "best": asdict(self.best.measured) if self.best else None,
            "without_improvement": self.without_improvement,
            "trained": self.trained,
        }


@dataclass(frozen=True)
class ResumeState:
    """A stopped run that is resumed.

    Attributes:
        directory: Its folder.
        checkpoint: The checkpoint that it resumes from; None if none was saved, so that it starts over.
        skipped: Newer checkpoints that failed verification, each with the reason.
        accept_changes: Resume although recipe, data or model have changed.
        changes: Option to its old and new value, or input to its new hash.
        relative_paths: The folders that the paths of the run's recipe are relative to; None if the record names none.
    """

    directory: RunDirectory
    checkpoint: Checkpoint | None
    skipped: tuple[str, ...] = ()
    accept_changes: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    relative_paths: RelativePaths | None = None

    @property
    def step(self) -> int:
        """Steps done."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def seconds(self) -> float:
        """Seconds that the run had taken at the checkpoint."""
        return self.checkpoint.progress["seconds"] if self.checkpoint else 0.0

    def relocate_paths(self, recipe: Recipe) -> Recipe:
        """Return the recipe with paths relative to the folder in which the run was started, as in the run's files."""
        return recipe if self.relative_paths is None else rewrite_paths(recipe, self.relative_paths.to_run_folder)

    def record_paths(self, recipe: Recipe) -> dict[str, Any]:
        """Return the entry of the run's record about the paths of `recipe`, given relative to the current folder."""
        if self.relative_paths is None or not self.relative_paths.folders:
            return record_paths(self.directory, recipe)
        local = [self.relative_paths.to_run_folder(value) for value in local_paths(recipe)]
        return relative_paths_record(self.directory.path, self.relative_paths.folders[0], local)

    def to_record(self) -> dict[str, Any]:
        """Return the entry of the run's record about this resumption."""
        name = self.checkpoint.path.name if self.checkpoint else None
        return {"checkpoint": name, "skipped": list(self.skipped), "changes": self.changes}

    def require_current(self) -> None:
        """Check, with the run locked, that no other process resumed it since it was read.

        Raises:
            InputError: Another process resumed it.
        """
        removed = self.checkpoint is not None and not self.checkpoint.path.is_dir()
        if removed or self.directory.record()["status"] == "finished":
            message = f"{self.directory.path}: another process has resumed this run in the meantime"
            raise InputError(Problem(message, hint="run the same command again"))

    def report(self, observer: Observer) -> None:
        """Notify the observer of the checkpoint, of those that were skipped, and of changes."""
        for reason in self.skipped:
            observer.notify(Notice(f"skipped {reason}"))
        if self.checkpoint is None:
            observer.notify(Notice(f"{self.directory.path} has no checkpoint; the run starts again"))
        else:
            observer.notify(Notice(f"resuming after step {self.step}, from {self.checkpoint.path}"))
        for change in describe_changes(self.to_record()):
            observer.notify(Notice(f"from here on the run is mixed: {change}"))

    def require_inputs_of_checkpoint(self, hashes: Mapping[str, Any], recipe: Recipe) -> None:
        """Compare rows, tokens and model with those of the checkpoint.

        Args:
            hashes: data_sha256, tokens_sha256 and model_fingerprint of the inputs of this process.
            recipe: The recipe of these inputs.

        Raises:
            InputError: They differ, and the change was not accepted or can't be.
        """
        if self.checkpoint is None:
            return
        subjects = {
            "model_fingerprint": f"{recipe.model.name}: the model's files",
            "data_sha256": f"{recipe.data.source_name()}: the rows",
            "tokens_sha256": f"{recipe.model.name}: the rows' tokens (the tokenizer or the chat template)",
        }
        manifest: Mapping[str, Any] = self.checkpoint.manifest
        changed = {key: value for key, value in hashes.items() if manifest[key] != value}
        if "data_sha256" in changed:  # different rows have different tokens
            changed.pop("tokens_sha256", None)
        impossible = {"model_fingerprint"} if "model.name" in self.changes else set()
        rejected = impossible & set(changed) if self.accept_changes else set(changed)
        if rejected:
            raise InputError(
                *(
                    Problem(
                        f"{subjects[key]} changed since {self.checkpoint.path.name}",
                        f"{changed[key][:20]} ({self.checkpoint.path.name}: {manifest[key][:20]})",
                        "--model with the model that the run started from" if key in impossible else ACCEPT,
                    )
                    for key in sorted(rejected)
                )
            )
        self.changes.update(changed)


def record_paths(directory: RunDirectory, recipe: Recipe) -> dict[str, Any]:
    """Return the entry of a new run's record about the paths of its recipe, relative to the current folder."""
    return relative_paths_record(directory.path, Path.cwd(), local_paths(recipe))


def find_resume_state(name: str, layers: Sequence[Layer], *, accept_changes: bool) -> tuple[Recipe, ResumeState]:
    """Find the run of a name or folder, and resolve the recipe that it resumes with.

    Args:
        name: The run's folder, or its name below runs/.
        layers: Settings typed on the command line.
        accept_changes: Resume although these settings, or the run's recipe.yaml, differ from the checkpoint's recipe.

    Raises:
        InputError: There is no such run, it is finished, its recipe has changed, or it would run a model's own code
            without permission on the command line.
    """
    path = find_run(name)
    if path is None:
        for folder in (expand_home(name), Path("runs") / expand_home(name)):
            require_no_link(folder / RECORD)  # a dangling link is not found as a file
        raise InputError(_no_run(name))
    require_no_link(path / RECORD)
    directory = RunDirectory(path)
    if directory.record()["status"] != "finished":  # a finished run is rejected for that, below
        require_no_links(path)
    if not (path / RECIPE).is_file():
        raise InputError(_no_recipe(directory))
    typed = [setting for layer in layers for key, setting in layer.items() if key in ("name", "output_dir")]
    if typed:
        raise InputError(
            *(Problem(f"{setting.origin} and --resume can't be combined", setting.typed) for setting in typed)
        )
    recipe = resolve_recipe([*read_recipe_layers(str(path / RECIPE)), *layers])
    require_typed_trust(recipe, layers, path / RECIPE, f"neft train --resume {shlex.quote(str(path))}")
    relative_paths = find_relative_paths(path / RECIPE)
    resume_state = read_resume_state(directory, recipe, accept_changes=accept_changes)
    resume_state = replace(resume_state, relative_paths=relative_paths)
    _require_same_recipe(resume_state, recipe)
    _require_in_place(recipe, path, relative_paths)
    return recipe, resume_state


def _no_recipe(directory: RunDirectory) -> Problem:
    """Return the problem of a run without a recipe.yaml."""
    path, checkpoint = directory.path, CheckpointFolder(directory.checkpoints, 1).latest_complete()
    if checkpoint is not None:
        copy = f"cp {shlex.quote(f'{checkpoint}/{RECIPE}')} {shlex.quote(f'{path}/')}    restores the checkpoint's"
        return Problem(f"{path}: this run has no {RECIPE}", hint=copy)
    if directory.model.exists():
        return Problem(f"{path}: this run has no {RECIPE}", hint="neft train    starts a new run")
    remove = f"rm -r {shlex.quote(str(path))}    then the command that started it"
    return Problem(f"{path}: this run was stopped before it was set up", f"no {RECIPE}", remove)


def _require_in_place(recipe: Recipe, run: Path, relative_paths: RelativePaths | None) -> None:
    """Check that the model and the rows still exist at the recipe's paths.

    Raises:
        InputError: One of them does not; with the flag for its new path.
    """

    def searched_path(name: str) -> str:
        return name if relative_paths is None else relative_paths.describe_search(name)

    problems = []
    try:
        resolve_model(recipe.model.name, recipe.model.revision)
    except ModelError as error:
        received = searched_path(recipe.model.name)
        problems += [("model.name", replace(problem, got=received)) for problem in error.problems]
    option = "data.sources" if recipe.data.sources else "data.source"
    sources = [(option, source.source) for source in recipe.data.all_sources()]
    sources.append(("data.held_out_source", recipe.data.held_out_source or BUILTIN))
    for option, source in sources:
        if is_local_path(source) and not exists(expand_home(strip_file_scheme(source))):
            message = f"{option}: no such file or folder"
            problems.append(
                (option, Problem(message, searched_path(source), did_you_mean=closest_path(expand_home(source))))
            )
    if problems:
        command = f"neft train --resume {shlex.quote(str(run))}"
        raise InputError(*(replace(problem, hint=f"{command} {PATH_FLAGS[option]}") for option, problem in problems))


def _no_run(name: str) -> Problem:
    """Return the problem of a name that is not a run's."""
    path = expand_home(name)
    run = next((parent for parent in path.parents if (parent / RECORD).is_file()), None)
    if run is not None:  # the path is a checkpoint's
        message = "--resume takes a run's folder, not one of its checkpoints"
        return Problem(message, name, f"neft train --resume {shlex.quote(str(run))}")
    if (sweep := find_sweep(name)) is not None:
        return Problem("--resume takes a run; this is a sweep", name, f"neft sweep-alpha {shlex.quote(str(sweep))}")
    is_path = exists(path) or exists(Path("runs") / path)
    message = f"--resume: {'this is not a run' if is_path else 'no such run'}"
    nearest = closest_path(Path("runs") / name) or closest_path(path)
    if nearest and (Path(nearest) / RECORD).is_file():
        return Problem(message, name, f"neft train --resume {shlex.quote(nearest)}", nearest)
    runs = list_runs()
    return Problem(message, name, f"neft train --resume RUN    in runs/: {runs}" if runs else NO_RUN_YET)


def read_resume_state(directory: RunDirectory, recipe: Recipe, *, accept_changes: bool = False) -> ResumeState:
    """Read the state from which the run in `directory` resumes: its newest checkpoint that verifies.

    Raises:
        InputError: It is finished, its record can't be read, or it has checkpoints and none of them verifies.
    """
    if directory.record()["status"] == "finished":
        directory.clean_up_finished()
        raise InputError(
            Problem(
                f"{directory.path}: this run is finished",
                hint=f"neft eval {shlex.quote(str(directory.path))}    to measure it",
            )
        )
    checkpoints = CheckpointFolder(directory.checkpoints, recipe.checkpoints.save_total_limit)
    checkpoint, skipped = checkpoints.latest_valid()
    if checkpoint is None and checkpoints.any_published():
        raise InputError(
            *(Problem(reason) for reason in skipped),
            Problem(
                f"{directory.path}: none of its checkpoints is valid",
                count_noun(len(skipped), "checkpoint"),
                f"neft train --recipe {shlex.quote(str(directory.path / RECIPE))}    trains it again, in a new folder",
            ),
        )
    return ResumeState(directory, checkpoint, tuple(skipped), accept_changes)


def _require_same_recipe(resume_state: ResumeState, recipe: Recipe) -> None:
    """Compare the recipe with the checkpoint's, or with the run's if there is no checkpoint.

    Raises:
        InputError: They differ in an option that affects the weights, and the change was not accepted or can't be.
    """
    folder = resume_state.checkpoint.path if resume_state.checkpoint else resume_state.directory.path
    recipe_before = load_recipe(str(folder / RECIPE))
    changed = recipe_differences(recipe_before, recipe)
    if resume_state.checkpoint:
        changed |= recipe_differences(recipe_before, recipe, MEASUREMENT_SETTINGS)
    for option, (before, now) in list(changed.items()):
        if option in PATH_FLAGS and _same_file(before, now):
            del changed[option]
        elif option in PATH_FLAGS and _moved(before, now):
            resume_state.changes[option] = [before, now]
            del changed[option]
    if not changed:
        return
    fixed = (*FIXED, "training.seed") if recipe.adapter.pissa_niter else FIXED  # of the approximate SVD
    impossible = [option for option in changed if option.startswith(fixed)]
    rejected = impossible if resume_state.accept_changes else list(changed)
    problems = []
    for option in rejected:
        before, now = changed[option]
        not_acceptable = ", which can't be accepted" if resume_state.accept_changes else ""
        new_run = f"neft train --recipe {shlex.quote(str(folder / RECIPE))}    starts a new run"
        problems.append(
            Problem(
                f"--resume: {option} differs from that of {folder.name}{not_acceptable}",
                f"{format_value(now)} ({folder.name}: {format_value(before)})",
                new_run if option in impossible else ACCEPT,
            )
        )
    if problems:
        raise InputError(*problems)
    resume_state.changes.update({option: list(values) for option, values in changed.items()})


def _moved(before: Any, now: Any) -> bool:
    """Return whether the old path no longer exists and the new one does."""
    if isinstance(before, list) and isinstance(now, list):  # data.sources
        pairs = list(zip(before, now, strict=False))
        unchanged = all({**new, "source": old["source"]} == old for old, new in pairs)
        moved = all(old["source"] == new["source"] or _moved(old["source"], new["source"]) for old, new in pairs)
        return len(before) == len(now) and unchanged and moved
    return before is not None and now is not None and exists(expand_home(now)) and not exists(expand_home(before))


def _same_file(before: str | None, now: str | None) -> bool:
    """Return whether two paths lead to the same file or folder."""
    if before is None or now is None or not exists(expand_home(before)) or not exists(expand_home(now)):
        return False
    return expand_home(before).samefile(expand_home(now))


def describe_changes(resumed: Mapping[str, Any]) -> list[str]:
    """Describe the changes of a resumption, from an entry of its record's `resumed`."""
    if resumed["checkpoint"] is None:
        return []
    step = resumed["checkpoint"].rpartition("-")[2]
    sentences = []
    for key, value in resumed["changes"].items():
        if isinstance(value, list) and key not in PATH_FLAGS:
            sentences.append(f"{key} {format_value(value[0])} up to step {step}, then {format_value(value[1])}")
        elif not isinstance(value, list):
            sentences.append(f"different {key.partition('_')[0]} after step {step} (accepted)")
    return sentences
