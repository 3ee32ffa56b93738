"""`neft sweep-alpha`: trains a grid of alphas with paired seeds, measures every cell, and says what can be said."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from neftcli.errors import InputError, Interrupted, NeftError, Preempted, Problem
from neftcli.events import CellState, Evaluated, Event, Notice, Observer, Phase, Progress, SweepReport, SweepStarted
from neftcli.recipe.loading import resolve, to_yaml
from neftcli.runs.directory import write_whole
from neftcli.sweep.cell import clear_unborn, finished_run, measured
from neftcli.sweep.local import LocalEngine, Outcome, devices
from neftcli.sweep.plan import Arm, Cell, plan_cells
from neftcli.sweep.splits import chooses

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.recipe.yaml_file import Layer
    from neftcli.sweep.cluster import RayEngine
    from neftcli.sweep.verdict import Numbers

RECIPE = "recipe.yaml"
ENGINES = ("local", "ray")
OTHER_TOKENS = ("model.name", "model.revision", "model.chat_template")  # whose losses can't stand in one table


@dataclass(frozen=True)
class Request:
    """What `neft sweep-alpha` was asked for.

    Attributes:
        layers: The recipe and what was typed over it.
        folder: The sweep's folder; None for one named after the recipe.
        race: Give arms that can't be the best any more no further seeds.
        engine: local or ray.
        ray_address: The cluster, as ray.init takes it; None for one on this machine.
        dry_run: Show the cells, how long they will take and what they share; train nothing.
    """

    layers: tuple[Layer, ...]
    folder: Path | None = None
    race: bool = False
    engine: str = "local"
    ray_address: str | None = None
    dry_run: bool = False


def sweep(request: Request, observer: Observer) -> SweepReport | None:
    """Does what `request` asks for; what is done is skipped. None for a dry run.

    Raises:
        InputError: The recipe, its data or the folder can't be used; nothing was started.
        SweepError: Cells failed; the others are done and reported.
        Preempted: A stop was asked for; what is done is kept, and cells in the middle can be gone on with.
        Interrupted: Stopped at once; what is done is kept.
    """
    begun = time.perf_counter()
    base = resolve(request.layers)
    folder = request.folder or Path(base.output_dir) / f"{base.name}-sweep"
    cells = [
        replace(cell, recipe=replace(cell.recipe, output_dir=str(folder / "cells")))
        for cell in plan_cells(base, request.layers)
    ]
    _check(base, request, observer)
    observer.notify(
        SweepStarted(str(folder), tuple(_state(cell) for cell in cells), added_baseline=0.0 not in base.sweep.alphas)
    )
    if request.dry_run:
        from neftcli.sweep.estimate import estimate

        observer.notify(estimate(cells, request.engine, request.race, observer))
        return None
    with _alone(folder), _kept_if_begun(folder):
        _same_sweep(folder, base)
        run = _Sweep(folder, base, cells, observer, _again(folder, request))
        run.train(request)
        report = run.report(begun)
    observer.notify(report)
    run.end()
    return report


def _check(base: Recipe, request: Request, observer: Observer) -> None:
    """Refuses what can be refused before a worker is started."""
    from neftcli.evaluation.chat_server import require_reachable
    from neftcli.evaluation.comparison import FEWEST
    from neftcli.evaluation.judge import check_judge
    from neftcli.evaluation.report import instruction
    from neftcli.training.inputs import check_inputs

    if request.engine not in ENGINES:
        raise InputError(
            Problem("--engine: there is no such engine", request.engine, f"--engine {' or '.join(ENGINES)}")
        )
    if request.ray_address is not None and request.engine != "ray":
        raise InputError(Problem("--ray-address needs --engine ray", request.ray_address, "--engine ray"))
    for axis in base.sweep.grid:
        if axis.partition("=")[0].strip() in OTHER_TOKENS:
            raise InputError(
                Problem(
                    "--grid: losses over other tokens can't be compared, nor this be swept", axis, "a sweep for each"
                )
            )
    judge = base.evaluation.judge
    if "win_rate" in base.sweep.metrics and judge.base_url is None:
        raise InputError(Problem("sweep.metrics win_rate needs a judge", "no server", "--judge URL --judge-model NAME"))
    if {"win_rate", "rouge_l", "exact_match"} & set(base.sweep.metrics) and not base.sweep.answers:
        raise InputError(Problem("sweep.metrics needs answers", "sweep.answers false", "--set sweep.answers=true"))
    if "tasks" in base.sweep.metrics and not base.evaluation.tasks:
        raise InputError(Problem("sweep.metrics tasks needs tasks", "none", "--tasks arc_easy"))
    check_judge(judge)
    if judge.base_url is not None:
        require_reachable(judge)
    _, examples = check_inputs(base, observer)
    sides = chooses([instruction(example) for example in examples.held_out])
    halves = sum(sides), len(sides) - sum(sides)
    if min(halves) < FEWEST:
        raise InputError(
            Problem(
                f"a sweep needs at least {2 * FEWEST} held-out rows: {FEWEST} that choose and {FEWEST} that judge",
                f"{halves[0]} and {halves[1]} rows; those of one question are not parted",
                "--held-out FILE, or --held-out-rows with more",
            )
        )


def _state(cell: Cell, **known: Any) -> CellState:
    """A cell as it stands on disk, with what is known beside."""
    run = finished_run(Path(cell.recipe.output_dir), cell.key)
    content = measured(run, cell.recipe) if run else None
    settled: dict[str, Any] = {"state": "waiting"}
    if run is not None and content is not None:
        loss = run.read_json("run.json").get("results", {}).get("held_out_loss")
        settled = {"state": "done", "run": str(run.path), "loss": loss}
    return CellState(cell.key[:8], cell.arm.name(), cell.seed, **(settled | known))


class _Sweep:
    """A sweep at work: its cells, where they stand, and who is told."""

    def __init__(self, folder: Path, base: Recipe, cells: list[Cell], observer: Observer, again: str) -> None:
        self.folder, self.base, self.cells, self.observer, self.again = folder, base, cells, observer, again
        self.states = {cell.key: _state(cell) for cell in cells}
        self.dropped: list[Arm] = []

    def train(self, request: Request) -> None:
        """Does what is not done; with racing seed by seed, dropping arms in between."""
        race, engine = request.race, self._engine(request)
        seeds = dict.fromkeys(cell.seed for cell in self.cells)
        rounds = [[cell for cell in self.cells if cell.seed == seed] for seed in seeds]
        clear_unborn(self.folder / "cells")
        with _stopping(engine):
            for number, cells in enumerate(rounds if race else [self.cells], 1):
                racing = [cell for cell in cells if cell.arm not in self.dropped]
                engine.run([cell for cell in racing if self.states[cell.key].state != "done"], self._told, self._ended)
                if race and number < len(rounds):
                    self._race(number, len(rounds))
        clear_unborn(self.folder / "cells")
        for cell in self.cells:
            if cell.arm in self.dropped and self.states[cell.key].state == "waiting":
                self._set(cell, state="dropped")

    def _engine(self, request: Request) -> LocalEngine | RayEngine:
        if request.engine == "ray":
            from neftcli.sweep.cluster import RayEngine

            return RayEngine(request.ray_address, self.base.sweep.retries, self.folder)
        return LocalEngine(devices(), self.base.sweep.retries, self.folder / "workers.log")

    def _set(self, cell: Cell, **changes: Any) -> None:
        self.states[cell.key] = replace(self.states[cell.key], **changes)
        self.observer.notify(self.states[cell.key])

    def _told(self, cell: Cell, event: Event) -> None:
        match event:
            case Progress():
                known = {"step": event.step, "total_steps": event.total_steps, "remaining": event.remaining}
                self._set(cell, state="training", **known)
            case Evaluated():
                self._set(cell, loss=event.held_out_loss)
            case Phase() if self.states[cell.key].state == "waiting":
                self._set(cell, state="starting")
            case Phase() if "answer" in event.name or "reading its" in event.name:
                self._set(cell, state="measuring", remaining=None)

    def _ended(self, cell: Cell, outcome: Outcome) -> None:
        if outcome.state == "done":
            self._set(cell, state="done", run=outcome.run, remaining=0.0)
        elif outcome.state == "failed":
            problem = "; ".join(f"{one.violated}: {one.received}" for one in outcome.problems)
            self._set(cell, state="failed", problem=problem)
        else:
            self._set(cell, state="waiting", step=0, remaining=None)

    def _measured(self) -> dict[str, dict[str, Any]]:
        """Key of a cell to what was measured of it, and of its answers by the judge."""
        found = {}
        for cell in self.cells:
            run = finished_run(self.folder / "cells", cell.key)
            content = measured(run, cell.recipe) if run else None
            if content is not None:
                found[cell.key] = content
        if "win_rate" in self.base.sweep.metrics:
            from neftcli.sweep.judged import add_win_rates

            add_win_rates(self.cells, found, self.base.evaluation.judge, self.folder, self.observer)
        return found

    def _numbers(self) -> tuple[Numbers, dict[str, dict[str, Any]]]:
        from neftcli.sweep.verdict import Numbers

        content = self._measured()
        prompts: list[str] = next((cell["prompts"] for cell in content.values()), [])
        return Numbers(self.cells, content, chooses(prompts)), content

    def _metrics(self, content: dict[str, dict[str, Any]]) -> list[str]:
        """The names of the metrics that decide."""
        from neftcli.evaluation.comparison import METRICS
        from neftcli.sweep.verdict import METRIC_NAMES

        measured = next((list(cell["metrics"]) for cell in content.values()), [])
        own = {metric.name for metric in METRICS} | set(METRIC_NAMES.values())
        tasks = [name for name in measured if name not in own]
        return [
            name
            for metric in self.base.sweep.metrics
            for name in (tasks if metric == "tasks" else [METRIC_NAMES[metric]])
        ]

    def _race(self, number: int, rounds: int) -> None:
        """Drops the arms that can't be the best any more, by the half of the rows that chooses."""
        from neftcli.sweep.racing import leaving

        numbers, content = self._numbers()
        for metric in self._metrics(content)[:1]:
            for left in leaving(numbers, metric, self.dropped, after=number, seeds=rounds):
                self.dropped.append(left.arm)
                why = f"worse than {left.worse_than.name()} by {left.by:.2g} at least in {metric}"
                self.observer.notify(Notice(f"{left.arm.name()} gets no further seeds: {why}, where rows choose"))

    def report(self, begun: float) -> SweepReport:
        """The verdict, written to the sweep's folder."""
        from neftcli.sweep.output import write
        from neftcli.sweep.verdict import judge_sweep

        numbers, content = self._numbers()
        if not content:
            self.end()
        metrics = self._metrics(content)
        verdict = judge_sweep(numbers, metrics, self.dropped)
        states = list(self.states.values())
        report = SweepReport(
            folder=str(self.folder),
            arms=verdict.arms,
            metrics=tuple(metrics),
            recommended=verdict.recommended.name() if verdict.recommended else "",
            conclusion=verdict.conclusion,
            scope=verdict.scope,
            failed=tuple(state for state in states if state.state == "failed"),
            unfinished=sum(state.state in ("waiting", "starting", "training", "measuring") for state in states),
            saved=sum(state.state == "dropped" for state in states),
            seconds=time.perf_counter() - begun,
        )
        write(report, states, numbers, metrics, verdict.recommended, self.cells)
        return report

    def end(self) -> None:
        """Says by an error what is not done.

        Raises:
            SweepError: A cell failed.
            Preempted: The sweep was stopped.
        """
        failed = [state for state in self.states.values() if state.state == "failed"]
        if failed:
            told = ((f"{one.arm}, seed {one.seed} failed", one.problem) for one in failed)
            raise SweepError(*(Problem(*each, self.again) for each in told))
        left = sum(state.state not in ("done", "dropped") for state in self.states.values())
        if left:
            raise Preempted(Problem(f"stopped; {left} of {len(self.cells)} cells are left", remedy=self.again))


def _again(folder: Path, request: Request) -> str:
    """The command that goes on; how cells are done is in no file."""
    words = ["neft", "sweep-alpha", str(folder), *(["--race"] if request.race else [])]
    words += ["--engine", request.engine] if request.engine != "local" else []
    words += ["--ray-address", request.ray_address] if request.ray_address is not None else []
    return f"{shlex.join(words)}    goes on: what is done is skipped"


class SweepError(NeftError):
    """Cells of a sweep failed; the others are done."""


@contextmanager
def _stopping(engine: LocalEngine | RayEngine) -> Iterator[None]:
    """The first signal stops cells behind their update, the second at once."""
    from neftcli.training.stopping import Stop

    try:
        with Stop().listening(first=engine.stop):
            yield
    except KeyboardInterrupt:
        raise Interrupted(Problem("stopped at once; what is done is kept", remedy="the same command goes on")) from None
    finally:
        engine.close()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes the sweep's folder and holds it.

    Raises:
        InputError: Another sweep is at work in it, or it can't be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            Problem(f"{folder}: another sweep is at work in this folder", "", "wait, or --name for another folder")
        ) from None
    except OSError as error:
        raise InputError(
            Problem(f"{folder} can't be written", error.strerror or str(error), "--output-dir FOLDER")
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _kept_if_begun(folder: Path) -> Iterator[None]:
    """Takes the folder away again where nothing was started in it."""
    try:
        yield
    except InputError:
        if not any((folder / "cells").glob("*")):
            rmtree(folder)
        raise


def _same_sweep(folder: Path, base: Recipe) -> None:
    """Writes the recipe of a new sweep; of an old one checks that it is of the same model and rows.

    Raises:
        InputError: The folder holds a sweep of something else, whose cells can't stand in one table with these.
    """
    from neftcli.recipe.loading import differences, load_recipe

    file = folder / RECIPE
    if file.is_file():
        found = differences(load_recipe(str(file)), base)
        other = [path for path in found if path.startswith(("model.", "data."))]
        if other:
            raise InputError(
                Problem(
                    f"{folder}: this folder holds a sweep of another model or other rows",
                    ", ".join(f"{path} {found[path][1]} (there {found[path][0]})" for path in other),
                    "--name NAME for a folder of its own",
                )
            )
    write_whole(file, to_yaml(base))


def layers_of(folder: Path, typed: Sequence[Layer]) -> list[Layer]:
    """The layers of a sweep that is gone on with: its recipe, and what was typed over it.

    Raises:
        InputError: The folder holds no sweep.
    """
    from neftcli.recipe.loading import file_layers

    if not (folder / RECIPE).is_file() or not (folder / "cells").is_dir():
        raise InputError(
            Problem(f"{folder}: there is no sweep in this folder", "", "neft sweep-alpha --recipe quickstart")
        )
    return [*file_layers(str(folder / RECIPE)), *typed]
