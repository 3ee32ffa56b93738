"""The folder of a sweep: who is at work in it, of what model and rows it is, and what of it stays."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import InputError, Interrupted, NeftError, Problem
from neftcli.recipe.trust import require_typed_trust
from neftcli.runs.directory import CELLS, LOCK, RECIPE, RECORD, RunDirectory, find_run, find_sweep
from neftcli.sweep.cell import records
from neftcli.system.files import remove, remove_stale_files, require_no_links
from neftcli.system.paths import closest_path, exists, expand_home

if TYPE_CHECKING:
    from neftcli.data.prepare import ExampleSplits
    from neftcli.models.registry import ModelReference
    from neftcli.recipe.schema import Recipe
    from neftcli.recipe.yaml_file import Layer
    from neftcli.sweep.plan import Cell

BEGIN = "the same command again"
BEGINS = "neft sweep-alpha --recipe quickstart    begins one"
PLOTS = "plots"
BEST, BEST_BESIDE = "best", ".best"
"""The only links of a sweep, to its recommended run: replaced and never followed."""
OF_THE_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EISDIR)
"""Errors of files that a person can mend; a missing file is a fault of neft."""
INPUTS = {"data_sha256": "the rows", "model_fingerprint": "the model's files"}
"""Fields of a run's record that describe its inputs."""


def require_free(folder: Path) -> None:
    """Check that no other sweep is at work in the folder, before rows are read; `held` decides.

    Raises:
        InputError: Another sweep holds it.
    """
    if (folder / ".lock").is_file():
        with held(folder):
            pass


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a sweep's folder and hold it; if nothing is started, remove what was made, and nothing else.

    Raises:
        InputError: Another sweep is at work in it, it can't be written, or it holds links to elsewhere.
    """
    from filelock import FileLock, Timeout

    require_no_links(folder, allowed=(folder / BEST, folder / BEST_BESIDE))
    made: list[Path] = []
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            Problem(f"{folder}: another sweep is at work in this folder", "", "wait, or --name for another folder")
        ) from None
    except OSError as error:
        raise InputError(
            Problem(f"{folder} can't be written", error.strerror or str(error), "--output-dir FOLDER")
        ) from None
    try:
        for place in (folder, folder / PLOTS):
            remove_stale_files(place)
        yield
    except InputError:
        if folder in made and not any((folder / CELLS).glob("*")):
            remove(folder)
            with suppress(OSError):  # somebody else has begun something there
                for parent in made[1:]:
                    parent.rmdir()
        raise
    finally:
        lock.release()


@contextmanager
def explained(folder: Path, again: str) -> Iterator[None]:
    """Explain what ends a sweep early, and what is kept.

    Args:
        folder: Of the sweep.
        again: The command that goes on, once the sweep's recipe is in its folder.

    Raises:
        Interrupted: It was stopped at once.
        NeftError: The disk is full, or the system refuses to read or write a file.
    """
    from neftcli.training.failures import is_disk_full

    try:
        yield
    except KeyboardInterrupt:
        again = again if find_sweep(str(folder)) else BEGIN
        raise Interrupted(Problem("stopped at once; what is done is kept", hint=again)) from None
    except OSError as error:
        full = is_disk_full(error)
        if not full and (error.errno not in OF_THE_DISK or not error.filename):
            raise
        again = again if find_sweep(str(folder)) else BEGIN
        where = f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
        what = "the disk is full" if full else "a file can't be read or written"
        mend = "make room" if full else "mend its rights"
        raise NeftError(Problem(f"{what}; what is done is kept", where, f"{mend}, then {again}")) from error


def sweep_of(name: str, option: str = "") -> Path:
    """Find the folder of the sweep that was typed.

    Args:
        name: Its folder or name.
        option: The option that it was typed for, "--pilot"; empty for the argument of `neft sweep-alpha`.

    Raises:
        InputError: There is none; the nearest is named.
    """
    where = f"{option}: " if option else ""
    folder = find_sweep(name)
    if folder is not None:
        return folder
    if exists(expand_home(name) / LOCK) and not exists(expand_home(name) / RECORD):
        told = "this sweep was stopped before it was begun"
        raise InputError(Problem(told, name, "the command that began it, once more"))
    run = find_run(name)
    above = find_sweep(str(run.parent.parent)) if run is not None else find_sweep(f"{name}-sweep")
    near = str(above) if above is not None else closest_path(Path("runs") / name) or closest_path(Path(name))
    if near and find_sweep(near) is not None:
        again = f"{option or 'neft sweep-alpha'} {shlex.quote(near)}"
        raise InputError(Problem(f"{where}this is no sweep", name, again, near))
    if run is not None:
        what = "this is a run, not a sweep"
    elif os.path.isdir(name):  # unlike Path.is_dir it takes any text
        what = "there is no sweep in this folder"
    else:
        what = "there is no such sweep"
    hint = f"{option} runs/NAME-sweep    a sweep that was run before" if option else BEGINS
    raise InputError(Problem(f"{where}{what}", name or "an empty name", hint))


def layers_of(folder: Path, typed: Sequence[Layer]) -> list[Layer]:
    """Return the layers of a sweep that is resumed: its recipe, and what was typed over it.

    Raises:
        InputError: It would run a model's own code unasked.
    """
    from neftcli.recipe.loading import file_layers, resolve

    layers = [*file_layers(str(folder / RECIPE)), *typed]
    command = shlex.join(("neft", "sweep-alpha", str(folder)))
    require_typed_trust(resolve(layers), typed, folder / RECIPE, command)
    return layers


def require_same_sweep(folder: Path, base: Recipe) -> None:
    """Check that the sweep which the folder holds differs by its `sweep` section and by what is measured, at most.

    Raises:
        InputError: Its cells are trained otherwise: these would take their place, or stand in one table with them.
    """
    from neftcli.recipe.loading import differences, load_recipe

    file = folder / RECIPE
    if not file.is_file() or not any((folder / CELLS).glob(f"[!.]*/{RECORD}")):  # a damaged record counts, too
        return
    found = differences(load_recipe(str(file)), base)
    found.pop("neftune.alpha", None)  # each cell has its own
    if found:
        raise InputError(
            Problem(
                f"{folder}: this folder holds a sweep whose cells are trained otherwise",
                ", ".join(f"{path} {now} (there {there})" for path, (there, now) in found.items()),
                "--name NAME for a folder of its own",
            )
        )


def require_same_inputs(cells: Sequence[Cell], reference: ModelReference, examples: ExampleSplits) -> None:
    """Compare the rows and model of the cells that were begun with what is at the same paths now.

    A model of the hub is known by its commit, and looked at only when the cells are compared.

    Raises:
        InputError: A file was changed; other cells would be of something else.
    """
    from neftcli.data.prepare import data_fingerprint as of_rows
    from neftcli.models.loading import model_fingerprint

    keys = {cell.key for cell in cells}
    begun = [found for found in records(Path(cells[0].recipe.output_dir)) if found[1].get("recipe_sha256") in keys]
    if not begun:
        return
    now = {"data_sha256": of_rows(examples.train, examples.held_out)}
    if reference.kind != "hub":
        now["model_fingerprint"] = model_fingerprint(reference, None)
    problems = []
    for name, value in now.items():
        others = [run.path.name for run, record in begun if record.get(name) not in (None, value)]
        if others:
            problems.append(
                Problem(
                    f"{INPUTS[name]} changed since cells were trained, so others can't stand in one table with them",
                    listed(others),
                    f"{INPUTS[name]} of then, or --name NAME for a folder of its own",
                )
            )
    if problems:
        raise InputError(*problems)


def require_alike(measured: Mapping[str, tuple[RunDirectory, Mapping[str, Any]]], again: str) -> None:
    """Check that all cells were trained and measured on the same rows, before they are paired row by row.

    Args:
        measured: Key of a cell to its run and what was measured of it.
        again: The command that goes on.

    Raises:
        NeftError: Something was changed while the sweep was at work.
    """
    kinds: dict[str, dict[str, list[str]]] = {}
    for run, content in measured.values():
        record = run.record()
        facts = {what: str(record.get(name)) for name, what in INPUTS.items()}
        facts["the held-out rows"] = repr((content["prompts"], content["references"]))
        for what, value in facts.items():
            kinds.setdefault(what, {}).setdefault(value, []).append(run.path.name)
    for what, groups in kinds.items():
        if len(groups) > 1:
            raise NeftError(
                Problem(
                    f"{what} changed between cells, so they can't stand in one table",
                    "; others: ".join(map(listed, groups.values())),
                    f"rm -r those of them that are not wanted, below cells/, then {again}",
                )
            )


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
