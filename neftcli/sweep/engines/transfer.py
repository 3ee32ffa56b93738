"""Runs on their way between the sweep's folder and the nodes of a cluster: packed as tar, unpacked, and renamed.

A task trains in a temporary folder of its node, by a recipe whose paths lead there. What names the recipe in a run
(recipe.yaml, its hash, the model card, the newest checkpoint) is written anew there, when it comes and before it goes.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import InputError
from neftcli.recipe.loading import fingerprint, to_yaml
from neftcli.recipe.relative_paths import FIELD
from neftcli.runs.checkpoints import Checkpoints
from neftcli.runs.directory import CELLS, RECIPE, RECORD, RunDirectory
from neftcli.sweep.cell import MEASURED, finished_run, measured, settings_key, stopped_run
from neftcli.system.files import atomic_write, remove

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe

ARRIVING = ".arriving-"
WORKPLACE = "neft-cell-"
YOUNG = 60.0  # seconds in which a workplace may not be held yet


def for_a_node(recipe: Recipe) -> tuple[Recipe, dict[str, Path]]:
    """Return the recipe with a node's paths, and the files that it needs there by their places.

    A place has the hash of what the file holds, so that a worker knows that rows are those that it has read already.
    """
    files: dict[str, Path] = {}

    def path(name: str | None, *, stays: bool = False) -> Any:
        file = Path(name).expanduser() if name else None
        if name is None or file is None or not file.exists():
            return name
        if file.is_dir() or stays:
            return str(file.absolute())
        place = f"files/{sha256(file.read_bytes()).hexdigest()[:16]}/{file.name}"
        files[place] = file
        return place

    model, data, evaluation = recipe.model, recipe.data, recipe.evaluation
    tasks = (path(task, stays=True) if Path(task).suffix in (".yaml", ".yml") else task for task in evaluation.tasks)
    there = replace(
        recipe,
        output_dir=CELLS,
        model=replace(model, name=path(model.name, stays=True), chat_template=path(model.chat_template)),
        data=replace(
            data,
            source=path(data.source),
            sources=tuple(replace(source, source=path(source.source)) for source in data.sources),
            held_out_source=path(data.held_out_source),
        ),
        evaluation=replace(evaluation, tasks=tuple(tasks)),
    )
    return there, files


def begun_run(cells: Path, recipe: Recipe) -> RunDirectory | None:
    """Return the run of a recipe that is finished or can be resumed; None if there is nothing to keep."""
    key = fingerprint(recipe)
    run = finished_run(cells, key)
    if run is None and (resume_state := stopped_run(cells, key, recipe)) is not None:
        run = resume_state.directory
    return run


def name_the_recipe(run: RunDirectory, recipe: Recipe, other: Recipe) -> None:
    """Write `recipe` in the place of `other` wherever a run names its recipe; files that are not there yet are left.

    Of its checkpoints the newest one that verifies is kept.
    """
    content = measured(run, other)  # what was measured by other settings stays theirs
    if content is not None:
        run.write_json(MEASURED, content | {"settings": settings_key(recipe)})
    run.write_text(RECIPE, to_yaml(recipe))
    record = {**run.record(), "recipe_sha256": fingerprint(recipe)}
    record.pop(FIELD, None)  # the folder on the node means nothing here: paths start from the current folder
    run.write_json(RECORD, record)
    newest, _ = Checkpoints(run.checkpoints, keep=sys.maxsize).newest()
    if newest is not None:
        atomic_write(newest.path / RECIPE, to_yaml(recipe))
        facts = {key: value for key, value in newest.manifest.items() if key not in ("format", "step", "files")}
        Checkpoints(run.checkpoints, keep=1).publish(newest.step, facts | {"recipe_sha256": fingerprint(recipe)})
    card = run.model / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8").replace(fingerprint(other), fingerprint(recipe))
        atomic_write(card, text.replace(other.data.source_name(), recipe.data.source_name()))


def packed(folder: Path) -> bytes:
    """Return a folder as tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(folder, arcname=".")
    return stream.getvalue()


def unpacked(content: bytes, folder: Path) -> None:
    """Write what `packed` returned into a new folder.

    Raises:
        OSError: It can't be written.
        TarError: It is damaged, or would write elsewhere.
    """
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(folder, filter="data")


def arrived(content: bytes, name: str, folder: Path, recipe: Recipe) -> Path:
    """Unpack a run beside the cells, move it among them, and remove the run that it resumed.

    One that another process trains by now stays, as do those that are damaged or were begun otherwise.

    Raises:
        InputError: Its place can't be made.
        OSError: It can't be written.
        TarError: It is damaged.
    """
    cells = folder / CELLS
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=ARRIVING, dir=folder) as outer:
        place = Path(outer) / "run"
        unpacked(content, place)
        before = None
        with suppress(InputError):  # it is held
            before = begun_run(cells, recipe)
        cells.mkdir(exist_ok=True)
        run = RunDirectory(place)
        run.assign_name(cells, name)
    if before is not None:
        remove(before.path)
    if run.path.name != name and not (cells / name).exists():
        run = RunDirectory(run.path.rename(cells / name))
    return run.path


def clear_arriving(folder: Path) -> None:
    """Remove the runs that were on their way when a sweep was killed."""
    for rest in folder.glob(f"{ARRIVING}*"):
        remove(rest)


@contextmanager
def workplace() -> Iterator[Path]:
    """Yield a temporary folder for a cell, and remove those that killed tasks left on this node."""
    from filelock import FileLock

    parent = Path(tempfile.gettempdir())
    for rest in parent.glob(f"{WORKPLACE}*"):
        with suppress(OSError):  # another task's, or another person's
            if time.time() - rest.stat().st_mtime > YOUNG:
                with FileLock(rest / ".lock", timeout=0):
                    remove(rest)
    with tempfile.TemporaryDirectory(prefix=WORKPLACE) as folder, FileLock(Path(folder) / ".lock"):
        yield Path(folder)
