"""The Ray engine: each cell a task of a Ray cluster, whose run comes back to the sweep's folder without shared disks.

A node needs this package and, where they are no hub ids, the model's folder, folders of rows and task files under the
same path. Single files (rows, a chat template) travel with the tasks, and so does the run of a cell that was begun. A
run comes back whole, in memory, as a tar: fit for adapters and for models of a few gigabytes.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import tarfile
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, chdir, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from neftcli.errors import InputError, NeftError, Problem
from neftcli.events import CellStarted, CellStatus, Event, Notice
from neftcli.runs.directory import CELLS
from neftcli.sweep.cell import finished_run, runs_of, stopped_run
from neftcli.sweep.engines.local_engine import Outcome
from neftcli.sweep.engines.ray_task import PATIENCE, Errand, Mailbox, Returned, work
from neftcli.sweep.engines.transfer import arrived, clear_arriving, for_a_node, packed
from neftcli.system.files import open_without_links
from neftcli.training.failures import is_disk_full

if TYPE_CHECKING:
    from neftcli.runs.directory import RunDirectory
    from neftcli.sweep.plan import Cell

POLL = 0.2  # seconds between two looks at what cells say
NO_ROOM = 30.0  # seconds without a cell at work, after which a person is told why


class RayEngine:
    """Tasks of a Ray cluster.

    Args:
        address: "auto", or HOST:PORT of a running cluster; None starts one on this machine.
        retries: Times that a cell is tried again after its worker or node was lost, and after a fault.
        folder: The sweep's folder; runs arrive in `folder/cells`.

    Raises:
        InputError: Ray is not installed, or the cluster can't be reached.
    """

    def __init__(self, address: str | None, retries: int, folder: Path) -> None:
        with ExitStack() as temporary:
            # It stays as long as the workers: nobody else can create a folder of its name and have them import from it.
            empty = temporary.enter_context(TemporaryDirectory(prefix="neft-ray-"))
            ray = _connected(address, Path(empty))
            self._temporary = temporary.pop_all()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._retries, self._folder, self._stopping = ray, retries, folder, False
        self._loud = _quietened(folder / "workers.log")
        self._sent: dict[str, Any] = {}
        self._taking: Any = None  # what cells said, on its way
        # A soft wish would be given another node even while this one is free.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox = ray.remote(num_cpus=0, max_restarts=-1)(Mailbox).options(scheduling_strategy=here).remote()
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = [one.get("GPU", 0) for one in resources]
        self._needs = {"CPU": 1, "GPU": 1 if any(gpus) else 0}
        self._slots = max(1, int(sum(gpus) or sum(one.get("CPU", 0) for one in resources)))
        self._task = ray.remote(
            num_cpus=self._needs["CPU"],
            num_gpus=self._needs["GPU"],
            max_retries=retries,
            retry_exceptions=False,
            # A process that has used one GPU can't change to another one.
            max_calls=1 if max(gpus, default=0) > 1 else 0,
        )(work)
        self._waiting: dict[Any, Cell] = {}
        self._begun: set[str] = set()
        self._idle_since: float | None = None
        clear_arriving(folder)

    @property
    def workers(self) -> int:
        """Number of cells for which the cluster has room, as it was when the sweep began."""
        return self._slots

    def stop(self) -> None:
        """Cells stop behind the update that they are in; waiting cells are not begun."""
        self._stopping = True  # Ray is told in `run`: this may be called by a signal, in the middle of a call to Ray

    def close(self) -> None:
        """End the tasks at once and leave the cluster; one that was started here ends."""
        self._ray.shutdown()
        self._loud()
        self._temporary.close()

    def run(
        self,
        cells: Sequence[Cell],
        told: Callable[[Cell, Event], None],
        ended: Callable[[Cell, Outcome], None],
    ) -> None:
        """Does the cells, in their order as the cluster has room; the arguments are those of `LocalEngine.run`.

        Raises:
            OSError: The disk of the sweep's folder is full, so that no run can arrive any more.
        """
        queue, tries, halted = deque(cells), Counter[str](), False
        # Runs that go along are large, so then only as many cells are given as soon have room.
        any_run = any(any(runs_of(self._folder / CELLS, cell.key)) for cell in cells)
        most = 2 * self._slots if any_run else len(cells)
        self._idle_since = time.monotonic()
        while queue or self._waiting:
            if self._stopping:
                for cell in queue:
                    ended(cell, Outcome(CellStatus.PREEMPTED))
                queue.clear()
            while queue and len(self._waiting) < most:
                self._submit(queue.popleft(), told, ended)
            ready, _ = self._ray.wait(list(self._waiting), timeout=POLL) if self._waiting else ([], [])
            if self._stopping:
                self._mailbox.halt.remote()
                for ref, cell in self._waiting.items():
                    if not halted and cell.key not in self._begun:
                        self._ray.cancel(ref, force=False)
                halted = True
            for _ in range(1 + len(ready)):  # what was on its way may lack the last events of a cell that has ended
                self._tell(told, ended, PATIENCE if ready else 0)
            for ref in ready:
                self._end(ref, queue, tries, ended)
            self._say_where_there_is_no_room(told)

    def _submit(self, cell: Cell, told: Callable[[Cell, Event], None], ended: Callable[[Cell, Outcome], None]) -> None:
        """Submit a cell to the cluster, with its run if there is one; a cell that another process trains has failed."""
        try:
            run = self._begun_run(cell, told)
        except InputError as error:
            ended(cell, Outcome(CellStatus.FAILED, problems=error.problems))
            return
        there, files = for_a_node(cell.recipe)
        for place, file in files.items():
            if place not in self._sent:
                self._sent[place] = self._ray.put(file.read_bytes())
        errand = Errand(cell.recipe, there, cell.key, tuple(files), run.path.name if run else "")
        luggage = self._ray.put(packed(run.path)) if run else b""
        ref = self._task.remote(errand, self._mailbox, luggage, *(self._sent[place] for place in files))
        self._waiting[ref] = cell

    def _begun_run(self, cell: Cell, told: Callable[[Cell, Event], None]) -> RunDirectory | None:
        """The run that goes along with a cell; what is not gone on with is told here, since a node never sees it.

        Raises:
            InputError: Another process is training it.
        """
        cells = self._folder / CELLS
        run = finished_run(cells, cell.key)
        if run is not None:
            return run
        resume_state = stopped_run(cells, cell.key, cell.recipe, _Voice(cell, told))
        if resume_state is None:
            return None
        for reason in resume_state.skipped:
            told(cell, Notice(f"passed over {reason}"))
        return resume_state.directory

    def _tell(
        self, told: Callable[[Cell, Event], None], ended: Callable[[Cell, Outcome], None], patience: float
    ) -> None:
        """Passes on what cells said; a mailbox that is lost costs the showing only."""
        cells = {cell.key: cell for cell in self._waiting.values()}
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
                if isinstance(event, CellStarted) and key in self._begun:
                    ended(cells[key], Outcome(CellStatus.WAITING, problems=(Problem("lost", "its worker or node"),)))
                self._begun.add(key)
                told(cells[key], event)

    def _end(self, ref: Any, queue: deque[Cell], tries: Counter[str], ended: Callable[[Cell, Outcome], None]) -> None:
        """Takes how a task ended; after a fault it is put back, first in line, until its tries are used up."""
        cell = self._waiting[ref]
        try:
            outcome, again = self._outcome(ref, cell)
        except self._ray.exceptions.GetTimeoutError:  # its node was lost with what it returned: it is done again
            return
        del self._waiting[ref]
        self._begun.discard(cell.key)
        tries[cell.key] += 1
        if again and self._stopping:
            ended(cell, Outcome(CellStatus.PREEMPTED))
        elif again and tries[cell.key] <= self._retries:
            ended(cell, Outcome(CellStatus.WAITING, problems=outcome.problems))
            queue.appendleft(cell)
        else:
            ended(cell, outcome)

    def _outcome(self, ref: Any, cell: Cell) -> tuple[Outcome, bool]:
        """How a task ended, and whether another try may help; the run that it returned arrives.

        Raises:
            OSError: The disk is full here: what further tasks do would be lost in the same way.
        """
        try:
            found: Returned = self._ray.get(ref, timeout=PATIENCE)
            run = str(arrived(found.content, found.name, self._folder, cell.recipe)) if found.content else ""
            done = found.status == CellStatus.FINISHED
            return Outcome(found.status, run if done else "", found.problems), found.again
        except self._ray.exceptions.GetTimeoutError:
            raise
        except self._ray.exceptions.RayError as error:
            if self._stopping:
                return Outcome(CellStatus.PREEMPTED), False
            lines = str(error).strip().splitlines() or [type(error).__name__]
            if isinstance(error, self._ray.exceptions.RayTaskError):  # begins with the frames of another machine
                return Outcome(
                    CellStatus.FAILED, "", (Problem("the task of this cell failed by a fault", lines[-1]),)
                ), False
            lost = f"its worker or node was lost, and {self._retries} more tries did not help"
            return Outcome(CellStatus.FAILED, "", (Problem(lost, lines[0], "--set sweep.retries=5"),)), False
        except (NeftError, OSError, tarfile.TarError) as error:
            if is_disk_full(error):
                where = str(self._folder / CELLS)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where) from error
            told = f"{type(error).__name__}: {error}"
            return Outcome(
                CellStatus.FAILED, "", (Problem(f"{self._folder}: the run can't be written here", told),)
            ), False

    def _say_where_there_is_no_room(self, told: Callable[[Cell, Event], None]) -> None:
        """Says once that no cell is at work since the cluster lacks what a cell needs."""
        waiting = list(self._waiting.values())
        if not waiting or any(cell.key in self._begun for cell in waiting):
            self._idle_since = time.monotonic()
        elif self._idle_since is not None and time.monotonic() - self._idle_since > NO_ROOM:
            free = self._ray.available_resources()
            lacking = [f"{need} {name}" for name, need in self._needs.items() if free.get(name, 0) < need]
            if lacking:
                self._idle_since = None
                needed = " and ".join(lacking)
                told(
                    waiting[0],
                    Notice(f"the Ray cluster has no room for a cell: {needed} must be free; cells wait for it"),
                )


class _Voice:
    """Pass on the events of one cell."""

    def __init__(self, cell: Cell, told: Callable[[Cell, Event], None]) -> None:
        self._cell, self._told = cell, told

    def notify(self, event: Event) -> None:
        """Passes it on."""
        self._told(self._cell, event)


def _connected(address: str | None, empty: Path) -> Any:
    """Ray, connected to a cluster.

    Args:
        address: As `RayEngine` takes it.
        empty: The current folder while Ray starts: Ray adds it to the path from which its workers import.

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
        with chdir(empty):
            ray.init("local", include_dashboard=False, **quiet)
        return ray
    try:
        found = _found_locally() if address == "auto" else address
        _require_reachable(found)
        with chdir(empty):
            ray.init(found, **quiet)
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
        with suppress(OSError), open_without_links(log, "a") as file:
            file.writelines(f"{line}\n" for line in data["lines"])

    def undo() -> None:
        if before is not None:
            worker.print_worker_logs = before

    worker.print_worker_logs = write
    return undo


def _found_locally() -> str:
    """HOST:PORT of the cluster that "auto" means: RAY_ADDRESS, or one that runs on this machine.

    Ray finds it by its processes, and one of them may outlive its cluster.

    Raises:
        ConnectionError: There is none.
    """
    from ray._private.services import canonicalize_bootstrap_address

    return str(canonicalize_bootstrap_address("auto"))


def _require_reachable(address: str) -> None:
    """Connect to a host and port; Ray itself would wait for minutes, and then end the process.

    Raises:
        OSError: Nobody answers.
        ValueError: The address is not HOST:PORT.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("an address is auto or HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
