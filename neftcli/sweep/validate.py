"""Checks of a sweep before a worker starts, and of its results before they are compared."""

from __future__ import annotations

import math
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import Checks, InputError, NeftError, Problem
from neftcli.events import CellStatus, Notice, Observer
from neftcli.metrics.registry import (
    ANSWER_METRICS,
    HELD_OUT_LOSS,
    WIN_RATE_LENGTH_CONTROLLED,
    comparative_word,
    label,
)
from neftcli.runs.directory import CELLS, RECIPE, RECORD, require_writable
from neftcli.runs.schemas import ReportedSweep, parse_json
from neftcli.sweep.cell_runs import name_some
from neftcli.sweep.folder import SWEEP
from neftcli.sweep.plan import arms_of
from neftcli.system.libraries import capture_library_output, prepare_libraries
from neftcli.trackers.registry import require_trackers
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.data.mixture import ExampleSplits
    from neftcli.data.prepare import PreparedData
    from neftcli.models.registry import ModelReference
    from neftcli.recipe.schema import Recipe
    from neftcli.runs.directory import RunDirectory
    from neftcli.sweep.cell_runs import CellRuns
    from neftcli.sweep.plan import Cell

ENGINES = ("local", "ray")
CHANGE_TOKENS = ("model.name", "model.revision", "model.chat_template", "model.new_tokens")
"""Options whose losses are over different tokens, so that one table can't hold them."""
OPTIMISTIC = (
    "training.keep best: {metric} selects each cell's weights and also compares the arms, so all values are {better} "
    "than on new rows; --metric {other} compares the {others} instead"
)
INPUT_NAMES = {
    "data_sha256": "the rows",
    "tokens_sha256": "the tokens of the rows (chat template or tokenizer)",
    "model_fingerprint": "the model's files",
}
"""Fields of run.json that identify the inputs of a run."""


def require_noise(base: Recipe, cells: Sequence[Cell]) -> None:
    """Reject a sweep whose only arm is alpha 0, before any row is read.

    Raises:
        InputError: No alpha is above 0, and no grid adds an arm.
    """
    if len(arms_of(cells)) > 1:
        return
    alphas = ",".join(f"{alpha:g}" for alpha in base.sweep.alphas)
    problem = "sweep.alphas: a sweep needs an alpha above 0 to compare with alpha 0, the baseline"
    raise InputError(Problem(problem, alphas, "--alphas 0,5,10; for a single run without noise: neft train --alpha 0"))


def check_options(base: Recipe, engine: str, ray_address: str | None) -> None:
    """Check the options of a sweep that need no file.

    Raises:
        InputError: Options contradict each other.
    """
    if engine not in ENGINES:
        raise InputError(Problem("--engine: there is no such engine", engine, f"--engine {' or '.join(ENGINES)}"))
    if ray_address is not None and engine != "ray":
        raise InputError(Problem("--ray-address needs --engine ray", ray_address, "--engine ray"))
    if base.training.processes > 1 or any(axis.startswith("training.processes") for axis in base.sweep.grid):
        problem = "training.processes: a sweep trains each cell in one process"
        raise InputError(Problem(problem, str(base.training.processes), "--set training.processes=1"))
    for axis in base.sweep.grid:
        if axis.partition("=")[0].strip() in CHANGE_TOKENS:
            problem = "--grid: losses over different tokens can't be compared in one table"
            raise InputError(Problem(problem, axis, "run a sweep for each value"))
    metrics = set(base.sweep.metrics)
    if WIN_RATE_LENGTH_CONTROLLED in metrics and base.evaluation.judge.base_url is None:
        problem = f"sweep.metrics {WIN_RATE_LENGTH_CONTROLLED} needs a judge"
        raise InputError(Problem(problem, "no server", "--judge URL --judge-model NAME"))
    if metrics & {WIN_RATE_LENGTH_CONTROLLED, *ANSWER_METRICS} and not base.sweep.answers:
        raise InputError(Problem("sweep.metrics needs answers", "sweep.answers false", "--set sweep.answers=true"))
    if "tasks" in metrics and not base.evaluation.tasks:
        raise InputError(Problem("sweep.metrics tasks needs tasks", "none", "--tasks arc_easy"))


def check_inputs(base: Recipe, folder: Path, observer: Observer) -> tuple[ModelReference, ExampleSplits, PreparedData]:
    """Check tasks, judge, folder, model and rows, and tokenise the rows, before a worker starts.

    Args:
        base: The recipe of the sweep.
        folder: Its folder.
        observer: Receives the progress.

    Returns:
        The model, and the rows before and after tokenising.

    Raises:
        InputError: Any of them can't be used, or the held-out split has too few prompts.
    """
    from neftcli.evaluation.chat_server import require_reachable
    from neftcli.evaluation.judge import check_judge
    from neftcli.training.inputs import read_inputs, tokenize_inputs

    prepare_libraries()
    judge = base.evaluation.judge
    if base.evaluation.tasks:
        from neftcli.evaluation.tasks import check_tasks  # imports torch

        check_tasks(base.evaluation.tasks, base.evaluation.task_settings)
    check_judge(judge)
    if judge.base_url is not None:
        require_reachable(judge)
    require_writable(folder)
    require_trackers(base.training.report_to)
    best_metric = base.training.best_metric
    if base.training.keep == "best" and best_metric in base.sweep.metrics:
        of_loss = best_metric == HELD_OUT_LOSS
        other, others = ("rouge_l", "answers") if of_loss else (HELD_OUT_LOSS, "losses")
        better = comparative_word(best_metric)
        text = OPTIMISTIC.format(metric=label(best_metric), better=better, other=other, others=others)
        observer.notify(Notice(text))
    reference, examples = read_inputs(base, observer)
    _require_prompts(examples)
    with tempfile.TemporaryDirectory() as logs, capture_library_output(Path(logs) / "log"):
        # Once for all cells: no axis of a grid changes the tokens.
        prepared, _, _ = tokenize_inputs(base, reference, examples, observer, answers=base.sweep.answers)
    return reference, examples, prepared


def require_layers(cells: Sequence[Cell], reference: ModelReference) -> None:
    """Check the layers and tokens that the cells' recipes name, before a worker starts.

    The model is built without weights, and only if a recipe names layers: this imports torch.

    Raises:
        InputError: A cell could not be trained.
    """
    named = {
        repr((recipe.adapter, recipe.training.freeze, recipe.model.new_tokens)): recipe
        for recipe in (cell.recipe for cell in cells)
        if recipe.names_layers()
    }
    if not named:
        return
    from neftcli.models.loading import build_meta_model, load_config
    from neftcli.models.new_tokens import validate_layers
    from neftcli.models.pissa import require_float32_weights
    from neftcli.system.device import resolve_compute_config

    checks = Checks()
    for recipe in named.values():
        with checks:
            trust = recipe.model.trust_remote_code
            validate_layers(build_meta_model(reference, load_config(reference, trust), trust), recipe)
            adapted = recipe.adapter.type != "none"
            compute = resolve_compute_config(recipe.training.precision, recipe.model.dtype, frozen_weights=adapted)
            require_float32_weights(recipe, compute)
    checks.raise_errors()


def _require_prompts(examples: ExampleSplits) -> None:
    """Check that the held-out split has enough distinct prompts for a test.

    Raises:
        InputError: It has too few.
    """
    from neftcli.data.splits import MAX_HELD_OUT_FRACTION, normalize_prompt
    from neftcli.data.tokens import instruction
    from neftcli.statistics.paired import MIN_PROMPTS

    prompts = {normalize_prompt(instruction(example)) for example in examples.held_out}
    if len(prompts) >= MIN_PROMPTS:
        return
    total = len(examples.train) + len(examples.held_out)
    enough = math.ceil(MIN_PROMPTS / MAX_HELD_OUT_FRACTION)
    hint = f"--held-out FILE with {MIN_PROMPTS} rows or more"
    if total >= enough:
        hint += ", or more --held-out-rows"
    else:
        hint += f"; at least {enough} rows of data are needed to hold out {MIN_PROMPTS}"
    received = f"{count_noun(len(examples.held_out), 'row')} with {count_noun(len(prompts), 'prompt')}"
    raise InputError(
        Problem(f"a sweep needs at least {MIN_PROMPTS} held-out rows with different prompts", received, hint)
    )


def require_same_sweep(folder: Path, base: Recipe) -> None:
    """Check that the recipe trains the cells of the sweep in the folder the same way.

    Only the `sweep` section and the evaluation may differ.

    Raises:
        InputError: The cells in the folder were trained differently.
    """
    from neftcli.recipe.keys import format_value
    from neftcli.recipe.loading import load_recipe, recipe_differences

    file = folder / RECIPE
    if not file.is_file() or not any((folder / CELLS).glob(f"[!.]*/{RECORD}")):  # a damaged record counts, too
        return
    changed = recipe_differences(load_recipe(str(file), as_written=True), base)
    changed.pop("neftune.alpha", None)  # each cell has its own
    if changed:
        values = ", ".join(
            f"{path} {format_value(new)} (there {format_value(old)})" for path, (old, new) in changed.items()
        )
        problem = f"{folder}: the cells of the sweep in this folder were trained differently"
        raise InputError(Problem(problem, values, "--name NAME for a new folder"))


def require_whole_sweep(folder: Path, cells: Sequence[Cell]) -> None:
    """Check that the plan has all cells of a finished sweep in the folder, whose report and `best` it replaces.

    Of a sweep with unfinished or failed cells a part may be left out.

    Raises:
        InputError: It leaves out finished cells.
    """
    try:
        report = parse_json((folder / SWEEP).read_bytes(), ReportedSweep)
    except (OSError, ValueError):  # there is none yet, or nothing in it could be kept
        return
    keys = {cell.short_key() for cell in cells}
    left_out = []
    for cell in report["cells"]:
        run = folder / CELLS / Path(cell["run"]).name
        if cell["status"] == CellStatus.FINISHED and cell["key"] not in keys and run.is_dir():
            left_out.append(run.name)
    if left_out and not report["failed"] and not report["unfinished"]:
        problem = f"{folder}: the sweep in this folder is finished, and its report would lose {len(left_out)} of its "
        problem += f"{len(report['cells'])} cells"
        hint = f"neft sweep-alpha {shlex.quote(str(folder))}    keeps all cells; --name NAME for a new folder"
        raise InputError(Problem(problem, f"without {name_some(left_out)}", hint))


def require_unchanged_inputs(
    runs: CellRuns, cells: Sequence[Cell], reference: ModelReference, prepared: PreparedData
) -> None:
    """Compare the inputs of the cells that were started with the files that are there now.

    The rows, their tokens (so also the chat template and the tokenizer) and the model's files are compared. A model of
    the hub is known by its commit; its files are compared after the cells are trained.

    Raises:
        InputError: A file was changed, so further cells would have different inputs.
    """
    from neftcli.models.loading import model_fingerprint
    from neftcli.training.assets import hash_tokens

    keys = {cell.key for cell in cells}
    started = [(run, record) for run, record in runs.runs if record["recipe_sha256"] in keys]
    if not started:
        return
    current: dict[str, Any] = {"data_sha256": prepared.counts.fingerprint}
    if reference.kind != "hub":
        current["model_fingerprint"] = model_fingerprint(reference, None)
    if any(record.get("tokens_sha256") for _, record in started):
        current["tokens_sha256"] = hash_tokens(prepared.train)
    problems: list[Problem] = []
    for field, name in INPUT_NAMES.items():
        if field == "tokens_sha256" and problems:  # follows from the rows or the model
            continue
        changed = [run.path.name for run, record in started if record.get(field) not in (None, current.get(field))]
        if field in current and changed:
            problem = f"{name} changed since cells were trained, so further cells can't be compared with them"
            hint = f"restore {name}, or --name NAME for a new folder"
            problems.append(Problem(problem, name_some(changed), hint))
    if problems:
        raise InputError(*problems)


def require_comparable(evaluations: Mapping[str, tuple[RunDirectory, Mapping[str, Any]]], hint: str) -> None:
    """Check that all cells were trained and evaluated on the same inputs, before they are paired row by row.

    Args:
        evaluations: The run and the evaluation of each cell, by its key.
        hint: Command that resumes the sweep.

    Raises:
        NeftError: An input was changed while the sweep ran.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for run, evaluation in evaluations.values():
        record = run.record()
        values = {name: str(record.get(field)) for field, name in INPUT_NAMES.items()}
        values["the held-out rows"] = repr((evaluation["prompts"], evaluation["references"]))
        for name, value in values.items():
            groups.setdefault(name, {}).setdefault(value, []).append(run.path.name)
    for name, runs in groups.items():
        if len(runs) > 1:
            raise NeftError(
                Problem(
                    f"{name} changed between cells, so they can't be compared in one table",
                    "; others: ".join(name_some(names) for names in runs.values()),
                    f"rm -r the cells that are not wanted, in cells/, then {hint}",
                )
            )
