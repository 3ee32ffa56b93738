"""How long a sweep will take, before it begins: by its cells that are done, or by a few real updates on this machine.

cell  = preparing + updates x update + evaluations x rows x row + answers to samples, then loss and answer of each row
start = process, libraries, model and rows, then losses and answers of the base model: once a worker
total = the cells in their order, each given to the worker that is free first

Timed are the trainer's own updates, losses of some rows, first tokens of answers; not the disk, tasks, and the judge.
"""

from __future__ import annotations

import gc
import heapq
import multiprocessing
import os
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, TypeVar

from neftcli.errors import NeftError, Problem
from neftcli.events import CellEstimate, Event, Observer, Phase, Progress, SweepEstimate, TrainingStarted
from neftcli.runs.directory import RECORD
from neftcli.sweep.cell import finished_run, measured
from neftcli.sweep.local import devices
from neftcli.sweep.worker import end_with_the_parent, ignore_signals, signals_put_off
from neftcli.training.materials import Materials, Shelf, load_materials, materials_key

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from neftcli.recipe.schema import Recipe
    from neftcli.sweep.plan import Cell

FEWEST, MOST, ENOUGH = 3, 30, 5.0  # updates that are timed behind the first, and seconds of them that suffice
FIRST_TOKENS = 12  # of answers that are begun
BEGUN = "begun answers"
HARMLESS = 1e-8  # a learning rate that ends in no NaN; no time depends on it

Item = TypeVar("Item")


@dataclass(frozen=True)
class Costs:
    """What the parts of a cell take on this machine, in seconds, and how much of them there is.

    Attributes:
        start: Process, libraries, model and tokenised rows.
        preparing: A cell's copy of the model, and its trainer.
        update: An update of the optimiser.
        row: The loss of a row.
        batches: A batch of answers by its size, of one size or two; empty without answers.
        updates: Updates of a cell.
        held_out: Held-out rows.
        probe_rows: Training rows whose loss is evaluated.
        timed: What was timed, by its name, and how much of it.
    """

    start: float
    preparing: float
    update: float
    row: float
    batches: Mapping[int, float]
    updates: int
    held_out: int
    probe_rows: int
    timed: Mapping[str, int]

    def worker(self, recipe: Recipe) -> float:
        """Seconds until a worker's first cell begins."""
        rows = self.held_out + self.probe_rows
        return self.start + rows * self.row + self._answers(recipe.evaluation.samples, recipe)

    def cell(self, recipe: Recipe) -> dict[str, float]:
        """Seconds of the parts of a cell."""
        rows = evaluations(self.updates, recipe.evaluation.every) * (self.held_out + self.probe_rows)
        after = self.measuring(recipe)
        return {
            "updates": self.preparing + self.updates * self.update,
            "losses": rows * self.row + after["losses"],
            "sample answers": self._answers(recipe.evaluation.samples, recipe),
            "answers": after["answers"],
        }

    def measuring(self, recipe: Recipe) -> dict[str, float]:
        """Seconds of what is measured behind a cell's training."""
        answers = self.held_out if recipe.sweep.answers else 0
        return {"losses": self.held_out * self.row, "answers": self._answers(answers, recipe)}

    def _answers(self, answers: int, recipe: Recipe) -> float:
        whole, rest = divmod(answers, recipe.evaluation.generation.batch_size)
        return whole * self._batch(recipe.evaluation.generation.batch_size) + (self._batch(rest) if rest else 0.0)

    def _batch(self, size: int) -> float:
        """Seconds of a batch; of another size than those that were timed, on the line through these."""
        if not self.batches:
            return 0.0
        (small, less), (large, more) = min(self.batches.items()), max(self.batches.items())
        slope = max(0.0, (more - less) / (large - small)) if large > small else 0.0
        return max(0.0, less + slope * (size - small))


@dataclass(frozen=True)
class Job:
    """A cell that is to do: its seconds, and those before it where its worker has not just used its `materials`."""

    seconds: float
    start: float = 0.0
    materials: str = ""


def spread(jobs: Sequence[Job], workers: int) -> float:
    """Seconds until all are done, in their order, each by the worker that is free first."""
    free: list[tuple[float, int, str | None]] = [(0.0, number, None) for number in range(workers)]
    for job in jobs:
        until, number, materials = free[0]
        start = 0.0 if materials == job.materials else job.start
        heapq.heapreplace(free, (until + start + job.seconds, number, job.materials))
    return max(until for until, _, _ in free)


def evaluations(updates: int, every: float) -> int:
    """Evaluations in a run of `updates` updates: behind each share `every` of it, and behind the last update."""
    return len({int(step / updates / every + 1e-9) for step in range(1, updates)} - {0}) + 1


def way(recipe: Recipe) -> str:
    """All of a recipe that its time depends on; cells with the same take as long."""
    symmetric = recipe.neftune.noise == "symmetric" and recipe.neftune.alpha > 0  # twice the work an update
    schedule: dict[str, Any] = {"lr_scheduler_type": "cosine", "warmup_ratio": 0.0, "learning_rate": HARMLESS}
    training = replace(recipe.training, seed=0, weight_decay=0.0, max_grad_norm=1.0, **schedule)
    parts = (recipe.model, recipe.data, symmetric, recipe.adapter, recipe.quantization, training, recipe.evaluation)
    return repr((*parts, recipe.sweep.answers))


def estimate(cells: Sequence[Cell], engine: str, race: bool, observer: Observer) -> SweepEstimate:
    """How long the cells that are not done will take. Nothing is made in their folder.

    Args:
        cells: All of the sweep.
        engine: local or ray.
        race: Arms may be dropped.
        observer: Is told what is timed.

    Raises:
        InputError: The model or the rows can't be used.
        NeftError: A few updates could not be done, as for want of memory.
    """
    recorded: dict[str, list[tuple[float, float]]] = defaultdict(list)
    left: list[tuple[Cell, bool]] = []  # and whether it is trained
    for cell in cells:
        run = finished_run(Path(cell.recipe.output_dir), cell.key)
        content = measured(run, cell.recipe) if run else None
        if run is None or content is None:
            left.append((cell, run is not None))
        elif "seconds" in content:
            training = run.read_json(RECORD)["results"]["seconds"]
            recorded[way(cell.recipe)].append((training, content["seconds"]))
    unknown: dict[str, Recipe] = {}
    for recipe in (cell.recipe for cell, _ in left if way(cell.recipe) not in recorded):
        unknown.setdefault(way(recipe), recipe)
    found, workers = _probed(unknown, observer) if unknown else ({}, 0)
    workers = 1 if engine == "ray" or not left else workers or len(devices())
    jobs = [_job(cell.recipe, trained, recorded, found) for cell, trained in left]
    pairs = zip((cell for cell, _ in left), jobs, strict=True)
    ways = {way(cell.recipe) for cell, _ in left}
    timed = {"finished cells": sum(len(seconds) for known, seconds in recorded.items() if known in ways)}
    for costs in found.values():
        timed |= {name: timed.get(name, 0) + number for name, number in costs.timed.items()}
    recipe = left[0][0].recipe if left else cells[0].recipe
    uncounted = {"tasks": bool(found and recipe.evaluation.tasks), "the judge": "win_rate" in recipe.sweep.metrics}
    return SweepEstimate(
        seconds=spread(jobs, workers),
        workers=max(1, min(workers, len(left))),
        cells=tuple(CellEstimate(one.key[:8], one.arm.name(), one.seed, job.seconds) for one, job in pairs),
        parts=found[way(recipe)].cell(recipe) if len({job.seconds for job in jobs}) == len(found) == 1 else {},
        timed={name: number for name, number in timed.items() if number},
        shared=_shared(cells),
        answer_tokens=recipe.evaluation.generation.max_new_tokens if timed.get(BEGUN) else None,
        uncounted=tuple(name for name, used in uncounted.items() if used),
        engine=engine,
        race=race,
    )


def _job(
    recipe: Recipe, trained: bool, recorded: Mapping[str, Sequence[tuple[float, float]]], found: Mapping[str, Costs]
) -> Job:
    """A cell as a job, of which the training may be done: by the mean of cells like it, or by what parts take."""
    if way(recipe) in recorded:  # the starts of their workers are in the mean
        return Job(mean(measuring + (0.0 if trained else training) for training, measuring in recorded[way(recipe)]))
    costs = found[way(recipe)]
    parts = costs.measuring(recipe) if trained else costs.cell(recipe)
    return Job(sum(parts.values()), costs.worker(recipe), materials_key(recipe))


def _shared(cells: Sequence[Cell]) -> tuple[str, ...]:
    """What cells have in common, in words."""
    samples = cells[0].recipe.evaluation.samples
    answers = f" and {samples} answers" if samples else ""
    again = "; model and rows again where the grid changes them"
    adapters = "" if all(cell.recipe.adapter.type == "none" for cell in cells) else "adapters' first weights, "
    return (
        "once a worker: libraries, model and tokenised rows are loaded"
        + (again if len({materials_key(cell.recipe) for cell in cells}) > 1 else ""),
        f"once a worker: the base model's losses{answers}, before training",
        f"within a seed: data order, dropout, {adapters}directions of the noise",
        "in all cells: the held-out rows",
    )


def _probed(recipes: Mapping[str, Recipe], observer: Observer) -> tuple[dict[str, Costs], int]:
    """What the parts of recipes take in a process like a worker of the sweep, and how many devices there are.

    Raises:
        InputError: The model or the rows can't be used.
        NeftError: It failed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="neft-estimate-") as folder:
        ours, theirs = context.Pipe()
        arguments = (theirs, tuple(recipes.values()), Path(folder), time.time())
        process = context.Process(target=probe, args=arguments, daemon=True)
        with signals_put_off():  # until it ignores them
            process.start()
        theirs.close()
        try:
            while isinstance(said := ours.recv(), Phase):
                observer.notify(said)
        except (EOFError, ConnectionError):
            process.join()
            remedy = "a smaller batch or more memory" if process.exitcode == -signal.SIGKILL else ""
            told = f"exit code {process.exitcode}"
            raise NeftError(Problem("the process that tried a few updates died", told, remedy)) from None
        finally:
            process.kill()
            process.join()
            ours.close()
    if isinstance(said, NeftError):
        raise said
    return dict(zip(recipes, said[0], strict=True)), said[1]


def probe(connection: Connection, recipes: Sequence[Recipe], folder: Path, begun: float) -> None:
    """Times the parts of recipes in a process of its own; answers by phases, then by the costs and how many devices.

    Args:
        connection: To the dry run; told of a NeftError, too.
        recipes: One after another.
        folder: Takes all that is written.
        begun: When the process was started, in seconds since the epoch.
    """
    ignore_signals()  # the dry run decides what they mean
    end_with_the_parent()
    with (folder / "output.log").open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from neftcli.machine.process import prepare_process

    prepare_process()
    found = devices()
    if found[0] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = found[0]
    try:
        connection.send(([*_all_costs(recipes, folder, begun, connection)], len(found)))
    except NeftError as error:
        connection.send(error)
    except Exception as error:
        connection.send(NeftError(Problem("a few updates could not be tried", f"{type(error).__name__}: {error}")))


class _EnoughError(Exception):
    """Enough updates are timed."""


class _Clock:
    """Passes phases on, and takes the time of updates.

    Training ends by an exception from here: a run that is asked to stop would first save what it has.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection, self._total = connection, 0
        self.times: list[float] = []  # when training began, and the end of each update

    def notify(self, event: Event) -> None:
        """Takes the time.

        Raises:
            _EnoughError: Enough updates are timed.
        """
        match event:
            case Phase():
                self._connection.send(Phase(f"to estimate the time: {event.name}"))
            case TrainingStarted():
                self.notify(Phase("some updates"))
                self.times, self._total = [time.perf_counter()], event.total_steps
            case Progress():
                self.times.append(time.perf_counter())
                timed, seconds = len(self.times) - 2, self.times[-1] - self.times[1]  # the first update also prepares
                if timed + 1 == self._total or timed >= MOST or (timed >= FEWEST and seconds > ENOUGH):
                    raise _EnoughError

    def update(self) -> tuple[float, int]:
        """Seconds of an update, and how many were timed; the first one counts only where it is alone."""
        times = self.times[1:] if len(self.times) > 2 else self.times
        return (times[-1] - times[0]) / (len(times) - 1), len(times) - 1


def _all_costs(recipes: Sequence[Recipe], folder: Path, begun: float, connection: Connection) -> Iterator[Costs]:
    from neftcli.machine.chatter import library_chatter
    from neftcli.training.inputs import check_inputs
    from neftcli.training.trainer import updates

    shelf, clock = Shelf(), _Clock(connection)
    with library_chatter(folder / "libraries.log"):
        for recipe in recipes:
            materials = shelf.find(recipe)
            if materials is None:
                materials = load_materials(recipe, *check_inputs(recipe, clock), clock)
                shelf.keep(recipe, materials)
            start, prepared = time.time() - begun, materials.prepared
            rows, row = _time_losses(recipe, materials, clock)
            answers, batches = _time_answers(recipe, materials, clock)
            preparing = _time_updates(recipe, materials, folder, clock)
            update, timed = clock.update()
            whole = updates(recipe, prepared.train.lengths())
            probe_rows = min(recipe.evaluation.probe_rows, len(prepared.train))
            told = {"updates": timed, "losses": rows, BEGUN: answers}
            yield Costs(start, preparing, update, row, batches, whole, len(prepared.held_out), probe_rows, told)
            begun = time.time()


def _time_losses(recipe: Recipe, materials: Materials, clock: _Clock) -> tuple[int, float]:
    """Rows that were timed, and seconds a row."""
    from neftcli.evaluation.loss import row_losses

    clock.notify(Phase("losses of some rows"))
    size, machine = recipe.evaluation.per_device_eval_batch_size, materials.machine
    rows = _evenly(sorted(materials.prepared.held_out, key=lambda row: len(row.input_ids)), size)
    row_losses(materials.model, rows[:1], 1, machine.autocast())  # the first one also prepares
    begun = time.perf_counter()
    row_losses(materials.model, rows, max(1, size // 2), machine.autocast())  # short and long ones apart, as later
    return len(rows), (time.perf_counter() - begun) / len(rows)


def _time_answers(recipe: Recipe, materials: Materials, clock: _Clock) -> tuple[int, dict[int, float]]:
    """Answers that were begun, and the seconds of a batch by its size, each answer as long as it may be."""
    from neftcli.data.tokens import render_prompt
    from neftcli.evaluation.generation import generate_answers
    from neftcli.models.by_recipe import longest_prompt

    settings, generation, model = recipe.evaluation, recipe.evaluation.generation, materials.model
    prompts = sorted((render_prompt(materials.tokenizer, e) for e in materials.prepared.held_out_examples), key=len)
    wanted = {settings.samples, len(prompts) if recipe.sweep.answers else 0} - {0}
    sizes = {min(number, len(prompts), generation.batch_size) for number in wanted}
    room = longest_prompt(model.config, generation.max_new_tokens)

    def seconds(size: int, tokens: int) -> float:
        few, autocast = replace(generation, max_new_tokens=tokens), materials.machine.autocast()
        begun = time.perf_counter()
        generate_answers(model, materials.tokenizer, _evenly(prompts, size), few, autocast, room)
        return time.perf_counter() - begun

    batches = {}
    for size in sorted(sizes):
        clock.notify(Phase(f"the beginning of {size} answers"))
        seconds(1, 2)  # the first one also prepares
        short, all_tokens = min(FIRST_TOKENS, generation.max_new_tokens), generation.max_new_tokens
        first, some = seconds(size, 1), seconds(size, short)
        batches[size] = some + max(0.0, some - first) / max(1, short - 1) * (all_tokens - short)
    return sum(sizes), batches


def _time_updates(recipe: Recipe, materials: Materials, folder: Path, clock: _Clock) -> float:
    """Trains for some updates, whose times `clock` takes; seconds of what comes before the first of them."""
    from neftcli.training.run import train

    evaluation = replace(recipe.evaluation, samples=0, probe_rows=0, every=1.0, tasks=())
    training = replace(recipe.training, learning_rate=HARMLESS)
    recipe = replace(recipe, output_dir=str(folder), training=training, evaluation=evaluation)
    prepared, shelf = materials.prepared, Shelf()
    few = replace(prepared, held_out=prepared.held_out[:1], held_out_examples=prepared.held_out_examples[:1])
    shelf.keep(recipe, replace(materials, prepared=few))
    begun = time.perf_counter()
    with suppress(_EnoughError):
        train(recipe, clock, shelf)
    gc.collect()  # the trainer holds itself, and with it the trained copy of the model
    return clock.times[0] - begun


def _evenly(items: Sequence[Item], number: int) -> list[Item]:
    """At most `number` of the items, evenly spaced."""
    number = min(number, len(items))
    return [items[(2 * place + 1) * len(items) // (2 * number)] for place in range(number)]
