"""The Ray engine: each cell a task of a Ray cluster, whose run comes back to the sweep's folder without shared disks.

A node needs this package and, where they are no hub ids, the model's folder and folders of rows under the same path.
Single files (rows, a chat template) travel with the tasks. A run comes back whole, in memory, as a tar: fit for
adapters and for models of a few gigabytes.

A task trains in a temporary folder of its node, by a recipe whose paths lead there. Before the run is sent, what
names the recipe (recipe.yaml, its hash, the model card) is written as `neft train` would have written it here.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import InputError, NeftError, Preempted, Problem
from neftcli.events import Event
from neftcli.recipe.loading import fingerprint, to_yaml
from neftcli.runs.directory import RECORD, RunDirectory
from neftcli.sweep.cell import MEASURED, do_cell, runs_of, settings_key
from neftcli.sweep.local import Outcome
from neftcli.sweep.worker import TOLD

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.sweep.plan import Cell

POLL = 0.2  # seconds between two looks at what cells say
PATIENCE = 5.0  # seconds for an answer over the network
ARRIVING = ".arriving-"

_shelf: Any = None  # a worker process of Ray does many tasks, and loads once


class RayEngine:
    """Tasks of a Ray cluster.

    Args:
        address: "auto", or HOST:PORT of a running cluster; None starts one on this machine.
        retries: Times that Ray tries a cell again after its worker or node was lost.
        folder: The sweep's folder; runs arrive in `folder/cells`.

    Raises:
        InputError: Ray is not installed, or the cluster can't be reached.
    """

    def __init__(self, address: str | None, retries: int, folder: Path) -> None:
        ray = _connected(address)
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._retries, self._folder, self._stopping = ray, retries, folder, False
        self._loud = _quietened(folder / "workers.log")
        self._sent: dict[str, Any] = {}
        self._taking: Any = None  # what cells said, on its way
        # A soft wish would be given another node even while this one is free.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox = ray.remote(num_cpus=0, max_restarts=-1)(Mailbox).options(scheduling_strategy=here).remote()
        gpus = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
        self._task = ray.remote(
            num_cpus=1,
            num_gpus=1 if any(gpus) else 0,
            max_retries=retries,
            retry_exceptions=False,
            # A process that has used one GPU can't change to another one.
            max_calls=1 if max(gpus, default=0) > 1 else 0,
        )(work)
        for rest in folder.glob(f"{ARRIVING}*"):
            shutil.rmtree(rest)

    def stop(self) -> None:
        """Cells stop behind the update that they are in; waiting cells are not begun."""
        self._stopping = True  # Ray is told in `run`: this may be called by a signal, in the middle of a call to Ray

    def close(self) -> None:
        """Ends the tasks at once and leaves the cluster; one that was started here ends."""
        self._ray.shutdown()
        self._loud()

    def run(
        self,
        cells: Sequence[Cell],
        told: Callable[[Cell, Event], None],
        ended: Callable[[Cell, Outcome], None],
    ) -> None:
        """Does the cells, in their order as the cluster has room; the arguments are those of `LocalEngine.run`."""
        if self._stopping:
            for cell in cells:
                ended(cell, Outcome("stopped"))
            return
        waiting = {self._submitted(cell): cell for cell in cells}
        begun: set[str] = set()
        halted = False
        while waiting:
            ready, _ = self._ray.wait(list(waiting), timeout=POLL)
            if self._stopping:
                self._mailbox.halt.remote()
                for ref in [] if halted else [ref for ref, cell in waiting.items() if cell.key not in begun]:
                    self._ray.cancel(ref, force=False)
                halted = True
            for _ in range(1 + len(ready)):  # what was on its way may lack the last events of a cell that has ended
                self._tell({cell.key: cell for cell in waiting.values()}, begun, told, PATIENCE if ready else 0)
            for ref in ready:
                cell = waiting.pop(ref)
                ended(cell, self._outcome(ref, cell))

    def _submitted(self, cell: Cell) -> Any:
        there, files = _for_a_node(cell.recipe)
        for place, file in files.items():
            if place not in self._sent:
                self._sent[place] = self._ray.put(file.read_bytes())
        return self._task.remote(
            cell.recipe, there, list(files), cell.key, self._mailbox, *(self._sent[place] for place in files)
        )

    def _tell(
        self, cells: Mapping[str, Cell], begun: set[str], told: Callable[[Cell, Event], None], patience: float
    ) -> None:
        """Passes on what cells said; a mailbox that is lost costs the showing only."""
        self._taking = self._taking or self._mailbox.take.remote()
        if not self._ray.wait([self._taking], timeout=patience)[0]:
            return
        taken, self._taking = self._taking, None
        try:
            said = self._ray.get(taken)
        except self._ray.exceptions.RayError:
            return
        for key, event in said:
            if key in cells:
                begun.add(key)
                told(cells[key], event)

    def _outcome(self, ref: Any, cell: Cell) -> Outcome:
        try:
            said = self._ray.get(ref)
            if said[0] == "done":
                return Outcome("done", str(_arrived(said[2], said[1], self._folder, cell.key)))
            return Outcome("failed", problems=said[1]) if said[0] == "failed" else Outcome("stopped")
        except self._ray.exceptions.RayError as error:
            if self._stopping:
                return Outcome("stopped")
            lines = str(error).strip().splitlines() or [type(error).__name__]
            if isinstance(error, self._ray.exceptions.RayTaskError):  # begins with the frames of another machine
                return Outcome("failed", problems=(Problem("the task of this cell failed by a fault", lines[-1]),))
            lost = f"its worker or node was lost, and {self._retries} more tries did not help"
            return Outcome("failed", problems=(Problem(lost, lines[0], "--set sweep.retries=5"),))
        except (OSError, tarfile.TarError) as error:
            told = f"{type(error).__name__}: {error}"
            return Outcome("failed", problems=(Problem(f"{self._folder}: the run can't be written here", told),))


class Mailbox:
    """An actor: holds what cells say until the sweep takes it, and whether cells are to stop."""

    def __init__(self) -> None:
        self._said: list[tuple[str, Event]] = []
        self._halted = False

    def tell(self, key: str, event: Event) -> None:
        """Takes an event of a cell."""
        self._said.append((key, event))

    def take(self) -> list[tuple[str, Event]]:
        """Gives what was said since the last call."""
        said, self._said = self._said, []
        return said

    def halt(self) -> None:
        """Cells are to stop."""
        self._halted = True

    def halted(self) -> bool:
        """Whether cells are to stop; an answer also means that all that this caller said has come."""
        return self._halted


class _Line:
    """A cell's line to the mailbox: a notifier of events, and the question whether to stop.

    It waits by futures: a task that waits by `ray.get` gives its CPU to another task meanwhile.
    """

    def __init__(self, key: str, mailbox: Any) -> None:
        self._key, self._mailbox = key, mailbox
        self._asked, self._question, self._answer = time.monotonic(), mailbox.halted.remote().future(), False

    def notify(self, event: Event) -> None:
        """Sends what the sweep shows."""
        if isinstance(event, TOLD):
            self._mailbox.tell.remote(self._key, event)

    def halted(self) -> bool:
        """Whether to stop, as far as is known; asked once a second at most."""
        if self._question.done():
            self._hear(0)
        if time.monotonic() - self._asked >= 1:
            self._asked, self._question = time.monotonic(), self._mailbox.halted.remote().future()
        return self._answer

    def ask(self) -> bool:
        """Whether to stop; the mailbox then has all that was sent."""
        self._question = self._mailbox.halted.remote().future()
        self._hear(PATIENCE)
        return self._answer

    def _hear(self, patience: float) -> None:
        import ray

        # A lost mailbox knows of no wish to stop; close() ends the task all the same.
        with suppress(ray.exceptions.RayError, TimeoutError):
            self._answer = self._question.result(timeout=patience)


def work(
    recipe: Recipe, there: Recipe, places: Sequence[str], key: str, mailbox: Any, *contents: bytes
) -> tuple[Any, ...]:
    """Does a cell on a node: ("done", name of the run, tar), ("failed", problems) or ("stopped",).

    Args:
        recipe: The cell's, which its run will name.
        there: The same with paths on the node, relative to the folder in which it is done.
        places: Where to write the files that came along.
        key: The cell's.
        mailbox: Is told what happens.
        contents: What these files hold.
    """
    global _shelf
    from neftcli.machine.process import prepare_process

    prepare_process()
    from neftcli.training.materials import Shelf
    from neftcli.training.stopping import Stop

    _shelf = _shelf or Shelf()
    line = _Line(key, mailbox)
    try:
        with tempfile.TemporaryDirectory(prefix="neft-cell-") as folder, chdir(folder):
            for place, content in zip(places, contents, strict=True):
                Path(place).parent.mkdir(parents=True, exist_ok=True)
                Path(place).write_bytes(content)
            if line.ask():
                return ("stopped",)
            run = RunDirectory(Path(do_cell(there, _shelf, line, Stop(line.halted))))
            _name_the_recipe(run, recipe, there)
            return "done", run.path.name, _packed(run.path)
    except Preempted:
        return ("stopped",)
    except NeftError as error:
        return "failed", error.problems
    except Exception as error:
        return "failed", (Problem("the cell failed by a fault", f"{type(error).__name__}: {error}"),)
    finally:
        line.ask()


def _for_a_node(recipe: Recipe) -> tuple[Recipe, dict[str, Path]]:
    """The recipe with a node's paths, and the files that it needs there by their places.

    A place has the hash of what the file holds, so that a worker knows that rows are those that it has read already.
    """
    files: dict[str, Path] = {}

    def path(name: str | None, *, folder_only: bool = False) -> Any:
        file = Path(name).expanduser() if name else None
        if name is None or file is None or not file.exists():
            return name
        if file.is_dir() or folder_only:
            return str(file.absolute())
        place = f"files/{sha256(file.read_bytes()).hexdigest()[:16]}/{file.name}"
        files[place] = file
        return place

    model, data = recipe.model, recipe.data
    there = replace(
        recipe,
        output_dir="cells",
        model=replace(model, name=path(model.name, folder_only=True), chat_template=path(model.chat_template)),
        data=replace(data, source=path(data.source), held_out_source=path(data.held_out_source)),
    )
    return there, files


def _name_the_recipe(run: RunDirectory, recipe: Recipe, there: Recipe) -> None:
    """Writes `recipe` in the place of `there` wherever a run names its recipe."""
    run.write_text("recipe.yaml", to_yaml(recipe))
    run.write_json(RECORD, {**run.read_json(RECORD), "recipe_sha256": fingerprint(recipe)})
    run.write_json(MEASURED, {**run.read_json(MEASURED), "settings": settings_key(recipe)})
    card = run.model / "README.md"
    text = card.read_text(encoding="utf-8").replace(fingerprint(there), fingerprint(recipe))
    card.write_text(text.replace(there.data.source, recipe.data.source), encoding="utf-8")


def _packed(folder: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(folder, arcname=".")
    return stream.getvalue()


def _arrived(content: bytes, name: str, folder: Path, key: str) -> Path:
    """Unpacks a run beside the cells, then renames it into its place among them."""
    cells = folder / "cells"
    with _arriving(folder) as place:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            tar.extractall(place, filter="data")
        before = [run for run, _ in runs_of(cells, key)]  # not finished, not measured, or not by these settings
        run = RunDirectory.create(cells, name)
        place.replace(run.path)
        for old in before:
            shutil.rmtree(old.path)
    return run.path


@contextmanager
def _arriving(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=ARRIVING, dir=folder) as outer:
        place = Path(outer) / "run"
        place.mkdir()
        yield place


def _connected(address: str | None) -> Any:
    """Ray, connected to a cluster.

    Raises:
        InputError: It is not installed, or the cluster can't be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None and "ray" not in sys.modules:  # Ray reads it when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # its default for a cluster of one's own, without the notice
    try:
        import ray
    except ImportError:
        raise InputError(
            Problem("--engine ray needs the package ray", "not installed", "pip install 'neftcli[ray]'")
        ) from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if address is None:
        ray.init("local", include_dashboard=False, **quiet)
        return ray
    try:
        _require_reachable(address)
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError, SystemExit) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            Problem(
                f"--ray-address {address}: there is no Ray cluster that can be joined",
                told,
                "ray start --head    begins one; --engine ray without an address uses this machine",
            )
        ) from None
    return ray


def _quietened(log: Path) -> Callable[[], None]:
    """Has Ray write to `log` what it prints on stdout of lost nodes, even by log_to_driver=False; returns the undoing.

    The function is Ray's own affair; where it is gone, Ray prints.
    """
    from ray._private import worker

    before = getattr(worker, "print_worker_logs", None)

    def write(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
        with suppress(OSError), log.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in data["lines"])

    def undo() -> None:
        if before is not None:
            worker.print_worker_logs = before

    worker.print_worker_logs = write
    return undo


def _require_reachable(address: str) -> None:
    """Knocks at a host and port; Ray itself would wait for minutes, and then end the process.

    Raises:
        OSError: Nobody answers.
        ValueError: The address is neither "auto" nor HOST:PORT.
    """
    if address == "auto":
        return
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("an address is auto or HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
