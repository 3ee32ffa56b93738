"""The local engine: one warm worker process for each device. A dead worker is replaced and its cell retried."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import Problem
from neftcli.events import CellStatus
from neftcli.sweep.engines.engine import CellOutcome, OnEvent, OnOutcome
from neftcli.sweep.engines.worker import block_signals, run_worker

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from neftcli.sweep.plan import Cell


EXIT_TIMEOUT = 10.0
"""Seconds for a worker to end by itself after it has closed its connection."""


@dataclass
class Worker:
    """A worker process, the connection to it, and its current cell."""

    process: BaseProcess
    connection: Connection
    device: str | None
    cell: Cell | None = None


class LocalEngine:
    """Runs cells in worker processes on this machine.

    Args:
        devices: One worker for each; None leaves the choice of the device to torch.
        retries: Number of retries of a cell after its worker died or an unexpected error.
        log: File for output of the workers that no run's log takes.
    """

    def __init__(self, devices: Sequence[str | None], retries: int, log: Path) -> None:
        self._devices = devices
        self._retries = retries
        self._log = log
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.RawValue("b", 0)  # no lock, which a killed worker could keep
        self._workers: list[Worker] = []
        self._waiting: deque[Cell] = deque()
        self._tries: dict[str, int] = {}

    @property
    def workers(self) -> int:
        """Number of cells that run at the same time."""
        return len(self._devices)

    def stop(self) -> None:
        """Stop the cells after their current step; cells that wait are not started."""
        self._stop.value = 1

    def close(self) -> None:
        """End the workers at once."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def run(self, cells: Sequence[Cell], on_event: OnEvent, on_outcome: OnOutcome) -> None:
        """Run cells in their order as workers become free, and return when all have ended."""
        self._waiting = deque(cells)
        self._tries = dict.fromkeys((cell.key for cell in cells), 0)
        while len(self._workers) < min(len(self._devices), len(cells)):
            self._workers.append(self.start_worker(self._devices[len(self._workers)]))
        while True:
            for worker in self._workers:
                if worker.cell is None and self._waiting and not self._stop.value:
                    self._assign(worker, self._waiting.popleft())
            busy = [worker for worker in self._workers if worker.cell is not None]
            if not busy:
                break
            connections = [worker.connection for worker in busy]
            sentinels = [worker.process.sentinel for worker in busy]
            ready = wait([*connections, *sentinels])
            for worker in busy:
                if worker.connection in ready or worker.process.sentinel in ready:
                    self._receive(worker, on_event, on_outcome)
        for cell in self._waiting:
            on_outcome(cell, CellOutcome(CellStatus.PREEMPTED))

    def _assign(self, worker: Worker, cell: Cell) -> None:
        """Send a cell to an idle worker; if it has died meanwhile, to its replacement."""
        try:
            worker.connection.send(cell.recipe)
        except ConnectionError:
            worker = self._replace(worker)
            worker.connection.send(cell.recipe)
        worker.cell = cell

    def _replace(self, worker: Worker) -> Worker:
        """Start a new worker in the place of a dead one."""
        worker.process.join(EXIT_TIMEOUT)  # its exit code says why it died
        if worker.process.is_alive():  # it has only lost its connection
            worker.process.kill()
            worker.process.join()
        worker.connection.close()
        index = self._workers.index(worker)
        self._workers[index] = self.start_worker(worker.device)
        return self._workers[index]

    def start_worker(self, device: str | None) -> Worker:
        """Start a worker that never receives signals."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=run_worker, args=(theirs, self._stop, device, self._log), daemon=True)
        with block_signals():  # it imports libraries before it can ignore them
            process.start()
        theirs.close()
        return Worker(process, ours, device)

    def _receive(self, worker: Worker, on_event: OnEvent, on_outcome: OnOutcome) -> None:
        """Handle a message of a worker, or replace the worker if it has died."""
        cell = worker.cell
        assert cell is not None  # noqa: S101 - only busy workers are read
        try:
            if not worker.connection.poll():  # dead, while a process that it started holds the connection open
                raise EOFError
            message = worker.connection.recv()
        except (EOFError, ConnectionError):
            self._replace(worker)
            self._retry(cell, (self._describe_death(worker, cell),), on_outcome)
            return
        if not isinstance(message, CellOutcome):
            on_event(cell, message)
            return
        worker.cell = None
        if message.may_retry:
            self._retry(cell, message.problems, on_outcome)
        else:
            on_outcome(cell, message)

    def _describe_death(self, worker: Worker, cell: Cell) -> Problem:
        code = worker.process.exitcode
        times = f" {self._tries[cell.key] + 1} times" if self._tries[cell.key] else ""
        received = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        hint = f"see {self._log}"
        if code == -9:
            hint = "a smaller batch or more memory; --set sweep.retries=5 retries more often"
        return Problem(f"the worker that trained it died{times}", received, hint)

    def _retry(self, cell: Cell, problems: tuple[Problem, ...], on_outcome: OnOutcome) -> None:
        """Put a cell first in line again, or give it up if no retry is left."""
        self._tries[cell.key] += 1
        if self._stop.value:
            on_outcome(cell, CellOutcome(CellStatus.PREEMPTED))
        elif self._tries[cell.key] > self._retries:
            on_outcome(cell, CellOutcome(CellStatus.FAILED, problems=problems))
        else:
            on_outcome(cell, CellOutcome(CellStatus.WAITING, problems=problems))
            self._waiting.appendleft(cell)


def list_devices() -> list[str | None]:
    """Return an entry for each GPU that torch sees, as CUDA_VISIBLE_DEVICES takes it; [None] for one GPU or the CPU."""
    import torch

    count: Any = torch.cuda.device_count()
    if count < 2:
        return [None]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # numbers or UUIDs that a person or a scheduler chose
    names = visible.split(",")[:count] if visible else [str(index) for index in range(count)]
    return [name.strip() for name in names]
