"""One cell: trained, then measured on the held-out rows. Both are kept in its run, and neither is done twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.events import Observer
from neftcli.recipe.loading import fingerprint
from neftcli.runs.directory import RECORD, RunDirectory

if TYPE_CHECKING:
    from neftcli.evaluation.measure import Results
    from neftcli.recipe.schema import Recipe
    from neftcli.training.materials import Materials, Shelf
    from neftcli.training.resume import Resumption
    from neftcli.training.stopping import Stop

MEASURED = "evaluation/cell.json"


def finished_run(cells: Path, key: str) -> RunDirectory | None:
    """The run below `cells` that was finished with the weights of `key`; None where there is none."""
    for run, record in runs_of(cells, key):
        if record.get("status") == "finished" and any(run.model.glob("*.safetensors")):
            return run
    return None


def stopped_run(cells: Path, key: str, recipe: Recipe) -> Resumption | None:
    """The run of `key` that was stopped and can be gone on with; those that can't be are taken away."""
    from shutil import rmtree

    from neftcli.errors import InputError
    from neftcli.training.resume import resumption_of

    found = None
    for run, record in runs_of(cells, key):
        if record.get("status") == "finished":
            continue
        try:
            resumption = resumption_of(run, recipe)
        except InputError:  # none of its checkpoints verifies
            resumption = None
        if found is None and resumption is not None and resumption.checkpoint is not None:
            found = resumption
        else:
            rmtree(run.path)
    return found


def clear_unborn(cells: Path) -> None:
    """Takes away folders that a killed worker made and had not written a record to; only while no worker is at work."""
    from shutil import rmtree

    for folder in cells.glob("*/"):
        if not (folder / RECORD).is_file():
            rmtree(folder)


def runs_of(cells: Path, key: str) -> Iterator[tuple[RunDirectory, dict[str, Any]]]:
    """The runs below `cells` by the recipe of `key`, with their records."""
    for file in sorted(cells.glob(f"*/{RECORD}")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if record.get("recipe_sha256") == key:
            yield RunDirectory(file.parent), record


def measured(run: RunDirectory, recipe: Recipe) -> dict[str, Any] | None:
    """What was measured of a cell by the settings of `recipe`; None where that is still to do."""
    file = run.path / MEASURED
    if not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content if content["settings"] == settings_key(recipe) else None


def settings_key(recipe: Recipe) -> str:
    """The hash of all that the measuring of a cell depends on, its weights aside."""
    evaluation = recipe.evaluation
    parts = (recipe.data, evaluation.generation, evaluation.tasks, recipe.sweep.answers)
    return sha256(repr(parts).encode()).hexdigest()


def do_cell(recipe: Recipe, shelf: Shelf, observer: Observer, stop: Stop) -> str:
    """Trains and measures a cell, as far as it is not done, and returns its folder.

    Raises:
        NeftError: It can't be trained or measured.
        Preempted: It was asked to stop, and is saved.
    """
    from neftcli.training.run import train

    cells, key = Path(recipe.output_dir), fingerprint(recipe)
    run = finished_run(cells, key)
    if run is not None:
        if measured(run, recipe) is None:
            _measure_saved(run, recipe, observer)
        return str(run.path)
    resume = stopped_run(cells, key, recipe)

    def and_then(directory: RunDirectory, tuned: Any, materials: Materials) -> None:
        _measure(directory, recipe, materials, observer, tuned)

    return train(recipe, observer, shelf, and_then, stop, resume).run


def _measure_saved(run: RunDirectory, recipe: Recipe, observer: Observer) -> None:
    """Measures a run that was finished and not measured: its worker was killed between the two."""
    from neftcli.machine.chatter import library_chatter
    from neftcli.training.inputs import check_inputs
    from neftcli.training.materials import load_materials

    reference, examples = check_inputs(recipe, observer)
    with library_chatter(run.log):
        _measure(run, recipe, load_materials(recipe, reference, examples, observer), observer, None)


def _measure(run: RunDirectory, recipe: Recipe, materials: Materials, observer: Observer, tuned: Any) -> None:
    from neftcli.evaluation.measure import Measurement
    from neftcli.evaluation.rows import Rows
    from neftcli.evaluation.subjects import find_subject

    begun = time.perf_counter()
    examples = materials.prepared.held_out_examples
    rows = Rows(examples, recipe.data, materials.prepared.counts.layout, "held-out rows", "held-out")
    subject = find_subject(str(run.path), "run", ())
    results = Measurement(
        subject,
        rows,
        recipe.evaluation,
        materials.machine,
        recipe.training.seed,
        observer,
        answers=recipe.sweep.answers,
        model=tuned,
    ).run()
    content = {"settings": settings_key(recipe), **_content(results, rows)}
    run.write_json(MEASURED, content | {"seconds": time.perf_counter() - begun})


def _content(results: Results, rows: Any) -> dict[str, Any]:
    """A cell's numbers, example by example, as JSON."""
    from neftcli.evaluation.comparison import METRICS, task_metrics
    from neftcli.evaluation.report import instruction

    metrics = {}
    for metric in METRICS:
        values = metric.of(results)
        if values.size and not all(value != value for value in values):
            weights = metric.weights(results).tolist() if metric.weights else None
            metrics[metric.name] = {"better": metric.better, "values": values.tolist(), "weights": weights}
    metrics |= task_metrics(results)
    return {
        "prompts": [instruction(example) for example in rows.examples],
        "references": [example.answer() for example in rows.examples],
        "answers": [answer.text for answer in results.answers],
        "metrics": metrics,
    }
