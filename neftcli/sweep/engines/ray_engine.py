"""The Ray engine: each cell is a task of a Ray cluster, which writes its run to the sweep's folder.

All nodes must see this folder under the same path (NFS, Lustre, ...), and so the model's folder, the data files and the
task files if they are no hub ids. neft must be installed on each node.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, chdir, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from neftcli.errors import InputError, Problem, first_line
from neftcli.events import CellStarted, CellStatus, Notice
from neftcli.runs.directory import CELLS
from neftcli.sweep.engines.engine import CellOutcome, OnEvent, OnOutcome
from neftcli.sweep.engines.ray_task import RAY_TIMEOUT, SHARE_HINT, CellTask, Mailbox, check_folder, run_task
from neftcli.sweep.folder import WORKERS_LOG
from neftcli.system.files import atomic_write, open_without_links, remove

if TYPE_CHECKING:
    from neftcli.sweep.plan import Cell

POLL_INTERVAL = 0.2
"""Seconds between two reads of the mailbox."""
NO_ROOM_AFTER = 30.0
"""Seconds without a running cell after which the sweep reports that the cluster has no room."""
NODE_TIMEOUT = 120.0
"""Seconds for the nodes to start a process and look for the sweep's folder."""
PROBE = ".ray-probe-"


class RayEngine:
    """Runs cells as tasks of a Ray cluster.

    Args:
        address: "auto", or HOST:PORT of a running cluster; None starts one on this machine.
        retries: Number of retries of a cell after a lost worker or node, or an unexpected error.
        folder: The sweep's folder.
        inputs: Files and folders that the cells read, such as data files and the model's folder.

    Raises:
        InputError: Ray is not installed, the cluster can't be reached, or a node can't use the sweep's folder or does
            not see an input.
    """

    def __init__(self, address: str | None, retries: int, folder: Path, inputs: Sequence[Path] = ()) -> None:
        with ExitStack() as temporary:
            # The folder stays as long as the workers, so nobody can create one of its name for them to import from.
            empty = temporary.enter_context(TemporaryDirectory(prefix="neft-ray-"))
            ray = _connect(address, Path(empty))
            self._temporary = temporary.pop_all()
        self._ray, self._retries, self._folder, self._stopping = ray, retries, folder, False
        self._inputs = tuple(path.absolute() for path in inputs)
        self._restore_output = _redirect_worker_logs(folder / WORKERS_LOG)
        self._probe: Path | None = None
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        """Start the mailbox, and check the nodes."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = self._ray
        self._pending_take: Any = None  # the last call of Mailbox.take, until it returns
        self._tasks: dict[Any, Cell] = {}  # submitted tasks that have not ended, by reference
        self._started: set[str] = set()  # keys of the cells that have reported that they started
        self._idle_since: float | None = None
        own_node = ray.get_runtime_context().get_node_id()
        # With soft=True Ray may choose another node even if this one is free.
        here = NodeAffinitySchedulingStrategy(own_node, soft=False)
        self._mailbox = ray.remote(num_cpus=0, max_restarts=-1)(Mailbox).options(scheduling_strategy=here).remote()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        gpus = [node["Resources"].get("GPU", 0) for node in nodes]
        self._needs = {"CPU": 1, "GPU": 1 if any(gpus) else 0}
        self._slots = max(1, int(sum(gpus) or sum(node["Resources"].get("CPU", 0) for node in nodes)))
        self._task = ray.remote(
            num_cpus=self._needs["CPU"],
            num_gpus=self._needs["GPU"],
            max_retries=0,  # `run` counts the tries, after any failure
            retry_exceptions=False,
            # A process that has used one GPU can't change to another one.
            max_calls=1 if max(gpus, default=0) > 1 else 0,
        )(run_task)
        self._probe = _write_probe(self._folder).absolute()
        others = [node for node in nodes if node["NodeID"] != own_node and self._has_room(node)]
        self._check_nodes(others, self._probe)

    @property
    def workers(self) -> int:
        """Number of cells that fit the cluster at the same time, when the sweep started."""
        return self._slots

    def stop(self) -> None:
        """Stop the cells after their current step; cells that wait are not started."""
        self._stopping = True  # `run` tells Ray: a signal may call this in the middle of a call to Ray

    def close(self) -> None:
        """End the tasks at once and leave the cluster; a cluster that was started here ends."""
        self._ray.shutdown()
        self._restore_output()
        self._temporary.close()
        if self._probe is not None:
            remove(self._probe)

    def run(self, cells: Sequence[Cell], on_event: OnEvent, on_outcome: OnOutcome) -> None:
        """Run cells in their order as the cluster has room, and return when all have ended."""
        queue, tries, halted = deque(cells), Counter[str](), False
        self._idle_since = time.monotonic()
        while queue or self._tasks:
            if self._stopping:
                for cell in queue:
                    on_outcome(cell, CellOutcome(CellStatus.PREEMPTED))
                queue.clear()
            while queue:
                self._submit(queue.popleft())
            ready, _ = self._ray.wait(list(self._tasks), timeout=POLL_INTERVAL) if self._tasks else ([], [])
            if self._stopping:
                self._mailbox.request_stop.remote()
                for task, cell in self._tasks.items():
                    if not halted and cell.key not in self._started:
                        self._ray.cancel(task, force=False)
                halted = True
            for _ in range(1 + len(ready)):  # a call in flight may lack the last events of a cell that has ended
                self._take_events(on_event, RAY_TIMEOUT if ready else 0)
            for task in ready:
                self._end(task, queue, tries, on_outcome)
            self._report_no_room(on_event)

    def _has_room(self, node: Mapping[str, Any]) -> bool:
        """Return whether a node is large enough for a cell."""
        return all(node["Resources"].get(name, 0) >= need for name, need in self._needs.items())

    def _check_nodes(self, nodes: Sequence[Mapping[str, Any]], probe: Path) -> None:
        """Check that the nodes which may run cells see the sweep's folder and the cells' inputs.

        Raises:
            InputError: A node does not, or can't run neft.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        check = self._ray.remote(num_cpus=0, max_retries=1)(check_folder)
        checks = {
            node["NodeManagerAddress"]: check.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(probe, self._inputs)
            for node in nodes
        }
        problems = []
        for address, reference in checks.items():
            try:
                reason = self._ray.get(reference, timeout=NODE_TIMEOUT)
            except self._ray.exceptions.RayError as error:
                hint = "install neft on each node    pip install 'neftcli[ray]'"
                problems.append(Problem(f"--engine ray: node {address} can't run neft", _last_line(error), hint))
                continue
            if reason:
                message = f"--engine ray: node {address} can't use the sweep's folder or its inputs"
                problems.append(Problem(message, reason, SHARE_HINT))
        if problems:
            raise InputError(*problems)

    def _submit(self, cell: Cell) -> None:
        cells = (self._folder / CELLS).absolute()
        recipe = replace(cell.recipe, output_dir=str(cells))
        assert self._probe is not None  # noqa: S101 - written by the constructor
        task = CellTask(recipe, cell.key, self._probe, Path.cwd())
        self._tasks[self._task.remote(task, self._mailbox)] = cell

    def _take_events(self, on_event: OnEvent, timeout: float) -> None:
        """Pass on the events of cells; if the mailbox is lost, only the display suffers."""
        cells = {cell.key: cell for cell in self._tasks.values()}
        self._pending_take = self._pending_take or self._mailbox.take.remote()
        if not self._ray.wait([self._pending_take], timeout=timeout)[0]:
            return
        taken, self._pending_take = self._pending_take, None
        try:
            events = self._ray.get(taken)
        except self._ray.exceptions.RayError:
            return
        for key, event in events:
            if key not in cells:
                continue
            if isinstance(event, CellStarted):
                self._started.add(key)
            on_event(cells[key], event)

    def _end(self, task: Any, queue: deque[Cell], tries: Counter[str], on_outcome: OnOutcome) -> None:
        """Report the outcome of a task; after a lost worker or an unexpected error retry its cell first."""
        cell = self._tasks[task]
        try:
            outcome = self._outcome(task, tries[cell.key] + 1)
        except self._ray.exceptions.GetTimeoutError:  # the network is slow: ask again
            return
        del self._tasks[task]
        self._started.discard(cell.key)
        tries[cell.key] += 1
        if outcome.may_retry and self._stopping:
            on_outcome(cell, CellOutcome(CellStatus.PREEMPTED))
        elif outcome.may_retry and tries[cell.key] <= self._retries:
            on_outcome(cell, CellOutcome(CellStatus.WAITING, problems=outcome.problems))
            queue.appendleft(cell)
        else:
            on_outcome(cell, outcome)

    def _outcome(self, task: Any, tries: int) -> CellOutcome:
        """Return the outcome of a task.

        Args:
            task: Reference of the task.
            tries: Number of tries of its cell, this one included.

        Raises:
            GetTimeoutError: Its result has not arrived yet.
        """
        try:
            outcome: CellOutcome = self._ray.get(task, timeout=RAY_TIMEOUT)
        except self._ray.exceptions.GetTimeoutError:
            raise
        except self._ray.exceptions.RayError as error:
            if self._stopping:
                return CellOutcome(CellStatus.PREEMPTED)
            if isinstance(error, self._ray.exceptions.RayTaskError):  # begins with the frames of another machine
                problem = Problem("the task of this cell failed with an unexpected error", _last_line(error))
                return CellOutcome(CellStatus.FAILED, problems=(problem,))
            times = f" {tries} times" if tries > 1 else ""
            problem = Problem(f"its worker or node was lost{times}", first_line(error), "--set sweep.retries=5")
            return CellOutcome(CellStatus.FAILED, problems=(problem,), may_retry=True)
        run = str(self._folder / CELLS / Path(outcome.run).name) if outcome.run else ""
        return replace(outcome, run=run)

    def _report_no_room(self, on_event: OnEvent) -> None:
        """Report once that no cell runs because the cluster lacks what a cell needs."""
        waiting = list(self._tasks.values())
        if not waiting or any(cell.key in self._started for cell in waiting):
            self._idle_since = time.monotonic()
        elif self._idle_since is not None and time.monotonic() - self._idle_since > NO_ROOM_AFTER:
            free = self._ray.available_resources()
            lacking = [f"{need} {name}" for name, need in self._needs.items() if free.get(name, 0) < need]
            if lacking:
                self._idle_since = None
                needed = " and ".join(lacking)
                text = f"the Ray cluster has no room for a cell: {needed} must be free; the cells wait"
                on_event(waiting[0], Notice(text))


def _last_line(error: BaseException) -> str:
    """Return the last line of an error of Ray; its type if it has no message."""
    return str(error).strip().rpartition("\n")[2] or type(error).__name__


def _write_probe(folder: Path) -> Path:
    """Write the file by which nodes recognise the sweep's folder, and remove those of killed sweeps."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{PROBE}*"):
        remove(stale)
    probe = folder / f"{PROBE}{secrets.token_hex(8)}"
    atomic_write(probe, "")
    return probe


def _connect(address: str | None, empty: Path) -> Any:
    """Connect to a cluster and return the module `ray`.

    Args:
        address: As `RayEngine` takes it.
        empty: Current folder while Ray starts: Ray adds it to the path from which its workers import.

    Raises:
        InputError: Ray is not installed, or the cluster can't be reached.
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
        resolved = _find_local_cluster() if address == "auto" else address
        _require_reachable(resolved)
        with chdir(empty):
            ray.init(resolved, **quiet)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError, SystemExit) as error:
        raise InputError(
            Problem(
                f"--ray-address {address}: there is no Ray cluster that can be joined",
                first_line(error),
                "ray start --head    starts one; --engine ray without an address uses this machine",
            )
        ) from None
    return ray


def _redirect_worker_logs(log: Path) -> Callable[[], None]:
    """Write Ray's messages about lost nodes to `log`, and return a function that undoes this.

    Ray prints them to stdout, even with log_to_driver=False. The function is private to Ray; if it is gone, Ray prints.
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


def _find_local_cluster() -> str:
    """Return HOST:PORT of the cluster that "auto" means: RAY_ADDRESS, or one that runs on this machine.

    Ray finds it by its processes, and one of them may outlive its cluster.

    Raises:
        ConnectionError: There is none.
    """
    from ray._private.services import canonicalize_bootstrap_address

    return str(canonicalize_bootstrap_address("auto"))


def _require_reachable(address: str) -> None:
    """Connect to a host and port; Ray itself would wait for minutes and then end the process.

    Raises:
        OSError: No answer.
        ValueError: The address is not HOST:PORT.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("an address is auto or HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=RAY_TIMEOUT).close()
