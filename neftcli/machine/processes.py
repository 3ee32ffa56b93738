"""The processes that train one model together, as `neft train --processes` or torchrun starts them.

Each holds the whole model and takes batches of its own; gradients are averaged at every update. The first one leads: it
alone writes the run's files, tells what happens and decides when to stop. Those that neft starts meet by a file, those
that torchrun starts by its address; RANK, WORLD_SIZE and LOCAL_RANK mean what they mean to torchrun.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from neftcli.errors import InputError, Problem

Value = TypeVar("Value")
MEETING = "NEFT_MEETING"
"""Names the file by which processes meet that neft has started."""
PATIENCE = timedelta(days=1)
"""How long the others wait for one: the first may answer many prompts meanwhile. A dead one is noticed at once."""
PAUSE = 0.02
_started: list[subprocess.Popen[bytes]] = []


class ProcessEnded(Exception):  # noqa: N818 - what is said of it depends on what is safe
    """One of the processes has ended, and the others wait for it."""


def count() -> int:
    """How many processes train together; 1 where one is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine this is, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if count() > 1 else 0


def local_count() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if count() > 1 else 1


def leads() -> bool:
    """Whether this is the first of them, or alone."""
    return rank() == 0


def require_alone(command: str) -> None:
    """Refuses a launcher's processes where each would do the same work.

    Raises:
        InputError: There are several.
    """
    if count() > 1:
        raise InputError(
            Problem(f"{command} runs in one process", f"WORLD_SIZE {count()}", f"{command} without a launcher")
        )


@contextmanager
def together(number: int, command: Sequence[str]) -> Iterator[None]:
    """Within the block this process is the first of `number`; the others end with it.

    Args:
        number: How many; with 1 nothing is changed.
        command: What the others run; nothing for a look at what `number` processes would do.

    Raises:
        InputError: A launcher has started several already.
    """
    if MEETING in os.environ:  # it is one of the others
        _end_with_the_first()
    elif number > 1:
        if count() > 1:
            told = "--processes starts processes itself, and a launcher has started some already"
            raise InputError(Problem(told, f"WORLD_SIZE {count()}", "the same command without --processes"))
        with tempfile.TemporaryDirectory() as folder, _environment(number, Path(folder) / "meeting"):
            try:
                for index in range(1, number) if command else ():
                    _started.append(_start(command, index))
                yield
                for process in _started:
                    process.wait()
            finally:
                for process in _started:
                    process.kill()
                    process.communicate()  # waits, and closes the pipe
                _started.clear()
        return
    yield


@contextmanager
def _environment(number: int, meeting: Path) -> Iterator[None]:
    """What the first of `number` processes knows, and hands on to the others; a person's own settings stay."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    threads = str(max(1, (os.cpu_count() or 1) // number))
    wishes = {"OMP_NUM_THREADS": threads, "GLOO_SOCKET_IFNAME": loopback}
    numbers = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    before = dict(os.environ)
    os.environ.update({**wishes, **before, **numbers, MEETING: str(meeting)})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _start(command: Sequence[str], index: int) -> subprocess.Popen[bytes]:
    """Starts one of the others, in a session of its own: the first one hears Ctrl-C for all."""
    mine = {**os.environ, "RANK": str(index), "LOCAL_RANK": str(index)}
    return subprocess.Popen(  # noqa: S603 - this program
        command, env=mine, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )


def _end_with_the_first() -> None:
    """Ends this process when the first one is gone, also by a kill: its end closes the pipe."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def join() -> None:
    """Waits for the others, and connects with them; nothing where there are none.

    Raises:
        ProcessEnded: One of them ended before.
    """
    if count() == 1:
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns that no parameter is unused
    import torch
    from torch import distributed
    from torch._C._distributed_c10d import FileStore, Store
    from torch.distributed.rendezvous import rendezvous

    if MEETING in os.environ:
        store: Store = FileStore(os.environ[MEETING], count())
    else:
        store, _, _ = next(rendezvous("env://", rank(), count()))
    store.add("arrived", 1)
    while store.add("arrived", 0) < count():  # in Python, where signals are heard
        if any(process.poll() is not None for process in _started):
            raise ProcessEnded
        time.sleep(PAUSE)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank(), world_size=count(), timeout=PATIENCE)


def leave() -> None:
    """Ends what `join` began."""
    if count() > 1:
        from torch import distributed

        distributed.destroy_process_group()


def shared(value: Value) -> Value:
    """The first process's value, in all of them; all have to call it."""
    return gathered(value)[0]


def gathered(value: Value) -> list[Value]:
    """The values of all processes, in their order; all have to call it. As JSON, since nothing here is unpickled."""
    if count() == 1:
        return [value]
    import torch
    from torch import distributed

    text = json.dumps(value).encode()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
    distributed.all_gather(sizes, torch.tensor([len(text)]))
    longest = int(max(sizes))
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    distributed.all_gather(texts, torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8))
    return [json.loads(text.numpy().tobytes()) for text in texts]


def has_ended(error: BaseException) -> bool:
    """Whether an error says that another process, which this one waits for, is gone."""
    if count() == 1:
        return False
    from torch import distributed

    lost = isinstance(error, ProcessEnded | distributed.DistError)
    return lost or (isinstance(error, RuntimeError) and "gloo" in str(error))
