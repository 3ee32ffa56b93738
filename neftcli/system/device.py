"""The device, the arithmetic that is fast on it, and its memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neftcli.errors import InputError, Problem
from neftcli.system import distributed

if TYPE_CHECKING:
    import torch

    from neftcli.recipe.schema import Recipe


@dataclass(frozen=True)
class ComputeConfig:
    """Where and in which arithmetic a run is computed.

    Attributes:
        device: cpu, cuda or mps.
        device_name: The device in words.
        bfloat16: The matrix products are computed in bfloat16.
        weights_dtype: Type of the loaded weights that aren't quantised.
    """

    device: str
    device_name: str
    bfloat16: bool
    weights_dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """The arithmetic of a forward pass, outside the trainer as inside it."""
        import torch

        return torch.autocast(self.device, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()

    def precision(self) -> str:
        """The arithmetic in words."""
        return "bf16" if self.bfloat16 or self.weights_dtype.itemsize == 2 else "fp32"


def resolve_compute_config(recipe: Recipe, *, trains: bool = True) -> ComputeConfig:
    """The device that is there, and the types that `recipe` asks for or that are fast on it.

    Args:
        recipe: The resolved recipe.
        trains: All weights may be trained; a model that is only measured needs no float32 on a GPU.

    Raises:
        InputError: One process sees several GPUs, or there are more processes than GPUs.
    """
    import torch

    distributed.require_one_gpu_per_process()
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "mps" and distributed.world_size() > 1:
        told = "training.processes: several processes train on CPUs and on GPUs of NVIDIA and AMD"
        raise InputError(Problem(told, "an Apple GPU", "--processes 1"))
    wanted = recipe.training.precision
    bfloat16 = wanted == "bfloat16" or (wanted == "auto" and multiplies_bfloat16(device))
    if recipe.model.dtype != "auto":
        weights = {"float32": torch.float32, "bfloat16": torch.bfloat16}[recipe.model.dtype]
    elif device != "cpu" and (recipe.adapter.type != "none" or not trains) and bfloat16:
        weights = torch.bfloat16  # frozen weights need no more; adapters are kept in float32
    else:
        weights = torch.float32
    return ComputeConfig(device, _device_name(device), bfloat16, weights)


NO_VARIANT = "does not have a deterministic implementation"


@contextmanager
def reproducible(device: str) -> Iterator[None]:
    """Within the block the same training gives the same bits: of each operation the variant that adds in one order.

    A CPU's do so anyway; on a GPU the backward passes of attention and embeddings don't.

    Raises:
        RuntimeError: Within the block, by torch: an operation has no such variant (it says so with NO_VARIANT).
    """
    if device != "cuda":
        yield
        return
    import torch

    deterministic: Any = torch.utils.deterministic
    mode, fills = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)  # with warn_only attention would stay as it is
    deterministic.fill_uninitialized_memory = False  # nobody reads it before it is written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)  # the compiler's settings with it
        deterministic.fill_uninitialized_memory = fills


def multiplies_bfloat16(device: str) -> bool:
    """Whether the hardware has instructions that multiply bfloat16 matrices."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        found = torch.cpu.get_capabilities()
        return bool(found.get("amx_bf16") or found.get("avx512_bf16") or found.get("bf16"))
    return False


def peak_memory(device: str) -> int:
    """Most bytes used so far: allocated on the GPU, or resident in the process."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's own, Python's, or that of torch's allocator on a CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def available_memory(device: str) -> int:
    """Bytes that can still be used."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return int(psutil.virtual_memory().available)  # what caches hold can be had


def process_memory() -> int:
    """Bytes of memory that this process has now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _device_name(device: str) -> str:
    import torch

    if device == "cuda":
        name = torch.cuda.get_device_name()
    elif device == "mps":
        name = "Apple GPU"
    else:
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return name if distributed.world_size() == 1 else f"{distributed.world_size()} x {name}"
