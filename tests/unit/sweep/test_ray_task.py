"""A task of a sweep in a process that Ray started.

Oracle: the umask of the process. The mailbox is a real one, called without Ray.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from neftcli.recipe.schema import Recipe
from neftcli.sweep.engines.ray_task import Errand, Mailbox, work

pytest.importorskip("ray")


@dataclass
class Method:
    """A method that is called as an actor's is."""

    method: Callable[..., Any]

    def remote(self, *arguments: Any) -> Method:
        """Call it."""
        self.result = self.method(*arguments)
        return self

    def future(self) -> Future[Any]:
        """Return a future that has the result of the last call."""
        found: Future[Any] = Future()
        found.set_result(self.result)
        return found


class Actor:
    """A mailbox, and its methods as Ray hands them out."""

    def __init__(self) -> None:
        self.mailbox = Mailbox()
        self.tell, self.halted = Method(self.mailbox.tell), Method(self.mailbox.halted)


def test_work_restricts_the_umask() -> None:
    """Ray's processes are started by Ray, so that they don't have the command's umask."""
    actor = Actor()
    actor.mailbox.halt()
    before = os.umask(0)
    try:
        assert work(Errand(Recipe(), Recipe(), "key", (), ""), actor, b"").status == "preempted"
        restricted = os.umask(0)
    finally:
        os.umask(before)
    assert restricted == 0o002
