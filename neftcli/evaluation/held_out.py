"""Rows to evaluate on: a run's held-out split or another dataset, without rows that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.data.dataset import ExampleDataset
from neftcli.data.mixture import EvalExamples, ExampleSplits, read_eval_examples, read_examples
from neftcli.data.prepare import data_fingerprint
from neftcli.data.sources import is_hub_id
from neftcli.data.splits import hash_prompts, sample_rows, select_distinct, select_unseen
from neftcli.errors import DataError, Problem
from neftcli.evaluation.targets import EvalTarget, resolve_target
from neftcli.events import EvaluationDataReady, Notice, Observer, Phase, PhaseId, RowsSource
from neftcli.events.data import BUILTIN
from neftcli.models.model_files import merged_run
from neftcli.recipe.relative_paths import find_relative_paths
from neftcli.rows.example import RowNotes
from neftcli.runs.directory import RECIPE, find_run
from neftcli.system.hub import notify_if_unreachable
from neftcli.system.paths import exists, expand_home
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.data.splits import PromptHashes
    from neftcli.recipe.schema import Data, Recipe

DATASET_HINT = "neft eval ... --dataset FILE    with rows that no model here was trained on"
MAX_ROWS_SEED = 0  # the same for every model


@dataclass(frozen=True)
class EvalRows:
    """Rows to evaluate on.

    Attributes:
        examples: The rows.
        data: Settings that turn them into tokens.
        row_format: Their row format.
        source: Their origin.
        label: Their origin as the name of a folder.
    """

    examples: ExampleDataset
    data: Data
    row_format: str
    source: RowsSource
    label: str


def read_eval_rows(
    targets: Sequence[EvalTarget],
    dataset: str | None,
    split: str | None,
    max_rows: int | None,
    typed: Sequence[str],
    observer: Observer,
) -> EvalRows:
    """Read the rows of `dataset`, or the first target's held-out split, without rows that a run was trained on.

    Args:
        targets: Models to evaluate, the main one first.
        dataset: Source of rows; None for the run's held-out split, or for a model the built-in rows.
        split: Split of the source; None for its default.
        max_rows: Use at most N of them.
        typed: `data` options from the command line.
        observer: Receives counts and notices.

    Raises:
        DataError: The rows can't be read, have changed since training, or a run was trained on all of them.
    """
    recipes = [target.saved_recipe() for target in targets if target.run]
    sources = [dataset or BUILTIN]
    for recipe in recipes:
        sources += recipe.data.named_sources()
    if any(map(is_hub_id, sources)) or any(target.reference.kind == "hub" for target in targets):
        notify_if_unreachable(observer)
    observer.notify(Phase(PhaseId.READING_DATA))
    main = targets[0]
    if dataset is None and main.run is not None:
        questions, data = _held_out_of(main, recipes[0], split, typed), recipes[0].data
        held_out = data.held_out_source or data.source_name()
        source, label = RowsSource(held_out, held_out_of=main.name), "held-out"
    else:
        data = eval_data(main.recipe.data, dataset or BUILTIN, split, typed)
        questions = read_eval_examples(data)
        source = RowsSource(data.source, questions.sources[0].split)
        if dataset is None and (run := merged_run(Path(main.reference.location))):
            message = f"these are the built-in rows, not those of {run}, from which {main.name} was merged"
            observer.notify(Notice(f"{message}: `neft eval {run}` measures its held-out rows, --dataset FILE others"))
        label = Path(data.source).name.partition(".")[0] or "rows"
    trained = _trained_prompts(targets, observer)
    unique = questions.examples.select(select_distinct(questions.examples))
    unseen = unique.select(select_unseen(unique, trained))
    if not unseen:
        raise DataError(
            Problem(
                f"{source.describe()}: a model here was trained on all of these rows",
                count_noun(len(unique), "row"),
                DATASET_HINT,
            )
        )
    examples = unseen
    if max_rows and max_rows < len(unseen):
        examples = unseen.select(sample_rows(unseen, max_rows, MAX_ROWS_SEED))
    observer.notify(
        EvaluationDataReady(
            source=source,
            format=questions.row_format,
            rows_read=questions.rows_read,
            rows=len(examples),
            with_answer=sum(bool(example.answer() or example.text) for example in examples),
            trained_on=len(unique) - len(unseen),
            repeated=len(questions.examples) - len(unique),
            skipped={reason: tuple(locations) for reason, locations in questions.skipped.items()},
            unread_columns=dict(questions.notes.unread_columns),
            unread_turn_keys=dict(questions.notes.unread_turn_keys),
            dropped_turns=dict(questions.notes.shortened),
            remarks=dict(questions.notes.remarks),
            sources=questions.sources,
        )
    )
    return EvalRows(examples, data, questions.row_format, source, label)


def eval_data(data: Data, dataset: str, split: str | None, typed: Sequence[str]) -> Data:
    """Adapt data settings to another source: lengths and loss as in training, columns as detected."""
    default_split = "held_out" if dataset == BUILTIN else "train"
    return replace(
        data,
        source=dataset,
        sources=(),
        split=split or default_split,
        config=data.config if "data.config" in typed else None,
        format=data.format if "data.format" in typed else "auto",
        columns=data.columns if "data.columns" in typed else {},
        held_out_source=None,
        held_out_split=None,
    )


def _held_out_of(target: EvalTarget, recipe: Recipe, split: str | None, typed: Sequence[str]) -> EvalExamples:
    """Return the held-out split of a run, if the data has not changed."""
    unused = [*typed, *(["--split"] if split else [])]
    if unused:
        raise DataError(
            Problem(
                f"{unused[0]} needs --dataset: the held-out split of a run is read as in training", "", DATASET_HINT
            )
        )
    _require_in_place(target, recipe)
    examples = read_examples(recipe.data)
    if not _is_unchanged(target, examples):
        problem = f"{recipe.data.source_name()}: the data has changed since {target.name} was trained, so neft can't "
        problem += "know which rows were held out"
        got = "a data_sha256 that differs from run.json's"
        if target.run is not None and "data_sha256" not in target.run.record():
            problem = f"{target.name}: run.json does not say which data the run was trained on"
            got = "no data_sha256"
        raise DataError(Problem(problem, got, DATASET_HINT))
    if not examples.held_out:
        raise DataError(
            Problem(f"{target.name} was trained without held-out rows", "data.held_out_rows 0", DATASET_HINT)
        )
    return EvalExamples(examples.held_out, examples.row_format, len(examples.held_out), {}, RowNotes())


def _require_in_place(target: EvalTarget, recipe: Recipe) -> None:
    """Check that the data files of a run still exist.

    Raises:
        DataError: They don't; the message lists the searched folders.
    """
    assert target.run is not None  # noqa: S101 - only called with runs
    relative_paths = find_relative_paths(target.run.path / RECIPE)
    for source in recipe.data.named_sources():
        if relative_paths is not None and source in relative_paths.local and not exists(expand_home(source)):
            message = f"{target.name}: the data that it was trained on is missing"
            raise DataError(Problem(message, relative_paths.describe_search(source), DATASET_HINT))


def _is_unchanged(target: EvalTarget, examples: ExampleSplits) -> bool:
    """Return whether the data of a run is what it was trained on."""
    assert target.run is not None  # noqa: S101 - only called with runs
    return bool(target.run.record().get("data_sha256") == data_fingerprint(examples.train, examples.held_out))


def _trained_prompts(targets: Sequence[EvalTarget], observer: Observer) -> PromptHashes:
    """Collect the prompts that runs, and the runs that they started from, were trained on."""
    import numpy

    prompts: list[PromptHashes] = []
    read: dict[str, ExampleSplits] = {}
    for run in _with_their_origins(targets):
        data = run.saved_recipe().data
        try:
            examples = read.get(repr(data)) or read_examples(data)
            changed = "" if _is_unchanged(run, examples) else "its data has changed"
        except DataError as error:
            changed = f"its data can't be read: {error.problems[0].message}"
        if changed:
            message = f"the rows that {run.name} was trained on are not known ({changed})"
            observer.notify(Notice(f"{message}; some of these rows may be among them"))
        else:
            read[repr(data)] = examples
            prompts.append(hash_prompts(examples.train))
    return numpy.concatenate(prompts) if prompts else hash_prompts([])


def _with_their_origins(targets: Sequence[EvalTarget]) -> list[EvalTarget]:
    """List the runs among the targets, and the runs that those started from."""
    runs: dict[Path, EvalTarget] = {}
    queue = [target for target in targets if target.run]
    while queue:
        target = queue.pop()
        assert target.run is not None  # noqa: S101 - only runs are in the queue
        folder = target.run.path.resolve()
        if folder in runs:
            continue
        runs[folder] = target
        origin = find_run(target.saved_recipe().model.name)
        if origin:
            queue.append(resolve_target(str(origin), "base", ()))
    return list(runs.values())
