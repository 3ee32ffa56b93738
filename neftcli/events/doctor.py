"""Events of `neft doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class CheckLevel(StrEnum):
    """Results of a check."""

    OK = "ok"
    WARNING = "warning"  # training works, but something is slower, missing or unusual
    PROBLEM = "problem"  # training would stop


class CheckId(StrEnum):
    """Stable ids of the checks of `neft doctor`; their display texts are in `neftcli.cli.display.format`."""

    NEFT = "neft"
    PYTHON = "python"
    PACKAGES = "packages"
    EXTRAS = "extras"
    TORCH = "torch"
    BITSANDBYTES = "bitsandbytes"
    CPU = "cpu"
    THREADS = "threads"
    GPU = "gpu"
    MEMORY = "memory"
    VARIABLES = "variables"
    HUB = "hub"
    TOKEN = "token"  # noqa: S105 - an id
    PROXY = "proxy"
    HUB_CACHE = "hub_cache"
    DATASETS_CACHE = "datasets_cache"
    CONVERTED_MODELS = "converted_models"
    TOKENISED_ROWS = "tokenised_rows"
    OUTPUT = "output"
    LOCKS = "locks"
    DISK = "disk"
    TEMPORARY_FILES = "temporary_files"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Checked:
    """Something that training needs was checked.

    Attributes:
        check: Id of the check.
        level: ok, warning or problem; a problem would stop training.
        text: The result.
        hint: Command that fixes it, or an empty string.
    """

    id: ClassVar[str] = "doctor.check"

    check: CheckId
    level: CheckLevel
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks are done.

    Attributes:
        checks: Number of checks.
        warnings: Number of warnings.
        problems: Number of problems; with any, the command exits with 1.
    """

    id: ClassVar[str] = "doctor.finished"

    checks: int
    warnings: int
    problems: int


@dataclass(frozen=True, slots=True)
class CacheCleared:
    """Files in neft's cache were removed.

    Attributes:
        folder: The cache folder.
        freed_bytes: Bytes of the removed files.
        in_use: Entries that were kept, because a process is writing them.
    """

    id: ClassVar[str] = "doctor.cache_cleared"

    folder: str
    freed_bytes: int
    in_use: tuple[str, ...]
