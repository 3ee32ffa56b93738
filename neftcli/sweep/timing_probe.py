"""Times what cells are made of, in a process like a worker of the sweep.

Timed are the trainer's own updates, losses of some rows, first tokens of answers; not the disk, tasks, and the judge.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from neftcli.errors import NeftError, Problem, panics_as_errors
from neftcli.events import Event, Observer, Phase, PhaseId, TrainingProgress, TrainingStarted
from neftcli.sweep.cell_costs import BEGUN, Costs
from neftcli.sweep.engines.local_engine import devices
from neftcli.sweep.engines.worker import end_with_the_parent, ignore_signals, signals_put_off
from neftcli.training.assets import AssetCache, Assets, load_assets

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from neftcli.recipe.schema import Recipe

MIN_PROMPTS, MOST, ENOUGH = 3, 30, 5.0  # updates that are timed behind the first, and seconds of them that suffice
FIRST_TOKENS = 12  # of answers that are begun
HARMLESS = 1e-8  # a learning rate that ends in no NaN; no time depends on it

Item = TypeVar("Item")


def probed(recipes: Mapping[str, Recipe], observer: Observer) -> tuple[dict[str, Costs], int]:
    """What the parts of recipes take in a process like a worker of the sweep, and how many devices there are.

    Raises:
        InputError: The model or the rows can't be used.
        NeftError: It failed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="neft-estimate-") as folder:
        ours, theirs = context.Pipe()
        arguments = (theirs, tuple(recipes.values()), Path(folder), time.monotonic())
        process = context.Process(target=probe, args=arguments, daemon=True)
        with signals_put_off():  # until it ignores them
            process.start()
        theirs.close()
        try:
            while isinstance(said := ours.recv(), Phase):
                observer.notify(said)
        except (EOFError, ConnectionError):
            process.join()
            hint = "a smaller batch or more memory" if process.exitcode == -signal.SIGKILL else ""
            told = f"exit code {process.exitcode}"
            raise NeftError(Problem("the process that tried a few updates died", told, hint)) from None
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
        begun: When the process was started, by the monotonic clock, which all processes of a machine share.
    """
    ignore_signals()  # the dry run decides what they mean
    end_with_the_parent()
    with (folder / "output.log").open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from neftcli.system.libraries import prepare_libraries

    prepare_libraries()
    found = devices()
    if found[0] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = found[0]
    try:
        with panics_as_errors():
            costs = [*_all_costs(recipes, folder, begun, connection)]
        connection.send((costs, len(found)))
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
                self._connection.send(replace(event, subject="time estimate"))
            case TrainingStarted():
                self.notify(Phase(PhaseId.TIMING_STEPS))
                self.times, self._total = [time.perf_counter()], event.total_steps
            case TrainingProgress():
                self.times.append(time.perf_counter())
                timed, seconds = len(self.times) - 2, self.times[-1] - self.times[1]  # the first update also prepares
                if timed + 1 == self._total or timed >= MOST or (timed >= MIN_PROMPTS and seconds > ENOUGH):
                    raise _EnoughError

    def update(self) -> tuple[float, int]:
        """Seconds of an update, and how many were timed; the first one counts only where it is alone."""
        times = self.times[1:] if len(self.times) > 2 else self.times
        return (times[-1] - times[0]) / (len(times) - 1), len(times) - 1


def _all_costs(recipes: Sequence[Recipe], folder: Path, begun: float, connection: Connection) -> Iterator[Costs]:
    from neftcli.system.libraries import capture_library_output
    from neftcli.training.inputs import read_inputs
    from neftcli.training.trainer import num_training_steps

    asset_cache, clock = AssetCache(), _Clock(connection)
    with capture_library_output(folder / "libraries.log"):
        for recipe in recipes:
            assets = asset_cache.get(recipe)
            if assets is None:
                assets = load_assets(recipe, *read_inputs(recipe, clock), clock)
                asset_cache.put(recipe, assets)
            start, prepared = time.monotonic() - begun, assets.prepared
            rows, row = _time_losses(recipe, assets, clock)
            answers, batches = _time_answers(recipe, assets, clock)
            preparing = _time_updates(recipe, assets, folder, clock)
            update, timed = clock.update()
            whole = num_training_steps(recipe, prepared.train.lengths())
            probe_rows = min(recipe.evaluation.probe_rows, len(prepared.train))
            told = {"updates": timed, "losses": rows, BEGUN: answers}
            yield Costs(start, preparing, update, row, batches, whole, len(prepared.held_out), probe_rows, told)
            begun = time.monotonic()


def _time_losses(recipe: Recipe, assets: Assets, clock: _Clock) -> tuple[int, float]:
    """Rows that were timed, and seconds a row."""
    from neftcli.evaluation.loss import row_losses

    clock.notify(Phase(PhaseId.TIMING_LOSSES))
    size, compute = recipe.evaluation.per_device_eval_batch_size, assets.compute
    rows = _evenly(sorted(assets.prepared.held_out, key=lambda row: len(row.input_ids)), size)
    row_losses(assets.model, rows[:1], 1, compute.autocast())  # the first one also prepares
    begun = time.perf_counter()
    row_losses(assets.model, rows, max(1, size // 2), compute.autocast())  # short and long ones apart, as later
    return len(rows), (time.perf_counter() - begun) / len(rows)


def _time_answers(recipe: Recipe, assets: Assets, clock: _Clock) -> tuple[int, dict[int, float]]:
    """Answers that were begun, and the seconds of a batch by its size, each answer as long as it may be."""
    from neftcli.data.tokens import tokenize_prompt
    from neftcli.evaluation.generation import generate_answers
    from neftcli.models.limits import max_prompt_length

    settings, generation, model = recipe.evaluation, recipe.evaluation.generation, assets.model
    prompts = sorted((tokenize_prompt(assets.chat, e) for e in assets.prepared.held_out_examples), key=len)
    wanted = {settings.samples, len(prompts) if recipe.sweep.answers else 0} - {0}
    sizes = {min(number, len(prompts), generation.batch_size) for number in wanted}
    room = max_prompt_length(model.config, generation.max_new_tokens)

    def seconds(size: int, tokens: int) -> float:
        few, autocast = replace(generation, max_new_tokens=tokens), assets.compute.autocast()
        begun = time.perf_counter()
        generate_answers(model, assets.chat, _evenly(prompts, size), few, autocast, room)
        return time.perf_counter() - begun

    batches = {}
    for size in sorted(sizes):
        clock.notify(Phase(PhaseId.TIMING_ANSWERS, count=size))
        seconds(1, 2)  # the first one also prepares
        short, all_tokens = min(FIRST_TOKENS, generation.max_new_tokens), generation.max_new_tokens
        first, some = seconds(size, 1), seconds(size, short)
        batches[size] = some + max(0.0, some - first) / max(1, short - 1) * (all_tokens - short)
    return sum(sizes), batches


def _time_updates(recipe: Recipe, assets: Assets, folder: Path, clock: _Clock) -> float:
    """Trains for some updates, whose times `clock` takes; seconds of what comes before the first of them."""
    from neftcli.training.train import train

    evaluation = replace(recipe.evaluation, samples=0, probe_rows=0, every=1.0, tasks=())
    training = replace(recipe.training, learning_rate=HARMLESS)
    recipe = replace(recipe, output_dir=str(folder), training=training, evaluation=evaluation)
    prepared, asset_cache = assets.prepared, AssetCache()
    few = replace(prepared, held_out=prepared.held_out[:1], held_out_examples=prepared.held_out_examples[:1])
    asset_cache.put(recipe, replace(assets, prepared=few))
    begun = time.perf_counter()
    with suppress(_EnoughError):
        train(recipe, clock, asset_cache)
    gc.collect()  # the trainer holds itself, and with it the trained copy of the model
    return clock.times[0] - begun


def _evenly(items: Sequence[Item], number: int) -> list[Item]:
    """At most `number` of the items, evenly spaced."""
    number = min(number, len(items))
    return [items[(2 * place + 1) * len(items) // (2 * number)] for place in range(number)]
