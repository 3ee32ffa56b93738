"""What is refused of a sweep before a worker is started."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.errors import InputError, Problem
from neftcli.evaluation.metrics import WIN_RATE_LENGTH_CONTROLLED
from neftcli.events import Observer
from neftcli.runs.directory import require_writable
from neftcli.sweep.plan import arms_of
from neftcli.system.libraries import capture_library_output

if TYPE_CHECKING:
    from neftcli.data.prepare import ExampleSplits
    from neftcli.models.registry import ModelReference
    from neftcli.recipe.schema import Recipe
    from neftcli.sweep.plan import Cell
    from neftcli.sweep.sweep_alpha import Request

ENGINES = ("local", "ray")
OTHER_TOKENS = ("model.name", "model.revision", "model.chat_template")  # whose losses can't stand in one table


def require_noise(base: Recipe, cells: Sequence[Cell]) -> None:
    """Rejects a sweep whose only arm is alpha 0, before any row is read.

    Raises:
        InputError: No alpha is above 0, and no grid makes a second arm.
    """
    if len(arms_of(cells)) > 1:
        return
    alphas = ",".join(f"{alpha:g}" for alpha in base.sweep.alphas)
    problem = "sweep.alphas: a sweep compares alphas, and alpha 0, the baseline, is the only one"
    raise InputError(Problem(problem, alphas, "--alphas 0,5,10    a run without noise: neft train --alpha 0"))


def check(base: Recipe, request: Request, folder: Path, observer: Observer) -> tuple[ModelReference, ExampleSplits]:
    """Refuses what can be refused before a worker is started; what the cells are trained on."""
    from neftcli.data.splits import MAX_HELD_OUT_FRACTION, normalize_prompt
    from neftcli.evaluation.chat_server import require_reachable
    from neftcli.evaluation.judge import check_judge
    from neftcli.evaluation.report import instruction
    from neftcli.evaluation.tasks import check_tasks
    from neftcli.statistics.paired import MIN_PROMPTS
    from neftcli.training.inputs import read_inputs, tokenize_inputs

    if request.engine not in ENGINES:
        raise InputError(
            Problem("--engine: there is no such engine", request.engine, f"--engine {' or '.join(ENGINES)}")
        )
    if request.ray_address is not None and request.engine != "ray":
        raise InputError(Problem("--ray-address needs --engine ray", request.ray_address, "--engine ray"))
    if base.training.processes > 1 or any(axis.startswith("training.processes") for axis in base.sweep.grid):
        told = "training.processes: a sweep trains each cell in one process"
        raise InputError(Problem(told, str(base.training.processes), "--set training.processes=1"))
    for axis in base.sweep.grid:
        if axis.partition("=")[0].strip() in OTHER_TOKENS:
            raise InputError(
                Problem(
                    "--grid: its losses are over other tokens and can't stand in one table", axis, "a sweep for each"
                )
            )
    judge = base.evaluation.judge
    if WIN_RATE_LENGTH_CONTROLLED in base.sweep.metrics and judge.base_url is None:
        violated = f"sweep.metrics {WIN_RATE_LENGTH_CONTROLLED} needs a judge"
        raise InputError(Problem(violated, "no server", "--judge URL --judge-model NAME"))
    if {WIN_RATE_LENGTH_CONTROLLED, "rouge_l", "exact_match"} & set(base.sweep.metrics) and not base.sweep.answers:
        raise InputError(Problem("sweep.metrics needs answers", "sweep.answers false", "--set sweep.answers=true"))
    if "tasks" in base.sweep.metrics and not base.evaluation.tasks:
        raise InputError(Problem("sweep.metrics tasks needs tasks", "none", "--tasks arc_easy"))
    check_tasks(base.evaluation.tasks, base.evaluation.task_settings)
    check_judge(judge)
    if judge.base_url is not None:
        require_reachable(judge)
    require_writable(folder)
    reference, examples = read_inputs(base, observer)
    prompts = {normalize_prompt(instruction(example)) for example in examples.held_out}
    if len(prompts) < MIN_PROMPTS:
        total = len(examples.train) + len(examples.held_out)
        enough = math.ceil(MIN_PROMPTS / MAX_HELD_OUT_FRACTION)
        hint = f"--held-out FILE with {MIN_PROMPTS} rows or more"
        if total >= enough:
            hint += ", or more --held-out-rows"
        else:
            hint += f"; {enough} rows of data are the fewest of which {MIN_PROMPTS} can be held out"
        got = f"{len(examples.held_out)} rows with {len(prompts)} prompts"
        raise InputError(
            Problem(f"a sweep needs at least {MIN_PROMPTS} held-out rows with different prompts", got, hint)
        )
    with tempfile.TemporaryDirectory() as logs, capture_library_output(Path(logs) / "log"):
        # Once for all cells: no axis of a grid changes the tokens.
        tokenize_inputs(base, reference, examples, observer, answers=base.sweep.answers)
    return reference, examples
