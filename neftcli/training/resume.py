"""From where a stopped run goes on, and whether it is still the same run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.remote import strip_file_scheme
from neftcli.data.sources import BUILTIN, is_local_path
from neftcli.errors import InputError, ModelError, Problem
from neftcli.events import Evaluated, Notice, Observer
from neftcli.models.registry import resolve_model
from neftcli.recipe.loading import differences, file_layers, load_recipe, resolve, with_paths
from neftcli.recipe.path_suggestions import at_home, exists, nearest_path
from neftcli.recipe.relative_paths import RelativePaths, find_relative_paths, relative_paths_record
from neftcli.recipe.trust import require_typed_trust
from neftcli.runs.checkpoints import Checkpoint, Checkpoints
from neftcli.runs.directory import RECIPE, RECORD, RunDirectory, find_run, find_sweep
from neftcli.system.files import require_no_link, require_no_links
from neftcli.training.inputs import local_paths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neftcli.recipe.schema import Recipe
    from neftcli.recipe.yaml_file import Layer

MEASUREMENT_SETTINGS = ("evaluation.samples", "evaluation.probe_rows", "evaluation.generation")
"""What is measured before training and behind it, which must be the same to be compared."""
FIXED = (
    *("adapter.", "quantization.", "model."),  # the checkpoint's tensors would have no place
    "training.processes",  # it has a part from each
    *("training.optim", "training.learning_rate", "training.weight_decay", "training.logging_steps"),  # it holds these
    *MEASUREMENT_SETTINGS,
)
"""Options whose change can't be accepted."""
PATH_FLAGS = {
    "model.name": "--model PLACE    the new path",
    "data.source": "--dataset PLACE    the new path",
    "data.sources": "--set data.sources='[...]'    the entries with their new paths",
    "data.held_out_source": "--held-out PLACE    the new path",
}
"""Options that say where something lies, and their flags. What was moved is compared by its content."""
NOT_BEGUN = "the command that started it: a run that is killed in its first seconds leaves no folder"
ACCEPT = "--accept-changes    to go on all the same; the run is then neither the one nor the other"


@dataclass(frozen=True)
class BaseEvaluation:
    """What the model could do before training.

    Attributes:
        evaluated: Its losses.
        answers: What it said to the first held-out prompts.
    """

    evaluated: Evaluated
    answers: list[str]


@dataclass(frozen=True)
class ResumeState:
    """A run that is resumed.

    Attributes:
        directory: Its folder.
        checkpoint: From where; None where none was written yet, so it begins again.
        passed_over: Newer checkpoints that don't verify, and why.
        accept_changes: Go on though recipe, data or model have changed.
        changes: What has.
        relative_paths: The folders that the paths of the run's recipe start from; None if the record names none.
    """

    directory: RunDirectory
    checkpoint: Checkpoint | None
    passed_over: tuple[str, ...] = ()
    accept_changes: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    relative_paths: RelativePaths | None = None

    def written(self, recipe: Recipe) -> Recipe:
        """The recipe as the run's files hold it: its paths from the folder in which the run was begun."""
        return recipe if self.relative_paths is None else with_paths(recipe, self.relative_paths.to_run_folder)

    def paths(self, recipe: Recipe) -> dict[str, Any]:
        """The entry of the run's record about the paths of `recipe`, which are relative to the current folder."""
        folder, local = Path.cwd(), local_paths(recipe)
        if self.relative_paths is not None and self.relative_paths.folders:
            folder = self.relative_paths.folders[0]
            local = [self.relative_paths.to_run_folder(value) for value in local]
        return relative_paths_record(self.directory.path, folder, local)

    @property
    def step(self) -> int:
        """Updates that are done."""
        return self.checkpoint.step if self.checkpoint else 0

    def require_as_found(self) -> None:
        """Checks, when nobody else can train the run any more, that nobody did since it was looked at.

        Raises:
            InputError: It was resumed by another process.
        """
        gone = self.checkpoint is not None and not self.checkpoint.path.is_dir()
        if gone or self.directory.record()["status"] == "finished":
            told = f"{self.directory.path}: another process went on with this run meanwhile"
            raise InputError(Problem(told, hint="the same command again"))

    def seconds(self) -> float:
        """How long the run had taken up to the checkpoint."""
        return self.checkpoint.progress["seconds"] if self.checkpoint else 0.0

    def told(self) -> dict[str, Any]:
        """What the run's record says of it."""
        from_where = self.checkpoint.path.name if self.checkpoint else None
        return {"checkpoint": from_where, "passed_over": list(self.passed_over), "changes": self.changes}

    def tell(self, observer: Observer) -> None:
        """Says from where the run goes on, what was passed over, and what changed."""
        for reason in self.passed_over:
            observer.notify(Notice(f"passed over {reason}"))
        if self.checkpoint is None:
            observer.notify(Notice(f"{self.directory.path} has no checkpoint: the run begins again"))
        else:
            observer.notify(Notice(f"going on after update {self.step}, from {self.checkpoint.path}"))
        for change in describe_changes(self.told()):
            observer.notify(Notice(f"from here on the run is mixed: {change}"))

    def require_same(self, found: Mapping[str, Any], recipe: Recipe) -> None:
        """Compares what the checkpoint is of with what was found now.

        Args:
            found: data_sha256, tokens_sha256 and model_fingerprint.
            recipe: By which it was found.

        Raises:
            InputError: The rows, their tokens or the model are others.
        """
        if self.checkpoint is None:
            return
        words = {
            "model_fingerprint": f"{recipe.model.name}: the model's files",
            "data_sha256": f"{recipe.data.source_name()}: the rows",
            "tokens_sha256": f"{recipe.model.name}: the rows' tokens (the tokenizer or the chat template)",
        }
        manifest: Mapping[str, Any] = self.checkpoint.manifest
        other = {key: value for key, value in found.items() if manifest[key] != value}
        if "data_sha256" in other:  # other rows have other tokens
            other.pop("tokens_sha256", None)
        impossible = {"model_fingerprint"} if "model.name" in self.changes else set()
        refused = impossible & set(other) if self.accept_changes else set(other)
        if refused:
            raise InputError(
                *(
                    Problem(
                        f"{words[key]} changed since {self.checkpoint.path.name}",
                        f"{other[key][:20]} (there {manifest[key][:20]})",
                        "--model with the model that the run began from" if key in impossible else ACCEPT,
                    )
                    for key in sorted(refused)
                )
            )
        self.changes.update(other)


def find_resume_state(name: str, layers: Sequence[Layer], *, accept_changes: bool) -> tuple[Recipe, ResumeState]:
    """The run of a name or folder, with the recipe that it goes on by.

    Args:
        name: The run's folder, or its name below runs/.
        layers: What was typed beside it.
        accept_changes: Go on though what was typed, or the run's recipe.yaml, differs from the checkpoint's.

    Raises:
        InputError: There is no such run, it is finished, it is another run by now, or it would run a model's own code
            unasked.
    """
    path = find_run(name)
    if path is None:
        for folder in (at_home(name), Path("runs") / at_home(name)):
            require_no_link(folder / RECORD)  # one that leads nowhere is no file
        raise InputError(_no_run(name))
    require_no_link(path / RECORD)
    directory = RunDirectory(path)
    if directory.record()["status"] != "finished":  # a finished run is rejected for that, below
        require_no_links(path)
    if not (path / RECIPE).is_file():
        kept = Checkpoints(directory.checkpoints, 1).latest()
        if kept is None and not directory.model.exists():
            again = f"rm -r {shlex.quote(str(path))}    then the command that began it"
            raise InputError(Problem(f"{path}: this run was stopped before it was begun", f"no {RECIPE}", again))
        again = f"cp {shlex.quote(f'{kept}/{RECIPE}')} {shlex.quote(f'{path}/')}    brings the checkpoint's back"
        hint = again if kept is not None else "neft train    begins a new run"
        raise InputError(Problem(f"{path}: this run has no {RECIPE}", hint=hint))
    typed = [setting for layer in layers for key, setting in layer.items() if key in ("name", "output_dir")]
    if typed:
        refused = (Problem(f"{one.origin} and --resume can't stand together", one.typed) for one in typed)
        raise InputError(*refused)
    recipe = resolve([*file_layers(str(path / RECIPE)), *layers])
    require_typed_trust(recipe, layers, path / RECIPE, f"neft train --resume {shlex.quote(str(path))}")
    relative_paths = find_relative_paths(path / RECIPE)
    resume_state = read_resume_state(directory, recipe, accept_changes=accept_changes)
    resume_state = replace(resume_state, relative_paths=relative_paths)
    _require_same_recipe(resume_state, recipe)
    _require_in_place(recipe, path, relative_paths)
    return recipe, resume_state


def _require_in_place(recipe: Recipe, run: Path, relative_paths: RelativePaths | None) -> None:
    """Refuses a model's folder or rows that lie where they did no more, and says how their new place is named."""

    def looked_for(name: str) -> str:
        return name if relative_paths is None else relative_paths.describe_search(name)

    problems = []
    try:
        resolve_model(recipe.model.name, recipe.model.revision)
    except ModelError as error:
        name = recipe.model.name
        problems += [("model.name", replace(problem, got=looked_for(name))) for problem in error.problems]
    training = "data.sources" if recipe.data.sources else "data.source"
    named = [(training, source.source) for source in recipe.data.all_sources()]
    for path, source in (*named, ("data.held_out_source", recipe.data.held_out_source or BUILTIN)):
        if is_local_path(source) and not exists(at_home(strip_file_scheme(source))):
            message = f"{path}: there is no file or folder of this name"
            problems.append((path, Problem(message, looked_for(source), did_you_mean=nearest_path(at_home(source)))))
    if problems:
        again = f"neft train --resume {shlex.quote(str(run))}"
        raise InputError(*(replace(problem, hint=f"{again} {PATH_FLAGS[path]}") for path, problem in problems))


def _no_run(name: str) -> Problem:
    """What is said of a name that is no run's."""
    path = at_home(name)
    inside = next((parent for parent in path.parents if (parent / RECORD).is_file()), None)
    if inside is not None:  # a checkpoint's folder
        return Problem("--resume takes the run's own folder", name, f"neft train --resume {shlex.quote(str(inside))}")
    if (sweep := find_sweep(name)) is not None:
        return Problem("--resume takes a run; this is a sweep", name, f"neft sweep-alpha {shlex.quote(str(sweep))}")
    there = exists(path) or exists(Path("runs") / path)
    message = f"--resume: {'this is no run' if there else 'there is no run of this name'}"
    nearest = nearest_path(Path("runs") / name) or nearest_path(path)
    if nearest and (Path(nearest) / RECORD).is_file():
        return Problem(message, name, f"neft train --resume {shlex.quote(nearest)}", nearest)
    again = "ls runs    to see the runs" if there else NOT_BEGUN
    return Problem(message, name, again)


def read_resume_state(directory: RunDirectory, recipe: Recipe, *, accept_changes: bool = False) -> ResumeState:
    """From where the run in `directory` goes on.

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
    checkpoints = Checkpoints(directory.checkpoints, recipe.checkpoints.save_total_limit)
    newest, passed_over = checkpoints.newest()
    if newest is None and any("never finished" not in reason for reason in passed_over):
        raise InputError(
            *(Problem(reason) for reason in passed_over),
            Problem(
                f"{directory.path}: none of its checkpoints verifies",
                f"{len(passed_over)} checkpoint{'s' if len(passed_over) > 1 else ''}",
                f"neft train --recipe {shlex.quote(str(directory.path / RECIPE))}    trains it again, in a new folder",
            ),
        )
    return ResumeState(directory, newest, tuple(passed_over), accept_changes)


def _require_same_recipe(resume_state: ResumeState, recipe: Recipe) -> None:
    """Compares with the recipe that the checkpoint was made by.

    Raises:
        InputError: They differ in what touches the weights, and that was not accepted or can't be.
    """
    there = resume_state.checkpoint.path if resume_state.checkpoint else resume_state.directory.path
    before = load_recipe(str(there / RECIPE))
    changed = differences(before, recipe)
    if resume_state.checkpoint:
        changed |= differences(before, recipe, MEASUREMENT_SETTINGS)
    changed = {path: values for path, values in changed.items() if path not in PATH_FLAGS or not _same_place(*values)}
    moved = {path: list(values) for path, values in changed.items() if path in PATH_FLAGS and _moved(*values)}
    resume_state.changes.update(moved)
    changed = {path: values for path, values in changed.items() if path not in moved}
    if not changed:
        return
    impossible = [path for path in changed if path.startswith(FIXED)]
    refused = impossible if resume_state.accept_changes else list(changed)
    if refused:
        raise InputError(
            *(
                Problem(
                    f"--resume: {path} differs from that of {there.name}"
                    + (", which can't be accepted" if resume_state.accept_changes else ""),
                    f"{_shown(changed[path][1])} (there {_shown(changed[path][0])})",
                    f"neft train --recipe {shlex.quote(str(there / RECIPE))}    begins a new run"
                    if path in impossible
                    else ACCEPT,
                )
                for path in refused
            )
        )
    resume_state.changes.update({path: list(values) for path, values in changed.items()})


def _moved(before: Any, now: Any) -> bool:
    """Whether nothing lies in the old place any more, and something in the new one."""
    if isinstance(before, list) and isinstance(now, list):  # data.sources
        pairs = list(zip(before, now, strict=False))
        unchanged = all({**new, "source": old["source"]} == old for old, new in pairs)
        moved = all(old["source"] == new["source"] or _moved(old["source"], new["source"]) for old, new in pairs)
        return len(before) == len(now) and unchanged and moved
    return before is not None and now is not None and exists(at_home(now)) and not exists(at_home(before))


def _same_place(before: str | None, now: str | None) -> bool:
    """Return whether two paths lead to the same file or folder."""
    if before is None or now is None or not exists(at_home(before)) or not exists(at_home(now)):
        return False
    return at_home(before).samefile(at_home(now))


def _shown(value: Any) -> str:
    """A value as it is typed."""
    return "the default" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def describe_changes(resumed: Mapping[str, Any]) -> list[str]:
    """Describe what changed when a run was resumed, by an entry of its record's `resumed`."""
    if resumed["checkpoint"] is None:
        return []
    behind = resumed["checkpoint"].rpartition("-")[2]
    words = []
    for key, value in resumed["changes"].items():
        if isinstance(value, list) and key not in PATH_FLAGS:
            words.append(f"{key} {_shown(value[0])} up to update {behind}, then {_shown(value[1])}")
        elif not isinstance(value, list):
            words.append(f"other {key.partition('_')[0]} behind update {behind} (accepted)")
    return words
