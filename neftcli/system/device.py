"""The device, the precision that is fast on it, and its memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from neftcli.errors import InputError, Problem
from neftcli.events import Device
from neftcli.system import distributed

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16"]
NO_DETERMINISTIC_VARIANT = "does not have a deterministic implementation"
"""Part of torch's error if `deterministic_operations` meets an operation that has no deterministic variant."""


@dataclass(frozen=True)
class ComputeConfig:
    """Device and precision of a run.

    Attributes:
        device: cpu, cuda or mps.
        hardware: The device as events and records describe it.
        bfloat16: Matrix products are computed in bfloat16.
        weights_dtype: Type of the loaded weights that are not quantised.
    """

    device: str
    hardware: Device
    bfloat16: bool
    weights_dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass: autocast to bfloat16, or nothing."""
        import torch

        return torch.autocast(self.device, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()

    def precision(self) -> str:
        """Return "bf16" or "fp32"."""
        return "bf16" if self.bfloat16 or self.weights_dtype.itemsize == 2 else "fp32"


def resolve_compute_config(precision: Precision, weights: Precision, *, frozen_weights: bool) -> ComputeConfig:
    """Choose the device, and the requested types or those that are fast on it.

    Args:
        precision: training.precision.
        weights: model.dtype.
        frozen_weights: The loaded weights are not trained, and need no float32 on a GPU.

    Raises:
        InputError: A process sees several GPUs, or there are more processes than GPUs.
    """
    import torch

    distributed.require_one_gpu_per_process()
    if torch.cuda.is_available():
        device = "cuda"
    elif torch.backends.mps.is_available():
        device = "mps"
    else:
        device = "cpu"
    if device == "mps" and distributed.world_size() > 1:
        message = "training.processes: several processes need CPUs or GPUs of NVIDIA or AMD"
        raise InputError(Problem(message, "an Apple GPU", "--processes 1"))
    bfloat16 = precision == "bfloat16" or (precision == "auto" and has_bfloat16(device))
    if weights != "auto":
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[weights]
    elif device != "cpu" and frozen_weights and bfloat16:
        dtype = torch.bfloat16  # adapters stay in float32
    else:
        dtype = torch.float32
    return ComputeConfig(device, _describe_hardware(device), bfloat16, dtype)


@contextmanager
def deterministic_operations(device: str) -> Iterator[None]:
    """Use deterministic variants of all operations within the block, so that training is bit-identical.

    Operations on CPUs are deterministic anyway; on GPUs the backward passes of attention and embeddings are not.

    Raises:
        RuntimeError: By torch, within the block: an operation has no such variant (NO_DETERMINISTIC_VARIANT).
    """
    if device != "cuda":
        yield
        return
    import torch

    deterministic: Any = torch.utils.deterministic
    mode, fill = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)  # with warn_only, attention would stay as it is
    deterministic.fill_uninitialized_memory = False  # nothing reads memory before it is written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)  # also sets the compiler's flags
        deterministic.fill_uninitialized_memory = fill


def has_bfloat16(device: str) -> bool:
    """Return whether the hardware has instructions for bfloat16 matrix products."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") or capabilities.get("bf16"))
    return False


def peak_memory(device: str) -> int:
    """Return the peak memory so far in bytes: allocated on the GPU, or resident in the process."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means OOM: torch's own, Python's, or that of torch's allocator on a CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def available_memory(device: str) -> int:
    """Return the free memory of a GPU, or the machine's available memory, in bytes."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return int(psutil.virtual_memory().available)  # includes memory that file caches can give back


def process_memory() -> int:
    """Return the resident memory of this process in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _describe_hardware(device: str) -> Device:
    import torch

    return Device(
        device,
        name=torch.cuda.get_device_name() if device == "cuda" else "",
        threads=torch.get_num_threads() if device == "cpu" else None,
        processes=distributed.world_size(),
    )
