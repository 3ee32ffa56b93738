"""The rows that models are evaluated on, and that none of them was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.data.formats import Example
from neftcli.data.prepare import Questions, fingerprint, read_examples, read_questions
from neftcli.data.sources import BUILTIN, is_hub
from neftcli.data.splits import choose, normalised
from neftcli.errors import DataError, Problem
from neftcli.events import Notice, Observer, Phase, RowsReady
from neftcli.models.hub import prefer_cache_if_unreachable
from neftcli.recipe.loading import load_recipe

if TYPE_CHECKING:
    from neftcli.evaluation.subjects import Subject
    from neftcli.recipe.schema import Data, Recipe

DATASET = "neft eval ... --dataset FILE, with rows that were not trained on"
CHOSEN_BY = 0  # the seed of --max-rows, the same for every model


@dataclass(frozen=True)
class Rows:
    """Rows to evaluate on.

    Attributes:
        examples: The rows.
        data: How they become tokens.
        layout: Their row format.
        source: Where they come from, for people.
        label: The same for a folder's name.
    """

    examples: list[Example]
    data: Data
    layout: str
    source: str
    label: str


def read_rows_for(
    subjects: Sequence[Subject],
    dataset: str | None,
    split: str | None,
    max_rows: int | None,
    typed: Sequence[str],
    observer: Observer,
) -> Rows:
    """The rows of `dataset`, or those that the first subject's run held out, without those that a run was trained on.

    Args:
        subjects: What is evaluated, the main one first.
        dataset: A source of rows; None for the run's own held-out rows, and of a model the built-in ones.
        split: The source's split; None for its usual one.
        max_rows: Use only so many of them.
        typed: Options of `data` that were given on the command line.
        observer: Is told of what was read.

    Raises:
        DataError: The rows can't be read, are no longer those that were held out, or were all trained on.
    """
    recipes = [load_recipe(str(subject.run.path / "recipe.yaml")) for subject in subjects if subject.run]
    sources = [source for recipe in recipes for source in (recipe.data.source, recipe.data.held_out_source) if source]
    hub = [is_hub(source) for source in [*sources, dataset or BUILTIN]]
    hub += [subject.reference.kind == "hub" for subject in subjects]
    if any(hub) and prefer_cache_if_unreachable():
        observer.notify(Notice("the hub can't be reached; only what is in the local cache can be used"))
    observer.notify(Phase("reading data"))
    main = subjects[0]
    if dataset is None and main.run is not None:
        questions, data = _held_out_of(main, recipes[0], split, typed), recipes[0].data
        source, label = f"held out of {main.name}", "held-out"
    else:
        data = _data(main.recipe.data, dataset or BUILTIN, split, typed)
        questions = read_questions(data)
        source = "built-in set, held out" if data.source == BUILTIN else data.source
        label = Path(data.source).name.partition(".")[0] or "rows"
    trained = _trained_prompts([subject.name for subject in subjects if subject.run], recipes, observer)
    kept = [example for example in questions.examples if normalised(example.prompt()) not in trained]
    if not kept:
        raise DataError(
            Problem(f"{source}: a model here was trained on every one of these rows", f"{len(trained)} rows", DATASET)
        )
    examples = choose(kept, max_rows, CHOSEN_BY) if max_rows and max_rows < len(kept) else kept
    observer.notify(
        RowsReady(
            source=source,
            layout=questions.layout,
            rows_read=questions.rows_read,
            rows=len(examples),
            with_answer=sum(bool(example.answer() or example.text) for example in examples),
            trained_on=len(questions.examples) - len(kept),
            unusable={reason: tuple(places) for reason, places in questions.unusable.items()},
            unread=questions.unread,
        )
    )
    return Rows(examples, data, questions.layout, source, label)


def _data(data: Data, dataset: str, split: str | None, typed: Sequence[str]) -> Data:
    """How the rows of another source are read: lengths and loss as in training, columns as they are found."""
    usual = "held_out" if dataset == BUILTIN else "train"
    return replace(
        data,
        source=dataset,
        split=split or usual,
        config=data.config if "data.config" in typed else None,
        format=data.format if "data.format" in typed else "auto",
        columns=data.columns if "data.columns" in typed else {},
        held_out_source=None,
        held_out_split=None,
    )


def _held_out_of(subject: Subject, recipe: Recipe, split: str | None, typed: Sequence[str]) -> Questions:
    """The rows that a run held out, if they still are what they were."""
    needless = [*typed, *(["--split"] if split else [])]
    if needless:
        raise DataError(
            Problem(f"{needless[0]}: this needs --dataset; a run's own rows are read as they were", "", DATASET)
        )
    examples = read_examples(recipe.data)
    assert subject.run is not None  # noqa: S101 - only runs have rows of their own
    recorded = subject.run.read_json("run.json").get("data_sha256")
    if recorded != fingerprint(examples.train, examples.held_out):
        raise DataError(
            Problem(
                f"{recipe.data.source}: the data has changed since {subject.name} was trained, so which rows were held "
                "out is not known any more",
                f"sha256 {str(recorded)[:12]}... in run.json",
                DATASET,
            )
        )
    if not examples.held_out:
        raise DataError(Problem(f"{subject.name} was trained without held-out rows", "data.held_out_rows 0", DATASET))
    return Questions(examples.held_out, examples.layout, len(examples.held_out), {}, ())


def _trained_prompts(names: Sequence[str], recipes: Sequence[Recipe], observer: Observer) -> set[str]:
    """The normalised prompts that runs were trained on."""
    prompts: set[str] = set()
    for name, recipe in zip(names, recipes, strict=True):
        try:
            examples = read_examples(recipe.data)
        except DataError as error:
            reason = error.problems[0].violated
            observer.notify(
                Notice(f"rows that {name} was trained on can't be told apart, since its data can't be read: {reason}")
            )
        else:
            prompts.update(normalised(example.prompt()) for example in examples.train)
    return prompts
