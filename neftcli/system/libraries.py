"""Settings of the libraries: environment variables before they are imported, and the capture of their output."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neftcli.system.environment import drop_overrides, require_valid_variables
from neftcli.system.files import open_without_links
from neftcli.system.hub import require_parsable_endpoint

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
NEVER_TRIM = -1
"""As a threshold, the largest number."""
KEEP_BELOW_BYTES = 2**31 - 1
TOP_PAD_BYTES = 256 * 2**20
SPIN_COUNT = 2000
"""Some tens of microseconds, about the time between two operations."""
CACHES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "XDG_CACHE_HOME")
GC_THRESHOLD = 100_000
"""New objects between searches for cycles. Imports create a million; a search after each 700 takes a second."""
LOGGERS = ("transformers", "datasets", "trl", "peft", "accelerate", "huggingface_hub", "torch", "bitsandbytes")


def prepare_libraries() -> None:
    """Set the environment of the libraries before torch is imported; the user's settings stay.

    Waiting threads of GNU's OpenMP spin briefly and then sleep; those of other implementations, which have no spin
    count, sleep at once. By default GNU's threads spin for milliseconds: with one other busy process on two cores, a
    step takes half as long again or much longer. Without spinning, a step takes a tenth longer on an idle machine.

    Raises:
        InputError: A variable that libraries read as a number is not a number.
    """
    drop_overrides()
    require_valid_variables()
    require_parsable_endpoint()
    _make_cache_paths_absolute()
    _switch_off_extras()
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for OpenMP libraries without a spin count
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on GPUs
    gc.set_threshold(GC_THRESHOLD)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next step, and return whether there is a glibc to do so.

    By default glibc returns every large block to the system, which faults it in again at the next step; on a CPU this
    can take as long as the arithmetic. The setting costs memory. It equals MALLOC_MMAP_THRESHOLD_ and related
    variables; if one of those is set (MALLOC_TRIM_THRESHOLD_=131072 is glibc's default), nothing changes.
    """
    set_by_user = any(name.startswith("MALLOC_") for name in os.environ)
    if set_by_user or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    accepted = [
        libc.mallopt(M_MMAP_THRESHOLD, KEEP_BELOW_BYTES),
        libc.mallopt(M_TRIM_THRESHOLD, NEVER_TRIM),
        libc.mallopt(M_TOP_PAD, TOP_PAD_BYTES),
    ]
    return all(accepted)


def _make_cache_paths_absolute() -> None:
    """Make the paths of the libraries' caches absolute: the current folder changes while a task is loaded."""
    for name in CACHES:
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.expanduser(os.environ[name]))


def _switch_off_extras() -> None:
    """Switch off the libraries' progress bars, telemetry and downloads of code."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("USE_HUB_KERNELS", "0")  # a model's config.json could name code to load


@contextmanager
def capture_library_output(log: Path, *, load: bool = True) -> Iterator[None]:
    """Append log records and warnings of the libraries to a file, and switch off their progress bars.

    Args:
        log: The file.
        load: Import the libraries now, so that their own handlers exist and can be removed.
    """
    file = open_without_links(log, "a", errors="backslashreplace")
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    loggers = [logging.getLogger(name) for name in LOGGERS] if load else []
    if load:
        _disable_progress_bars()
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [], True  # only the root's handler is left
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
        file.close()
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


def _disable_progress_bars() -> None:
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
