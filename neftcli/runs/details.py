"""Details of a run or a sweep, and the differences between two runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import InputError, NeftError, Problem
from neftcli.events import (
    OptionDifference,
    PairedRun,
    RunDetails,
    RunFile,
    RunsCompared,
    RunStatus,
    RunSummary,
    StoredVerdict,
)
from neftcli.recipe.keys import keys
from neftcli.recipe.loading import load_recipe, recipe_differences
from neftcli.recipe.schema import Recipe
from neftcli.runs.baseline import alpha_sweep_command, find_paired_run
from neftcli.runs.catalog import cell_folders, read_record, resolve_run, stored_verdicts, summarize
from neftcli.runs.checkpoints import CheckpointFolder
from neftcli.runs.directory import RECIPE, RunDirectory, find_run
from neftcli.system.files import count_bytes

if TYPE_CHECKING:
    from neftcli.runs.schemas import ListedRecord, TrainingResults

INPUT_HASHES = {"data": "data_sha256", "tokens": "tokens_sha256", "model": "model_fingerprint"}
"""Inputs of a run, and the field of its record with their hash."""
MEASURED_WITH = ("data.", "model.")
"""Options that change which rows and tokens a loss is measured on."""
SECTIONS = tuple(key.path for key in keys() if key.path not in ("name", "about", "output_dir"))
"""Options that are compared: all but those that only name a run."""


def read_details(name: str, parent: Path) -> RunDetails:
    """Read everything about a run or a sweep.

    Raises:
        InputError: There is no such run or sweep.
    """
    folder = resolve_run(name, parent)
    summary = summarize(folder)
    record: Mapping[str, Any] = {}
    with suppress(OSError, ValueError):
        record = read_record(folder)
    recipe = _read_recipe(folder)
    results: TrainingResults | Mapping[str, Any] = record.get("results", {})
    is_run = summary.kind == "run"
    paired = _paired_run(summary, recipe)
    return RunDetails(
        summary=summary,
        started=record.get("started", ""),
        seconds=results.get("seconds"),
        device=record.get("device", ""),
        precision=record.get("precision", ""),
        options=_changed_options(recipe),
        base_train_loss=results.get("base_train_loss"),
        train_loss=results.get("train_loss"),
        noise_to_embedding=record.get("noise_to_embedding"),
        checkpoints=tuple(CheckpointFolder(folder / "checkpoints", 1).complete_steps()) if is_run else (),
        verdicts=tuple(stored_verdicts(folder)) if is_run else (),
        cells=tuple(map(summarize, cell_folders(folder))) if summary.kind == "sweep" else (),
        files=tuple(_list_files(folder)),
        paired_run=paired,
        is_compared=paired is not None and bool(_find_verdict([folder, Path(paired.run)])[0]),
        trust_remote_code=recipe is not None and recipe.model.trust_remote_code,
        base_answer_metrics=results.get("base_answer_metrics", {}),
        answer_metrics=results.get("answer_metrics", {}),
    )


def compare_runs(first: str, second: str, parent: Path) -> RunsCompared:
    """Compare the recipes and the results of two runs.

    Raises:
        InputError: One of them is missing, not a run, or damaged, or both are the same.
    """
    folders = [_require_run(name, parent) for name in (first, second)]
    if folders[0].resolve() == folders[1].resolve():
        raise InputError(Problem("neft runs compare takes two different runs", str(folders[0]), "neft runs"))
    records = [_require_record(folder) for folder in folders]
    recipes = [load_recipe(str(folder / RECIPE)) for folder in folders]
    summaries = [summarize(folder) for folder in folders]
    changed = recipe_differences(recipes[0], recipes[1], SECTIONS)
    different = [name for name, field in INPUT_HASHES.items() if _differ(records[0].get(field), records[1].get(field))]
    comparable = not different and not any(path.startswith(MEASURED_WITH) for path in changed)
    evaluated, verdict = _find_verdict(folders)
    training = recipe_differences(recipes[0], recipes[1])
    with_noise = folders[0] if recipes[0].neftune.alpha else folders[1]
    return RunsCompared(
        first=summaries[0],
        second=summaries[1],
        options=tuple(OptionDifference(path, *values) for path, values in changed.items()),
        different_inputs=tuple(different),
        first_seconds=_seconds(records[0]),
        second_seconds=_seconds(records[1]),
        comparable=comparable,
        verdict=verdict,
        evaluated=evaluated,
        sweep_command=alpha_sweep_command(with_noise, [recipe.neftune.alpha for recipe in recipes], training),
    )


def _require_run(name: str, parent: Path) -> Path:
    folder = resolve_run(name, parent)
    if find_run(str(folder)) is None:
        hint = f"neft runs show {folder.name}    shows its table and its cells"
        raise InputError(Problem("neft runs compare takes runs, and this is a sweep", name, hint))
    return folder


def _require_record(folder: Path) -> ListedRecord:
    """Read the record of a run.

    Raises:
        InputError: It is damaged.
    """
    try:
        return read_record(folder)
    except (OSError, ValueError):
        RunDirectory(folder).record()  # its error has a hint
        raise


def _differ(first: object, second: object) -> bool:
    """Return whether two hashes differ, of which a run that failed early may have none."""
    return first != second and first is not None and second is not None


def _find_verdict(folders: list[Path]) -> tuple[str, StoredVerdict | None]:
    """Return the run and its stored comparison with the other one, the first with the second if there is one."""
    for run, other in (folders, folders[::-1]):
        for verdict in stored_verdicts(run):
            if verdict.baseline == other.name:
                return run.name, verdict
    return "", None


def _seconds(record: ListedRecord) -> float | None:
    return record["results"]["seconds"] if "results" in record else None


def _read_recipe(folder: Path) -> Recipe | None:
    try:
        return load_recipe(str(folder / RECIPE), as_written=True)
    except NeftError:
        return None


def _changed_options(recipe: Recipe | None) -> dict[str, Any]:
    """Return the options that are not the default."""
    if recipe is None:
        return {}
    return {path: value for path, (value, _) in recipe_differences(recipe, Recipe(), SECTIONS).items()}


def _list_files(folder: Path) -> list[RunFile]:
    """Return the files and folders in a folder, with their bytes."""
    files = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            is_real_folder = path.is_dir() and not path.is_symlink()
            files.append(RunFile(path.name + "/" * is_real_folder, count_bytes(path)))
    return files


def _paired_run(summary: RunSummary, recipe: Recipe | None) -> PairedRun | None:
    """Find the run to compare a finished run with."""
    if recipe is None or summary.kind != "run" or summary.status is not RunStatus.FINISHED:
        return None
    return find_paired_run(recipe, Path(summary.path).parent)
