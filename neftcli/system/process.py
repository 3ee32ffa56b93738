"""Settings of the process that must come before the libraries are imported."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys

from neftcli.system.environment import drop_overrides, require_readable
from neftcli.system.hub import require_importable

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
NEVER = -1
"""As a threshold, the largest number there is."""
KEEP_BELOW = 2**31 - 1
SPINS = 2000
"""Some tens of microseconds, as long as it is from one operation to the next."""
TOP_PAD = 256 * 2**20
CACHES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "XDG_CACHE_HOME")
RARELY = 100_000
"""New objects after which Python looks for cycles. Libraries make a million; looking after each 700 takes a second."""


def prepare_process() -> None:
    """Set what must be set before torch is imported; settings of the user stay.

    Waiting threads of GNU's OpenMP spin for a moment and then sleep; those of others, which know no number of spins,
    sleep at once. GNU's default is to spin for milliseconds: with one other busy process on two cores an update takes
    half as long again, or much longer. Without spinning at all it takes a tenth longer where the machine is idle.

    Raises:
        InputError: A variable that libraries read as a number is none.
    """
    drop_overrides()
    require_readable()
    require_importable()
    _fix_caches()
    _quiet_libraries()
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for libraries other than GNU's, which knows spins
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products on a GPU add in one order, too
    gc.set_threshold(RARELY)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for the next step, and return whether there is a glibc.

    By default it returns every large block to the system and has it faulted in again at the next step; on CPU that
    can take as long as the arithmetic. The same as MALLOC_MMAP_THRESHOLD_ and its like, set from inside; where one of
    those is set already (MALLOC_TRIM_THRESHOLD_=131072 is glibc's own default) nothing is changed. It costs memory.
    """
    set_already = any(name.startswith("MALLOC_") for name in os.environ)
    if set_already or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    done = [
        libc.mallopt(M_MMAP_THRESHOLD, KEEP_BELOW),
        libc.mallopt(M_TRIM_THRESHOLD, NEVER),
        libc.mallopt(M_TOP_PAD, TOP_PAD),
    ]
    return all(done)


def _fix_caches() -> None:
    """Make the paths of the libraries' caches absolute: the current folder changes while a task is loaded."""
    for name in CACHES:
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.expanduser(os.environ[name]))


def _quiet_libraries() -> None:
    """Switch the libraries' progress bars, telemetry and downloads of code off."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("USE_HUB_KERNELS", "0")  # a model's config.json could name code to load
