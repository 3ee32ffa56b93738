"""Processes of data-parallel training, started by `neft train --processes` or torchrun.

Each process has the whole model and its own batches; gradients are averaged in every step. The main process (rank 0)
alone writes the run's files, reports progress and decides when to stop. Processes that neft starts meet by a file,
those of torchrun by its address; RANK, WORLD_SIZE and LOCAL_RANK have torchrun's meaning.
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
from neftcli.wording import count_noun

Value = TypeVar("Value")
RENDEZVOUS = "NEFT_RENDEZVOUS"
"""Environment variable with the file by which processes that neft started meet."""
COLLECTIVE_TIMEOUT = timedelta(days=1)
"""Long, since the main process may answer many prompts while the others wait. A dead process is noticed at once."""
POLL_SECONDS = 0.02
RENDEZVOUS_TIMEOUT = timedelta(minutes=1)
"""Timeout of the launcher's address."""
RELAUNCH = "unset WORLD_SIZE, or start by torchrun"
MAX_PER_CORE = 4
"""Maximum processes per core: each needs seconds of a core to start, and has a whole model."""
GRACE_SECONDS = 30.0
"""Time in which the main process can report itself that another process ended; no signal may reach it in its wait."""
PEER_EXITED = "another process ended; neft train --resume RUN resumes from the last checkpoint"
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_workers: list[subprocess.Popen[bytes]] = []


class PeerExitedError(Exception):
    """A process ended while the others wait for it."""


def world_size() -> int:
    """Return the number of processes; 1 without a launcher."""
    return max(1, _read_number("WORLD_SIZE", 1))


def rank() -> int:
    """Return the number of this process, from 0."""
    return _read_number("RANK", 0) if world_size() > 1 else 0


def local_rank() -> int:
    """Return the number of this process among those of this machine, from 0; it is the number of its GPU."""
    return _read_number("LOCAL_RANK", 0) if world_size() > 1 else 0


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return _read_number("LOCAL_WORLD_SIZE", 1) if world_size() > 1 else 1


def is_main_process() -> bool:
    """Return whether this is the main process (rank 0)."""
    return rank() == 0


def launched_externally() -> bool:
    """Return whether torchrun or another launcher, not neft, started several processes."""
    return world_size() > 1 and RENDEZVOUS not in os.environ


def _read_number(name: str, default: int) -> int:
    """Read a launcher's environment variable; the default if it is missing or not a number."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def clear_launcher_variables() -> None:
    """Drop the variables of a launcher of a single process; libraries would look for other processes."""
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)


def require_single_process(command: str) -> None:
    """Reject several processes for a command in which each would do the same work.

    Raises:
        InputError: There are several processes.
    """
    if world_size() > 1:
        got = f"WORLD_SIZE {world_size()}"
        raise InputError(Problem(f"{command} runs in a single process", got, f"{command} without a launcher"))


@contextmanager
def launch_processes(number: int, command: Sequence[str]) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """Make this process the main process of `number` within the block; the other processes end with it.

    With 1, or if a launcher started the processes, nothing changes.

    Args:
        number: Number of processes.
        command: Command of the other processes; if it is empty none are started (dry run).

    Yields:
        The processes that were started.

    Raises:
        InputError: There are far too many for this machine.
    """
    if RENDEZVOUS in os.environ:  # this is one of the other processes
        _exit_with_main_process()
    elif number > 1 and not launched_externally():
        cores = available_cores()
        if number > MAX_PER_CORE * cores:
            got = f"{number}, on {count_noun(cores, 'core')}"
            message = f"training.processes: at most {MAX_PER_CORE} for each core"
            raise InputError(Problem(message, got, f"--processes {MAX_PER_CORE * cores}"))
        finished = threading.Event()
        with tempfile.TemporaryDirectory(prefix="neft-") as folder, _environment(number, Path(folder) / "rendezvous"):
            try:
                if command:
                    for index in range(1, number):
                        _workers.append(_start_worker(command, index))
                threading.Thread(target=_exit_if_worker_fails, args=(finished, [*_workers]), daemon=True).start()
                yield tuple(_workers)
                for worker in _workers:
                    worker.wait()
            finally:
                finished.set()
                for worker in _workers:
                    worker.kill()
                    worker.communicate()  # waits, and closes the pipe
                _workers.clear()
        return
    yield ()


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _environment(number: int, rendezvous: Path) -> Iterator[None]:
    """Set the variables of the main process, which the others inherit; settings of the user stay."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    threads = str(max(1, available_cores() // number))
    defaults = {"OMP_NUM_THREADS": threads, "GLOO_SOCKET_IFNAME": loopback}
    launcher = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    before = dict(os.environ)
    os.environ.update({**defaults, **before, **launcher, RENDEZVOUS: str(rendezvous)})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _start_worker(command: Sequence[str], index: int) -> subprocess.Popen[bytes]:
    """Start a process in its own session: only the main process gets Ctrl-C, and handles it for all."""
    environment = {**os.environ, "RANK": str(index), "LOCAL_RANK": str(index)}
    return subprocess.Popen(  # noqa: S603 - this program
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )


def _exit_if_worker_fails(finished: threading.Event, workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """End this process, and with it the others, if a worker failed and the main process does not report it."""
    while not finished.wait(POLL_SECONDS):
        if any(worker.poll() for worker in workers):
            if not finished.wait(GRACE_SECONDS):
                print(PEER_EXITED, file=sys.stderr)
                os._exit(1)
            return


def _exit_with_main_process() -> None:
    """End this process when the main process ends, even by SIGKILL: its end closes the pipe."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def require_one_gpu_per_process() -> None:
    """Check that each process has its own GPU, if there are GPUs.

    Raises:
        InputError: A process sees several GPUs, or there are more processes than GPUs.
    """
    import torch

    gpus, processes = torch.cuda.device_count(), local_world_size()
    if gpus and gpus != processes:
        visible = count_noun(gpus, "GPU is visible", "GPUs are visible")
        got = f"{visible} to {count_noun(processes, 'process', 'processes')}"
        hint = f"CUDA_VISIBLE_DEVICES=0 neft ..., or neft train --processes {gpus}"
        raise InputError(Problem("each process uses one GPU, and each GPU one process", got, hint))


def init_process_group() -> None:
    """Wait for the other processes and connect to them; nothing if there are none.

    Raises:
        InputError: There is not one GPU for each process, or a launcher's variables are incomplete.
        PeerExitedError: Another process ended before it connected.
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
    store = FileStore(os.environ[RENDEZVOUS], world_size()) if RENDEZVOUS in os.environ else _launcher_store()
    store.add("arrived", 1)
    while store.add("arrived", 0) < world_size():  # in Python, where signals are handled
        if any(worker.poll() is not None for worker in _workers):
            raise PeerExitedError
        time.sleep(POLL_SECONDS)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend, store=store, rank=rank(), world_size=world_size(), timeout=COLLECTIVE_TIMEOUT
    )


def _launcher_store() -> Any:
    """Return the key-value store of a launcher, without waiting for the processes in code that handles no signal.

    Raises:
        InputError: The launcher's variables are incomplete, or its address does not answer.
    """
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    address = os.environ.get("MASTER_ADDR", "")
    numbers = {name: os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    if not address or not all(value.isdecimal() for value in numbers.values()) or rank() >= world_size():
        variables = {**numbers, "MASTER_ADDR": address}
        got = ", ".join(f"{name} {value or 'unset'}" for name, value in variables.items())
        message = "WORLD_SIZE asks for several processes, but the other variables are incomplete"
        raise InputError(Problem(message, got, RELAUNCH))
    is_host = is_main_process() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    port = int(numbers["MASTER_PORT"])
    try:
        store = TCPStore(
            address, port, world_size(), is_host, RENDEZVOUS_TIMEOUT, wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:
        got = f"{address}:{port}: {str(error).splitlines()[0]}"
        message = "the processes can't connect to MASTER_ADDR and MASTER_PORT"
        raise InputError(Problem(message, got, RELAUNCH)) from None
    return PrefixStore(f"neft/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def destroy_process_group() -> None:
    """Disconnect from the other processes."""
    if world_size() > 1:
        from torch import distributed

        distributed.destroy_process_group()


def broadcast_object(value: Value) -> Value:
    """Return the main process's value in all processes; all have to call it."""
    return all_gather_object(value)[0]


def all_gather_object(value: Value) -> list[Value]:
    """Return the values of all processes by rank; all have to call it.

    Values travel as JSON; unlike torch's function of this name, nothing is unpickled.
    """
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
    """Return whether an error means that another process ended while this one waited for it."""
    if world_size() == 1:
        return False
    from torch import distributed

    if isinstance(error, PeerExitedError | distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)
