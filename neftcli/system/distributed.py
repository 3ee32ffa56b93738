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
from typing import Any, TypeVar

from neftcli.errors import InputError, Problem

Value = TypeVar("Value")
MEETING = "NEFT_RENDEZVOUS"
"""Names the file by which processes meet that neft has started."""
PATIENCE = timedelta(days=1)
"""How long the others wait for one: the first may answer many prompts meanwhile. A dead one is noticed at once."""
PAUSE = 0.02
CALL = timedelta(minutes=1)
"""How long a launcher's address may not answer."""
RELAUNCH = "unset WORLD_SIZE, or start by torchrun"
MOST = 4
"""Processes for each core, at most: each needs seconds of a core to begin, and a whole model."""
GRACE = 30.0
"""Seconds in which the first process can say itself that another has ended; it may wait in code that no signal ends."""
IN_VAIN = "another process ended, and this one waits in vain; neft train --resume RUN goes on from what was saved"
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_started: list[subprocess.Popen[bytes]] = []


class PeerExitedError(Exception):
    """One of the processes has ended, and the others wait for it."""


def world_size() -> int:
    """How many processes train together; 1 where one is alone."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this is, from 0."""
    return _number("RANK", 0) if world_size() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine this is, from 0: the number of its GPU."""
    return _number("LOCAL_RANK", 0) if world_size() > 1 else 0


def local_world_size() -> int:
    """How many of them are on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1) if world_size() > 1 else 1


def _number(name: str, otherwise: int) -> int:
    """An environment variable of a launcher; what is no number is none of a launcher's."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else otherwise


def launched_externally() -> bool:
    """Whether several were started by a launcher, torchrun say, and not by neft."""
    return world_size() > 1 and MEETING not in os.environ


def is_main_process() -> bool:
    """Whether this is the first of them, or alone."""
    return rank() == 0


def clear_launcher_variables() -> None:
    """Drop the variables of a launcher of one process, which make the libraries look for others."""
    for name in LAUNCHER:
        os.environ.pop(name, None)


def require_single_process(command: str) -> None:
    """Refuses a launcher's processes where each would do the same work.

    Raises:
        InputError: There are several.
    """
    if world_size() > 1:
        raise InputError(
            Problem(f"{command} runs in one process", f"WORLD_SIZE {world_size()}", f"{command} without a launcher")
        )


@contextmanager
def launch_processes(number: int, command: Sequence[str]) -> Iterator[None]:
    """Within the block this process is the first of `number`; the others end with it.

    Args:
        number: How many; with 1, and where a launcher has started them, nothing is changed.
        command: What the others run; nothing for a look at what `number` processes would do.

    Raises:
        InputError: They are far too many for this machine.
    """
    if MEETING in os.environ:  # it is one of the others
        _end_with_the_first()
    elif number > 1 and not launched_externally():
        if number > MOST * _cores():
            cores = f"{number}, on {_cores()} core{'s' if _cores() > 1 else ''}"
            raise InputError(Problem(f"training.processes: at most {MOST} for each core", cores, "--processes 2"))
        ended = threading.Event()
        with tempfile.TemporaryDirectory(prefix="neft-") as folder, _environment(number, Path(folder) / "meeting"):
            try:
                for index in range(1, number) if command else ():
                    _started.append(_start(command, index))
                threading.Thread(target=_watch, args=(ended, [*_started]), daemon=True).start()
                yield
                for process in _started:
                    process.wait()
            finally:
                ended.set()
                for process in _started:
                    process.kill()
                    process.communicate()  # waits, and closes the pipe
                _started.clear()
        return
    yield


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _environment(number: int, meeting: Path) -> Iterator[None]:
    """What the first of `number` processes knows, and hands on to the others; a person's own settings stay."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    threads = str(max(1, _cores() // number))
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


def _watch(ended: threading.Event, others: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends this process, and with it the others, where one of them has failed and nobody says so."""
    while not ended.wait(PAUSE):
        if any(process.poll() for process in others):
            if not ended.wait(GRACE):
                print(IN_VAIN, file=sys.stderr)
                os._exit(1)
            return


def _end_with_the_first() -> None:
    """Ends this process when the first one is gone, also by a kill: its end closes the pipe."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def require_one_gpu_per_process() -> None:
    """Checks that each process has a GPU of its own, where there are any.

    Raises:
        InputError: One sees several, or there are more processes than GPUs.
    """
    import torch

    gpus, mine = torch.cuda.device_count(), local_world_size()
    if gpus and gpus != mine:
        raise InputError(
            Problem(
                "each process takes one GPU, and each GPU one process",
                f"{gpus} GPU{'s are' if gpus > 1 else ' is'} visible to {mine} process{'es' if mine > 1 else ''}",
                f"CUDA_VISIBLE_DEVICES=0 neft ..., or neft train --processes {gpus}",
            )
        )


def init_process_group() -> None:
    """Waits for the others, and connects with them; nothing where there are none.

    Raises:
        InputError: There is not a GPU for each, or a launcher's variables are not whole.
        PeerExitedError: One of them ended before.
    """
    if world_size() == 1:
        clear_launcher_variables()
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns that no parameter is unused
    import torch
    from torch import distributed
    from torch._C._distributed_c10d import FileStore

    require_one_gpu_per_process()
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    store = FileStore(os.environ[MEETING], world_size()) if MEETING in os.environ else _launchers_store()
    store.add("arrived", 1)
    while store.add("arrived", 0) < world_size():  # in Python, where signals are heard
        if any(process.poll() is not None for process in _started):
            raise PeerExitedError
        time.sleep(PAUSE)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=PATIENCE)


def _launchers_store() -> Any:
    """Where a launcher's processes meet, without waiting for them in code that hears no signal.

    Raises:
        InputError: The launcher's variables are not whole, or nobody answers at its address.
    """
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    address = os.environ.get("MASTER_ADDR", "")
    numbers = {name: os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    if not address or not all(value.isdecimal() for value in numbers.values()) or rank() >= world_size():
        given = ", ".join(f"{name} {value or 'unset'}" for name, value in {**numbers, "MASTER_ADDR": address}.items())
        raise InputError(Problem("WORLD_SIZE asks for several processes, and the rest is not whole", given, RELAUNCH))
    hosts = is_main_process() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    port = int(numbers["MASTER_PORT"])
    try:
        store = TCPStore(address, port, world_size(), hosts, CALL, wait_for_workers=False, multi_tenant=True)
    except RuntimeError as error:
        said = f"{address}:{port}: {str(error).splitlines()[0]}"
        raise InputError(Problem("the processes can't meet at MASTER_ADDR and MASTER_PORT", said, RELAUNCH)) from None
    return PrefixStore(f"neft/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def destroy_process_group() -> None:
    """Ends what `join` began."""
    if world_size() > 1:
        from torch import distributed

        distributed.destroy_process_group()


def broadcast_object(value: Value) -> Value:
    """The first process's value, in all of them; all have to call it."""
    return all_gather_object(value)[0]


def all_gather_object(value: Value) -> list[Value]:
    """The values of all processes, in their order; all have to call it. As JSON, since nothing here is unpickled."""
    if world_size() == 1:
        return [value]
    import torch
    from torch import distributed

    text = json.dumps(value).encode()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    distributed.all_gather(sizes, torch.tensor([len(text)]))
    longest = int(max(sizes))
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    distributed.all_gather(texts, torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8))
    return [json.loads(text.numpy().tobytes()) for text in texts]


def is_process_loss(error: BaseException) -> bool:
    """Whether an error says that another process, which this one waits for, is gone."""
    if world_size() == 1:
        return False
    from torch import distributed

    lost = isinstance(error, PeerExitedError | distributed.DistError)
    return lost or (isinstance(error, RuntimeError) and "gloo" in str(error))
