"""Variables of the environment that touch a run: which are dropped, which are recorded, and which can't be used.

A recipe determines a run, and `run.json` says what was computed. So variables by which libraries would compute
otherwise than the recipe says are dropped before the libraries are imported, with a notice that names each. Those that
belong to the machine (threads, kernels, visible devices) stay, and are recorded. docs/environment.md lists them all.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from neftcli.errors import InputError, Problem
from neftcli.events import Notice, Observer
from neftcli.machine import processes

PRECISION = "--set training.precision=bfloat16"
PROCESSES = "--processes N"
LAUNCH = "torchrun; what mpirun and srun start are runs of their own"
DROPPED = {
    "ACCELERATE_MIXED_PRECISION": PRECISION,
    "ACCELERATE_DOWNCAST_BF16": PRECISION,
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "--set training.gradient_accumulation_steps=N",
    "ACCELERATE_GRADIENT_CLIPPING": "--set training.max_grad_norm=X",
    "ACCELERATE_DYNAMO_": "--set training.torch_compile=true",
    "TORCH_COMPILE": "--set training.torch_compile=true",
    "ACCELERATE_USE_CPU": "CUDA_VISIBLE_DEVICES= before the command",
    "ACCELERATE_TORCH_DEVICE": "CUDA_VISIBLE_DEVICES=NUMBER before the command",
    "ACCELERATE_": PROCESSES,
    "FSDP_": PROCESSES,
    "MEGATRON_LM_": PROCESSES,
    "PARALLELISM_CONFIG_": PROCESSES,
    "FP8_": PRECISION,
    "PMI_SIZE": LAUNCH,
    "OMPI_COMM_WORLD_SIZE": LAUNCH,
    "MV2_COMM_WORLD_SIZE": LAUNCH,
    "XLA_USE_BF16": PRECISION,
    "XLA_DOWNCAST_BF16": PRECISION,
    "USE_TORCH_XLA": PROCESSES,
    "ONEDNN_DEFAULT_FPMATH_MODE": PRECISION,
    "DNNL_DEFAULT_FPMATH_MODE": PRECISION,
    "NVIDIA_TF32_OVERRIDE": PRECISION,
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": PRECISION,
    "TORCH_LOGS": "train.log in the run's folder    torch fails over names that it does not know",
    "TRANSFORMERS_SDPA_FORCE_GQA": "--set training.fused_layers=false",
}
"""Name, or beginning of names that end in _, to what is typed in its place. An exact name goes before a beginning."""
NO_EFFECT = ("", "0", "no", "none", "false", "off", "strict")
"""Values that ask for nothing; they are dropped without a notice."""
RECORDED = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "ATEN_", "CUBLAS_", "CUBLASLT_", "CUDNN_"),
    *("NCCL_", "GLOO_", "MALLOC_", "BNB_", "TORCH_", "PYTORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TRITON_"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES"),
    *("NVIDIA_TF32_OVERRIDE", "FLASH_ATTENTION_DETERMINISTIC", "USE_HUB_KERNELS", "TOKENIZERS_PARALLELISM"),
)
"""Beginnings of the names that run.json records."""
PLAIN = re.compile(r"[A-Za-z0-9_.,:;=+ -]{0,200}")
"""Values that are recorded: numbers, words and lists of them; no path, no address, and so no password."""
ARITHMETIC = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Recorded ones that choose other instructions: the same recipe gives other bits with them, which is told."""
NUMBERS = (
    *("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_DATASETS_IN_MEMORY_MAX_SIZE"),
    *("TORCHINDUCTOR_COMPILE_THREADS", "TORCHINDUCTOR_MIN_NUM_SPLIT", "TORCHINDUCTOR_FILE_LOCK_TIMEOUT"),
    *("TORCHINDUCTOR_CPP_MIN_CHUNK_SIZE", "TORCHDYNAMO_REPRO_LEVEL", "NPU_FA2_SPARSE_MODE"),
)
"""Variables that libraries read as numbers while they are imported."""
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that must be counts of threads: libraries ignore others, each in its way."""
MOST_THREADS = 4096


@dataclass
class _Cleaned:
    """What was dropped in this process.

    Attributes:
        done: Variables were dropped before; what libraries set since is theirs.
        untold: Notices that nobody was given yet.
        told: The notices were given.
    """

    done: bool = False
    untold: list[str] = field(default_factory=list)
    told: bool = False


_cleaned = _Cleaned()


def drop_overrides() -> None:
    """Drops the variables by which libraries would compute otherwise than the recipe says.

    To be called before the libraries are imported. `tell_dropped` gives the notices.
    """
    for name in sorted(os.environ):
        instead = _instead(name)
        if instead is None or (name.endswith("OVERRIDE") and os.environ[name] == "0"):
            continue  # an override of 0 forbids what the recipe does not ask for either
        value = os.environ.pop(name)
        asks = value.lower() not in (("", "1") if instead == LAUNCH else NO_EFFECT)
        if asks and not _cleaned.done:
            _cleaned.untold.append(f"{name} is set and was dropped: the recipe decides; in its place: {instead}")
    if processes.count() == 1:
        processes.forget_launcher()
    _cleaned.done = True


def tell_dropped(observer: Observer) -> None:
    """Gives the notices of what was dropped, once, and of what chooses other instructions."""
    for message in _cleaned.untold:
        observer.notify(Notice(message))
    for name in ARITHMETIC:
        if not _cleaned.told and os.environ.get(name):
            observer.notify(Notice(f"{name} chooses other instructions; run.json records it, and bits may differ"))
    _cleaned.told = True
    _cleaned.untold.clear()


def recorded() -> dict[str, str]:
    """The variables that belong to the machine and can change bits or speed, for run.json: never a token or a path."""
    names = (name for name in sorted(os.environ) if name.startswith(RECORDED))
    return {name: os.environ[name] for name in names if PLAIN.fullmatch(os.environ[name])}


def require_readable() -> None:
    """Checks the variables that libraries read as numbers, before they fail over them.

    Raises:
        InputError: One is no number.
    """
    problems = [
        Problem(f"{name}: this must be a number", repr(os.environ[name]), f"unset {name}")
        for name in NUMBERS
        if os.environ.get(name) and not _is_number(os.environ[name])
    ]
    problems += [
        Problem(
            f"{name}: this must be a count of threads, 1 to {MOST_THREADS}", repr(os.environ[name]), f"unset {name}"
        )
        for name in COUNTS
        if os.environ.get(name) and not all(map(_is_count, os.environ[name].split(",")))  # one for each nested level
    ]
    if problems:
        raise InputError(*problems)


def _instead(name: str) -> str | None:
    """What is typed in the place of a variable; None for one that is not dropped."""
    if name in DROPPED:
        return DROPPED[name]
    return next((instead for start, instead in DROPPED.items() if start.endswith("_") and name.startswith(start)), None)


def _is_count(text: str) -> bool:
    return text.strip().isdecimal() and 1 <= int(text.strip()[:9]) <= MOST_THREADS


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
