"""Checks of CPU, threads, GPU and memory."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from neftcli.errors import first_line
from neftcli.events import Checked, CheckId, CheckLevel
from neftcli.system.device import available_memory, has_bfloat16
from neftcli.system.distributed import available_cores, require_one_gpu_per_process
from neftcli.system.environment import THREAD_COUNTS
from neftcli.system.files import format_bytes
from neftcli.wording import count_noun

LOW_MEMORY = 4 * 2**30
"""The quickstart needs about as much: weights, gradients and optimiser of 135 M parameters, and the libraries."""
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bf16", "avx512_f": "AVX-512", "avx2": "AVX2", "neon": "NEON"}
"""Instruction sets that matter for speed, by torch's names."""
MEMORY_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
CONTROL_GROUP = Path("/sys/fs/cgroup")
NVIDIA_VERSION = Path("/proc/driver/nvidia/version")
CUDA_BUILD = "install torch's CUDA build, by the selector on pytorch.org"


def check_cpu(output_folder: Path) -> Iterator[Checked]:
    """Report the CPU, its cores and its instruction sets."""
    import torch

    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
    sets = [name for key, name in INSTRUCTIONS.items() if capabilities.get(key)]
    name = str(capabilities.get("cpu_name") or platform.processor() or platform.machine())
    cores = count_noun(available_cores(), "core")
    precision = "bf16" if has_bfloat16("cpu") else "no bf16, so float32 is used"
    yield Checked(CheckId.CPU, CheckLevel.OK, ", ".join([name, cores, *sets, precision]))


def check_threads(output_folder: Path) -> Iterator[Checked]:
    """Compare the number of torch's threads with the cores."""
    import torch

    threads, cores = torch.get_num_threads(), available_cores()
    text = f"{count_noun(threads, 'thread')} on {count_noun(cores, 'core')}"
    variables = [name for name in THREAD_COUNTS if os.environ.get(name)]
    names = " and ".join(f"{name}={os.environ[name]}" for name in variables)
    hint = f"unset {' '.join(variables)}" if variables else ""
    if threads > cores:
        yield Checked(CheckId.THREADS, CheckLevel.WARNING, f"{text}: more threads than cores are slower", hint)
    elif threads < cores and variables:
        yield Checked(CheckId.THREADS, CheckLevel.WARNING, f"{text}, by {names}", hint)
    else:
        yield Checked(CheckId.THREADS, CheckLevel.OK, text)


def check_gpu(output_folder: Path) -> Iterator[Checked]:
    """Report the GPUs and use them once; explain why torch sees none although there is a driver."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        yield from _check_gpus()
    elif torch.backends.mps.is_available():
        yield Checked(CheckId.GPU, CheckLevel.OK, "Apple GPU")
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield Checked(CheckId.GPU, CheckLevel.OK, "none is visible, by CUDA_VISIBLE_DEVICES")
    elif driver := _nvidia_driver():
        if torch.version.cuda is None:
            text = f"driver {driver} is installed, but torch {torch.__version__} is not a CUDA build"
            yield Checked(CheckId.GPU, CheckLevel.WARNING, text, CUDA_BUILD)
        else:
            reason = str(caught[0].message).splitlines()[0] if caught else "no device was found"
            text = f"driver {driver} is installed, but torch can't use it: {reason}"
            hint = f"nvidia-smi    shows devices and driver; it has to support CUDA {torch.version.cuda}"
            yield Checked(CheckId.GPU, CheckLevel.WARNING, text, hint)
    else:
        yield Checked(CheckId.GPU, CheckLevel.OK, "none; neft trains on the CPU")


def check_memory(output_folder: Path) -> Iterator[Checked]:
    """Report the memory, and the limit of a container."""
    import psutil

    total, available = psutil.virtual_memory().total, available_memory("cpu")
    text = f"{format_bytes(available)} of {format_bytes(total)} available"
    limit = _memory_limit()
    if limit is not None and limit < total:
        text += f", limited to {format_bytes(limit)} by the control group"
        available = min(available, limit)
    if available < LOW_MEMORY:
        hint = "neft train --dry-run ...    estimates what a recipe needs"
        yield Checked(CheckId.MEMORY, CheckLevel.WARNING, f"{text}: little, even for small models", hint)
    else:
        yield Checked(CheckId.MEMORY, CheckLevel.OK, text)


def _check_gpus() -> Iterator[Checked]:
    import torch

    driver = _nvidia_driver()
    bfloat16 = "bf16" if has_bfloat16("cuda") else "no bf16, so float32 is used"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        try:
            with torch.cuda.device(index):
                torch.ones(2, device="cuda").sum().item()
                free = torch.cuda.mem_get_info()[0]
        except RuntimeError as error:
            text = f"{properties.name} can't be used: {first_line(error)}"
            yield Checked(CheckId.GPU, CheckLevel.PROBLEM, text, f"{CUDA_BUILD}, or CUDA_VISIBLE_DEVICES= for the CPU")
            continue
        memory = f"{format_bytes(free)} of {format_bytes(properties.total_memory)} free"
        parts = [properties.name, memory, bfloat16, f"compute capability {properties.major}.{properties.minor}"]
        parts += [f"driver {driver}"] if driver else []
        yield Checked(CheckId.GPU, CheckLevel.OK, ", ".join(parts))
    require_one_gpu_per_process()


def _nvidia_driver() -> str:
    """Return the version of the NVIDIA driver; "of NVIDIA" if only nvidia-smi is there; empty without one."""
    with suppress(OSError):
        for word in NVIDIA_VERSION.read_text(encoding="utf-8", errors="replace").split():
            if word[0].isdigit() and "." in word:
                return word
    return "of NVIDIA" if shutil.which("nvidia-smi") else ""


def _memory_limit() -> int | None:
    """Return the memory limit of the process's control group in bytes; None without one."""
    for name in MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # "max" is no limit
            return int((CONTROL_GROUP / name).read_text(encoding="ascii"))
    return None
