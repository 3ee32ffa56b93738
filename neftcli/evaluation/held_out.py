"""The rows that models are evaluated on, and that none of them was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.data.dataset import ExampleDataset
from neftcli.data.example import RowNotes
from neftcli.data.prepare import EvalExamples, ExampleSplits, data_fingerprint, read_eval_examples, read_examples
from neftcli.data.sources import BUILTIN, is_hub_id
from neftcli.data.splits import hash_prompts, sample_rows, select_distinct, select_unseen
from neftcli.errors import DataError, Problem
from neftcli.evaluation.targets import EvalTarget, resolve_target
from neftcli.events import EvaluationDataReady, Notice, Observer, Phase, PhaseId
from neftcli.recipe.relative_paths import find_relative_paths
from neftcli.runs.directory import RECIPE, find_run
from neftcli.system.hub import UNREACHABLE, go_offline_if_unreachable
from neftcli.system.paths import exists, expand_home

if TYPE_CHECKING:
    from neftcli.data.splits import PromptHashes
    from neftcli.recipe.schema import Data, Recipe

DATASET = "neft eval ... --dataset FILE, with rows that were not trained on"
CHOSEN_BY = 0  # the seed of --max-rows, the same for every model


@dataclass(frozen=True)
class EvalRows:
    """Rows to evaluate on.

    Attributes:
        examples: The rows.
        data: How they become tokens.
        row_format: Their row format.
        source: Where they come from, for people.
        label: The same for a folder's name.
    """

    examples: ExampleDataset
    data: Data
    row_format: str
    source: str
    label: str


def read_eval_rows(
    subjects: Sequence[EvalTarget],
    dataset: str | None,
    split: str | None,
    max_rows: int | None,
    typed: Sequence[str],
    observer: Observer,
) -> EvalRows:
    """The rows of `dataset`, or those that the first subject's run held out, without those that a run was trained on.

    Args:
        subjects: What is evaluated, the main one first.
        dataset: A source of rows; None for the run's own held-out rows, and of a model the built-in ones.
        split: The source's split; None for its usual one.
        max_rows: Use at most N of them.
        typed: Options of `data` that were given on the command line.
        observer: Is told of what was read.

    Raises:
        DataError: The rows can't be read, are no longer those that were held out, or were all trained on.
    """
    recipes = [subject.saved_recipe() for subject in subjects if subject.run]
    hub = [is_hub_id(source) for recipe in recipes for source in recipe.data.named_sources()]
    hub.append(is_hub_id(dataset or BUILTIN))
    hub += [subject.reference.kind == "hub" for subject in subjects]
    if any(hub) and (reason := go_offline_if_unreachable()):
        observer.notify(Notice(UNREACHABLE.format(reason)))
    observer.notify(Phase(PhaseId.READING_DATA))
    main = subjects[0]
    if dataset is None and main.run is not None:
        questions, data = _held_out_of(main, recipes[0], split, typed), recipes[0].data
        source, label = f"held out of {main.name}", "held-out"
    else:
        data = _data(main.recipe.data, dataset or BUILTIN, split, typed)
        questions = read_eval_examples(data)
        source = "built-in set, held out" if data.source == BUILTIN else data.source
        label = Path(data.source).name.partition(".")[0] or "rows"
    trained = _trained_prompts(subjects, observer)
    various = questions.examples.select(select_distinct(questions.examples))
    kept = various.select(select_unseen(various, trained))
    if not kept:
        raise DataError(
            Problem(f"{source}: a model here was trained on every one of these rows", f"{len(various)} rows", DATASET)
        )
    examples = kept.select(sample_rows(kept, max_rows, CHOSEN_BY)) if max_rows and max_rows < len(kept) else kept
    observer.notify(
        EvaluationDataReady(
            source=source,
            format=questions.row_format,
            rows_read=questions.rows_read,
            rows=len(examples),
            with_answer=sum(bool(example.answer() or example.text) for example in examples),
            trained_on=len(various) - len(kept),
            repeated=len(questions.examples) - len(various),
            skipped={reason: tuple(places) for reason, places in questions.unusable.items()},
            unread_columns=dict(questions.notes.unread),
            dropped_turns=dict(questions.notes.shortened),
            remarks=dict(questions.notes.remarks),
            sources=questions.sources,
        )
    )
    return EvalRows(examples, data, questions.row_format, source, label)


def _data(data: Data, dataset: str, split: str | None, typed: Sequence[str]) -> Data:
    """How the rows of another source are read: lengths and loss as in training, columns as they are found."""
    usual = "held_out" if dataset == BUILTIN else "train"
    return replace(
        data,
        source=dataset,
        sources=(),
        split=split or usual,
        config=data.config if "data.config" in typed else None,
        format=data.format if "data.format" in typed else "auto",
        columns=data.columns if "data.columns" in typed else {},
        held_out_source=None,
        held_out_split=None,
    )


def _held_out_of(subject: EvalTarget, recipe: Recipe, split: str | None, typed: Sequence[str]) -> EvalExamples:
    """The rows that a run held out, if they still are what they were."""
    needless = [*typed, *(["--split"] if split else [])]
    if needless:
        raise DataError(
            Problem(f"{needless[0]}: this needs --dataset; a run's own rows are read as they were", "", DATASET)
        )
    _require_in_place(subject, recipe)
    examples = read_examples(recipe.data)
    if not _is_unchanged(subject, examples):
        problem = f"{recipe.data.source_name()}: the data has changed since {subject.name} was trained, so which rows "
        problem += "were held out is not known any more"
        got = "a data_sha256 that differs from run.json's"
        if subject.run is not None and "data_sha256" not in subject.run.record():
            problem = f"{subject.name}: run.json does not say which data the run was trained on"
            got = "no data_sha256"
        raise DataError(Problem(problem, got, DATASET))
    if not examples.held_out:
        raise DataError(Problem(f"{subject.name} was trained without held-out rows", "data.held_out_rows 0", DATASET))
    return EvalExamples(examples.held_out, examples.row_format, len(examples.held_out), {}, RowNotes())


def _require_in_place(subject: EvalTarget, recipe: Recipe) -> None:
    """Check that the rows of a run are still there.

    Raises:
        DataError: They are not, with the folders that were searched.
    """
    assert subject.run is not None  # noqa: S101 - only runs are asked
    relative_paths = find_relative_paths(subject.run.path / RECIPE)
    for source in recipe.data.named_sources():
        if relative_paths is not None and source in relative_paths.local and not exists(expand_home(source)):
            said = f"{subject.name}: the rows that it was trained on are no longer there"
            raise DataError(Problem(said, relative_paths.describe_search(source), DATASET))


def _is_unchanged(subject: EvalTarget, examples: ExampleSplits) -> bool:
    """Whether a run's data is what it was trained on."""
    assert subject.run is not None  # noqa: S101 - only runs are asked
    return bool(subject.run.record().get("data_sha256") == data_fingerprint(examples.train, examples.held_out))


def _trained_prompts(subjects: Sequence[EvalTarget], observer: Observer) -> PromptHashes:
    """The prompts that runs were trained on, with those of runs that they began from."""
    import numpy

    prompts: list[PromptHashes] = []
    read: dict[str, ExampleSplits] = {}
    for run in _with_their_origins(subjects):
        data = run.saved_recipe().data
        try:
            examples = read.get(repr(data)) or read_examples(data)
            changed = "" if _is_unchanged(run, examples) else "it has changed since"
        except DataError as error:
            changed = f"it can't be read: {error.problems[0].message}"
        if changed:
            message = f"which rows {run.name} was trained on can't be told from its data: {changed}"
            observer.notify(Notice(f"{message}; some of the rows here may be among them"))
        else:
            read[repr(data)] = examples
            prompts.append(hash_prompts(examples.train))
    return numpy.concatenate(prompts) if prompts else hash_prompts([])


def _with_their_origins(subjects: Sequence[EvalTarget]) -> list[EvalTarget]:
    """The runs among the subjects, and the runs whose models those began from."""
    runs: dict[Path, EvalTarget] = {}
    waiting = [subject for subject in subjects if subject.run]
    while waiting:
        run = waiting.pop()
        assert run.run is not None  # noqa: S101 - only runs wait
        if run.run.path.resolve() in runs:
            continue
        runs[run.run.path.resolve()] = run
        if origin := find_run(run.saved_recipe().model.name):
            waiting.append(resolve_target(str(origin), "base", ()))
    return list(runs.values())
