"""The interface of an engine, which runs cells, and the outcome of a try of a cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from neftcli.errors import Problem
from neftcli.events import CellStatus, Event

if TYPE_CHECKING:
    from neftcli.sweep.plan import Cell


@dataclass(frozen=True)
class CellOutcome:
    """Outcome of one try of a cell.

    Attributes:
        status: FINISHED, FAILED, PREEMPTED, or WAITING if the engine retries it.
        run: Its folder if it is finished.
        problems: Why it failed or is retried.
        may_retry: True if it failed and a retry may help.
    """

    status: CellStatus
    run: str = ""
    problems: tuple[Problem, ...] = ()
    may_retry: bool = False


OnEvent: TypeAlias = "Callable[[Cell, Event], None]"
OnOutcome: TypeAlias = "Callable[[Cell, CellOutcome], None]"


class Engine(Protocol):
    """Runs the cells of a sweep."""

    @property
    def workers(self) -> int:
        """Number of cells that run at the same time."""

    def stop(self) -> None:
        """Stop the cells after their current step; cells that wait are not started. A signal handler may call it."""

    def close(self) -> None:
        """End all cells at once."""

    def run(self, cells: Sequence[Cell], on_event: OnEvent, on_outcome: OnOutcome) -> None:
        """Run cells in their order as workers become free, and return when all have ended.

        Args:
            cells: The cells.
            on_event: Called with each event of a cell.
            on_outcome: Called with the outcome of each try.
        """
