"""Environment variables that affect a run: dropped, recorded, or rejected.

A recipe determines a run, and `run.json` records what was computed. So neft drops variables that would make libraries
compute something else before the libraries are imported, with a notice for each. Variables of the machine (threads,
kernels, visible devices) are kept and recorded. docs/environment.md lists them all.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neftcli.errors import InputError, Problem
from neftcli.events import Notice
from neftcli.system import distributed

if TYPE_CHECKING:
    from neftcli.events import Observer

PRECISION = "--set training.precision=bfloat16"
PROCESSES = "--processes N"
LAUNCH = "torchrun; processes of mpirun and srun are separate runs"
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
    "TORCH_LOGS": "train.log in the run's folder    torch fails for unknown names",
    "TRANSFORMERS_SDPA_FORCE_GQA": "--set training.fused_layers=false",
}
"""Name, or prefix that ends in _, to the setting to use instead. An exact name takes precedence over a prefix."""
NO_EFFECT = ("", "0", "no", "none", "false", "off", "strict")
"""Values that change nothing; they are dropped without a notice."""
RECORDED = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "ATEN_", "CUBLAS_", "CUBLASLT_", "CUDNN_"),
    *("NCCL_", "GLOO_", "MALLOC_", "BNB_", "TORCH_", "PYTORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TRITON_"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES"),
    *("NVIDIA_TF32_OVERRIDE", "FLASH_ATTENTION_DETERMINISTIC", "USE_HUB_KERNELS", "TOKENIZERS_PARALLELISM"),
)
"""Prefixes of the names that run.json records."""
PLAIN = re.compile(r"[A-Za-z0-9_.,:;=+ -]{0,200}")
"""Values that are recorded: numbers, words and lists of them; no paths or addresses, and so no passwords."""
INSTRUCTION_SETS = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
)
"""Recorded variables that select CPU instructions: they change bits, so each gives a notice."""
NUMBERS = (
    *("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_DATASETS_IN_MEMORY_MAX_SIZE"),
    *("TORCHINDUCTOR_COMPILE_THREADS", "TORCHINDUCTOR_MIN_NUM_SPLIT", "TORCHINDUCTOR_FILE_LOCK_TIMEOUT"),
    *("TORCHINDUCTOR_CPP_MIN_CHUNK_SIZE", "TORCHDYNAMO_REPRO_LEVEL", "NPU_FA2_SPARSE_MODE"),
)
"""Variables that libraries read as numbers at import."""
THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that must be numbers of threads; libraries handle other values inconsistently."""
MAX_THREADS = 4096


@dataclass
class DroppedVariables:
    """Notices about variables that were dropped in this process.

    Attributes:
        done: Variables were dropped before; later ones were set by libraries.
        pending: Notices to report.
        reported: Notices were reported.
    """

    done: bool = False
    pending: list[str] = field(default_factory=list)
    reported: bool = False


dropped_variables = DroppedVariables()
"""Those of this process."""


def drop_overrides() -> None:
    """Drop the variables that would make libraries compute something other than the recipe.

    Call this before the libraries are imported. `report_dropped` reports the notices.
    """
    for name in sorted(os.environ):
        instead = _replacement(name)
        if instead is None or (name.endswith("OVERRIDE") and os.environ[name] == "0"):
            continue  # an override of 0 only forbids what no recipe asks for
        value = os.environ.pop(name)
        has_effect = value.lower() not in (("", "1") if instead == LAUNCH else NO_EFFECT)
        if has_effect and not dropped_variables.done:
            notice = f"{name} was dropped from the environment: the recipe decides; use {instead}"
            dropped_variables.pending.append(notice)
    if distributed.world_size() == 1:
        distributed.clear_launcher_variables()
    dropped_variables.done = True


def exclude_current_folder() -> None:
    """Let no process that this one starts import anything from the current folder.

    Workers and the resource tracker of multiprocessing start as `python -c`, which searches the current folder first.
    """
    os.environ["PYTHONSAFEPATH"] = "1"


def report_dropped(observer: Observer) -> None:
    """Report each notice once: dropped variables, and variables that select CPU instructions."""
    for message in dropped_variables.pending:
        observer.notify(Notice(message))
    for name in INSTRUCTION_SETS:
        if not dropped_variables.reported and os.environ.get(name):
            observer.notify(Notice(f"{name} selects CPU instructions: the last bits may differ (recorded in run.json)"))
    dropped_variables.reported = True
    dropped_variables.pending.clear()


def recorded_variables() -> dict[str, str]:
    """Return the variables that can change bits or speed, for run.json; never a token or a path."""
    names = (name for name in sorted(os.environ) if name.startswith(RECORDED))
    return {name: os.environ[name] for name in names if PLAIN.fullmatch(os.environ[name])}


def require_valid_variables() -> None:
    """Check the variables that libraries read as numbers, before the libraries raise an error.

    Raises:
        InputError: One of them is not a number.
    """
    problems = [
        Problem(f"{name} must be a number", repr(os.environ[name]), f"unset {name}")
        for name in NUMBERS
        if os.environ.get(name) and not _is_number(os.environ[name])
    ]
    problems += [
        Problem(f"{name} must be a number of threads, 1 to {MAX_THREADS}", repr(os.environ[name]), f"unset {name}")
        for name in THREAD_COUNTS
        if os.environ.get(name) and not all(map(_is_count, os.environ[name].split(",")))  # a number for each level
    ]
    if problems:
        raise InputError(*problems)


def _replacement(name: str) -> str | None:
    """Return the option or command to use instead of a variable; None if it is not dropped."""
    if name in DROPPED:
        return DROPPED[name]
    for prefix, instead in DROPPED.items():
        if prefix.endswith("_") and name.startswith(prefix):
            return instead
    return None


def _is_count(text: str) -> bool:
    return text.strip().isdecimal() and 1 <= int(text.strip()[:9]) <= MAX_THREADS


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
