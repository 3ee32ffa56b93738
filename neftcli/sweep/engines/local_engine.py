"""The local engine: one warm worker process a device; a worker that dies is replaced and its cell tried again."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import Problem
from neftcli.events import CellStatus, Event
from neftcli.sweep.engines.worker import signals_put_off, work

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from neftcli.sweep.plan import Cell


@dataclass
class _Worker:
    """A process, the connection to it, and what it is doing."""

    process: BaseProcess
    connection: Connection
    device: str | None
    cell: Cell | None = None


@dataclass(frozen=True)
class Outcome:
    """Outcome of one try of a cell.

    Attributes:
        status: FINISHED, FAILED, PREEMPTED, or WAITING if the engine retries it.
        run: Its folder if it is finished.
        problems: Why it failed or is retried.
    """

    status: CellStatus
    run: str = ""
    problems: tuple[Problem, ...] = ()


class LocalEngine:
    """Worker processes on this machine.

    Args:
        devices: One worker for each; None leaves the choice of the device to torch.
        retries: Times that a cell is tried again after its worker died or failed by a fault.
        log: What workers write past their logs.
    """

    def __init__(self, devices: Sequence[str | None], retries: int, log: Path) -> None:
        self._devices, self._retries, self._log = devices, retries, log
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.RawValue("b", 0)  # no lock, which a killed worker could keep
        self._workers: list[_Worker] = []

    @property
    def workers(self) -> int:
        """Number of cells that are trained at the same time."""
        return len(self._devices)

    def stop(self) -> None:
        """Cells stop behind the update that they are in; waiting cells are not begun."""
        self._stop.value = 1

    def close(self) -> None:
        """Ends the workers at once."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def run(
        self,
        cells: Sequence[Cell],
        told: Callable[[Cell, Event], None],
        ended: Callable[[Cell, Outcome], None],
    ) -> None:
        """Does the cells, in their order as workers come free, and returns when all have ended.

        Args:
            cells: What is to be done.
            told: Is told what happens in a cell.
            ended: Is told how a cell ended.
        """
        waiting, tries = deque(cells), dict.fromkeys((cell.key for cell in cells), 0)
        while len(self._workers) < min(len(self._devices), len(cells)):
            self._workers.append(self._started(self._devices[len(self._workers)]))
        while True:
            for worker in self._workers:
                if worker.cell is None and waiting and not self._stop.value:
                    self._give(worker, waiting.popleft())
            busy = [worker for worker in self._workers if worker.cell is not None]
            if not busy:
                break
            ready = wait([item for worker in busy for item in (worker.connection, worker.process.sentinel)])
            for worker in busy:
                if worker.connection in ready or worker.process.sentinel in ready:
                    self._hear(worker, waiting, tries, told, ended)
        for cell in waiting:
            ended(cell, Outcome(CellStatus.PREEMPTED))

    def _give(self, worker: _Worker, cell: Cell) -> None:
        """Gives a cell to an idle worker, or to another one in its place where it has died meanwhile."""
        try:
            worker.connection.send(cell.recipe)
        except ConnectionError:
            worker = self._replaced(worker)
            worker.connection.send(cell.recipe)
        worker.cell = cell

    def _replaced(self, worker: _Worker) -> _Worker:
        """A new worker in the place of one that has died."""
        worker.process.join()
        worker.connection.close()
        place = self._workers.index(worker)
        self._workers[place] = self._started(worker.device)
        return self._workers[place]

    def _started(self, device: str | None) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=work, args=(theirs, self._stop, device, self._log), daemon=True)
        with signals_put_off():  # it imports libraries before it can ignore them
            process.start()
        theirs.close()
        return _Worker(process, ours, device)

    def _hear(
        self,
        worker: _Worker,
        waiting: deque[Cell],
        tries: dict[str, int],
        told: Callable[[Cell, Event], None],
        ended: Callable[[Cell, Outcome], None],
    ) -> None:
        """Takes what a worker says, or replaces it where it has died."""
        cell = worker.cell
        assert cell is not None  # noqa: S101 - only busy workers are heard
        try:
            if not worker.connection.poll():  # dead, while a process that it started holds the connection open
                raise EOFError
            said = worker.connection.recv()
        except (EOFError, ConnectionError):
            self._replaced(worker)
            code = worker.process.exitcode
            times = f" {tries[cell.key] + 1} times" if tries[cell.key] else ""
            died = Problem(
                f"the worker that trained it died{times}",
                f"signal {-code}" if code is not None and code < 0 else f"exit code {code}",
                "a smaller batch or more memory; --set sweep.retries=5 tries more often"
                if code == -9
                else f"see {self._log}",
            )
            self._again(cell, (died,), waiting, tries, ended)
            return
        if not isinstance(said, tuple):
            told(cell, said)
            return
        worker.cell = None
        if said[0] == CellStatus.FAILED and said[2]:
            self._again(cell, said[1], waiting, tries, ended)
        elif said[0] == CellStatus.FAILED:
            ended(cell, Outcome(CellStatus.FAILED, problems=said[1]))
        else:
            ended(cell, Outcome(*said))

    def _again(
        self,
        cell: Cell,
        problems: tuple[Problem, ...],
        waiting: deque[Cell],
        tries: dict[str, int],
        ended: Callable[[Cell, Outcome], None],
    ) -> None:
        """Puts a cell back, first in line, until its tries are used up."""
        tries[cell.key] += 1
        if self._stop.value:
            ended(cell, Outcome(CellStatus.PREEMPTED))
        elif tries[cell.key] > self._retries:
            ended(cell, Outcome(CellStatus.FAILED, problems=problems))
        else:
            ended(cell, Outcome(CellStatus.WAITING, problems=problems))
            waiting.appendleft(cell)


def devices() -> list[str | None]:
    """One entry for each GPU that torch would see, as CUDA_VISIBLE_DEVICES takes it, or one for the CPU."""
    import torch

    count: Any = torch.cuda.device_count()
    if count < 2:
        return [None]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")  # numbers or UUIDs that a person or a scheduler chose
    names = given.split(",")[:count] if given else map(str, range(count))
    return [*map(str.strip, names)]
