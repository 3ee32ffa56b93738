"""Catalog of the runs and sweeps below a folder: what each of them is, how far it is, and what was measured.

Everything is read, and nothing is written. A folder may be somebody else's, or damaged: each file is read by its
schema, and a folder that can't be read is listed with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from neftcli.errors import InputError, NeftError, Problem
from neftcli.events import Method, RunsListed, RunStatus, RunSummary, StoredVerdict
from neftcli.metrics.registry import HELD_OUT_LOSS
from neftcli.recipe.loading import load_recipe
from neftcli.runs.directory import CELLS, LOCK, METRICS, RECIPE, RECORD, RunDirectory, find_run, find_sweep, join_names
from neftcli.runs.schemas import (
    ListedRecord,
    MetricsLine,
    Record,
    ReportedEvaluation,
    ReportedSweep,
    parse_json,
)
from neftcli.system.files import count_bytes
from neftcli.system.locks import is_locked
from neftcli.system.paths import closest_path, exists, is_folder

DEFAULT_PARENT = Path("runs")
EVALUATION_FOLDER = "evaluation"
SWEEP_REPORT = "sweep.json"
BASELINE = "baseline"
TAIL_BYTES = 65_536
"""Bytes at the end of metrics.jsonl that are read for the last step."""
MAX_REPORT_BYTES = 64 * 2**20
"""Larger JSON files are not neft's."""
LIST = "neft runs    lists runs and sweeps"


def read_catalog(parent: Path) -> RunsListed:
    """Summarise every folder in `parent`, the newest first; hidden folders are left out.

    Raises:
        InputError: `parent` is missing, not a folder, or can't be read.
    """
    if not exists(parent) and parent == DEFAULT_PARENT:
        return RunsListed(str(parent), ())
    if not is_folder(parent):
        message = "this is a file, not a folder with runs" if exists(parent) else "there is no such folder"
        raise InputError(Problem(f"--output-dir: {message}", str(parent), LIST, closest_path(parent)))
    try:
        folders = [folder for folder in parent.iterdir() if not folder.name.startswith(".") and is_folder(folder)]
    except OSError as error:
        raise InputError(Problem(f"{parent}: this folder can't be read", error.strerror or str(error))) from None
    summaries = [summarize(folder) for folder in sorted(folders)]
    return RunsListed(str(parent), tuple(sorted(summaries, key=_timestamp, reverse=True)))


def resolve_run(name: str, parent: Path) -> Path:
    """Find a run or a sweep by its path or its name below `parent`; a sweep's `best` is the run that it points to.

    Raises:
        InputError: There is neither.
    """
    folder = find_run(name, parent) or find_sweep(name, parent)
    if folder is None:
        raise unknown_run(name, parent)
    return folder


def unknown_run(name: str, parent: Path) -> InputError:
    """Return the error for a name that is neither a run nor a sweep."""
    names: list[str] = []
    with suppress(OSError):
        for folder in sorted(parent.iterdir()):
            if find_run(str(folder)) is not None or find_sweep(str(folder)) is not None:
                names.append(folder.name)
    near = "".join(get_close_matches(Path(name).name, names, n=1, cutoff=0.5))
    hint = f"neft runs    in {parent}: {join_names(names)}" if names else "neft train    starts a run"
    message = "this folder is neither a run nor a sweep" if is_folder(Path(name)) and name else "no such run or sweep"
    return InputError(Problem(message, name or "an empty name", hint, near))


def summarize(folder: Path) -> RunSummary:
    """Summarise a run, a sweep, or a folder that is neither."""
    try:
        if (folder / RECORD).is_file():
            return _summarize_run(folder)
        if find_sweep(str(folder)) is not None:
            return _summarize_sweep(folder)
        return _other(folder, RunStatus.OTHER, _explain_other(folder))
    except (OSError, ValueError) as error:
        return _other(folder, RunStatus.DAMAGED, getattr(error, "strerror", None) or str(error))


def read_record(folder: Path) -> ListedRecord:
    """Read the record of a run.

    Raises:
        OSError: It can't be read.
        ValueError: It is damaged.
    """
    return parse_json(_read_limited(folder / RECORD), ListedRecord)


def read_sweep_report(folder: Path) -> ReportedSweep | None:
    """Read the report of a sweep; None if there is none.

    Raises:
        OSError: It can't be read.
        ValueError: It is damaged.
    """
    if not (folder / SWEEP_REPORT).is_file():
        return None
    return parse_json(_read_limited(folder / SWEEP_REPORT), ReportedSweep)


def stored_verdicts(folder: Path) -> list[StoredVerdict]:
    """Return the comparisons of a run with baselines by `neft eval`, the newest first; damaged reports are left out."""
    reports: list[tuple[float, Path]] = []
    with suppress(OSError):
        reports = [(report.stat().st_mtime, report) for report in (folder / EVALUATION_FOLDER).glob("*/report.json")]
    verdicts = []
    for _, report in sorted(reports, reverse=True):
        with suppress(OSError, ValueError):
            verdict = _read_verdict(report)
            if verdict is not None:
                verdicts.append(verdict)
    return verdicts


def cell_folders(sweep: Path) -> list[Path]:
    """Return the runs in a sweep's folder, in the order of their names."""
    with suppress(OSError):
        return sorted(record.parent for record in (sweep / CELLS).glob(f"[!.]*/{RECORD}"))
    return []


def _summarize_run(folder: Path) -> RunSummary:
    try:
        record = read_record(folder)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if not (folder / RECIPE).is_file():
            return _other(folder, RunStatus.OTHER, f"{RECORD} is not neft's ({reason}), and {RECIPE} is missing")
        return replace(_other(folder, RunStatus.DAMAGED, f"{RECORD}: {reason}"), kind="run")
    status = RunStatus(record["status"])
    if status is RunStatus.RUNNING and not is_locked(folder / LOCK):
        status = RunStatus.KILLED
    summary = RunSummary(
        str(folder),
        "run",
        status,
        _run_changed(folder, record),
        count_bytes(folder),
        steps=_last_step(folder / METRICS),
    )
    if "neftune" in record:
        summary = replace(summary, alphas=(record["neftune"]["alpha"],))
    if "seed" in record:
        summary = replace(summary, seeds=(record["seed"],))
    summary = _add_losses(summary, folder, record)
    summary = replace(summary, verdict=next(iter(stored_verdicts(folder)), None))
    return _add_model(summary, folder, record)


def _add_model(summary: RunSummary, folder: Path, record: ListedRecord) -> RunSummary:
    """Add model and method, of records without them from the recipe."""
    if not (folder / RECIPE).is_file():
        return replace(summary, status=RunStatus.DAMAGED, problem=f"{RECIPE} is missing")
    if "model" in record and "method" in record:
        method = Method(record["method"]["type"], record["method"]["r"])
        return replace(summary, model=record["model"], method=method)
    try:
        recipe = load_recipe(str(folder / RECIPE), as_written=True)
    except NeftError as error:
        return replace(summary, problem=error.problems[0].message)
    return replace(summary, model=recipe.model.name, method=recipe.method())


def _add_losses(summary: RunSummary, folder: Path, record: Record) -> RunSummary:
    """Add the losses of the record, or of an unfinished run those of its evaluations so far."""
    if "results" in record:
        results = record["results"]
        base, tuned = results.get("base_held_out_loss"), results.get("held_out_loss")
        return replace(summary, base_held_out_loss=base, held_out_loss=tuned)
    evaluations = RunDirectory(folder).evaluations()
    if not evaluations:
        return summary
    base = evaluations[0].get("held_out_loss") if evaluations[0]["step"] == 0 else None
    latest = evaluations[-1].get("held_out_loss") if evaluations[-1]["step"] else None
    return replace(summary, base_held_out_loss=base, held_out_loss=latest)


def _summarize_sweep(folder: Path) -> RunSummary:
    changed = _latest_change(folder / RECIPE, folder / SWEEP_REPORT, folder / CELLS)
    summary = RunSummary(str(folder), "sweep", RunStatus.UNFINISHED, changed, count_bytes(folder))
    finished = 0
    for run in cell_folders(folder):
        with suppress(OSError, ValueError):
            finished += read_record(run)["status"] == "finished"
    summary = replace(summary, steps=finished)
    try:
        recipe = load_recipe(str(folder / RECIPE), as_written=True)
        report = read_sweep_report(folder)
    except NeftError as error:
        return replace(summary, status=RunStatus.DAMAGED, problem=error.problems[0].message)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return replace(summary, status=RunStatus.DAMAGED, problem=f"{SWEEP_REPORT}: {reason}")
    seeds = range(recipe.training.seed, recipe.training.seed + recipe.sweep.seeds)
    summary = replace(summary, model=recipe.model.name, method=recipe.method(), seeds=tuple(seeds))
    summary = replace(summary, alphas=tuple(sorted({0.0, *recipe.sweep.alphas})))
    if report is not None:
        summary = replace(
            summary,
            total_steps=len(report["cells"]),
            recommended=report.get("recommended", ""),
            conclusion=tuple(report.get("conclusion", ())),
        )
        if report["failed"]:
            summary = replace(summary, status=RunStatus.FAILED)
        elif not report["unfinished"]:
            summary = replace(summary, status=RunStatus.FINISHED)
    if is_locked(folder / LOCK):
        return replace(summary, status=RunStatus.RUNNING)
    return summary


def _other(folder: Path, status: RunStatus, problem: str) -> RunSummary:
    return RunSummary(str(folder), "other", status, _latest_change(folder), count_bytes(folder), problem=problem)


def _explain_other(folder: Path) -> str:
    """Return why a folder is neither a run nor a sweep."""
    names = {item.name for item in folder.iterdir()}
    if names and names <= {EVALUATION_FOLDER, LOCK}:
        return "evaluations of a model that is not a run"
    if "verdicts.jsonl" in names:
        return "replies of a judge"
    return f"{RECORD} is missing" if names else "empty"


def _read_limited(file: Path) -> bytes:
    """Read a JSON file of usual size.

    Raises:
        ValueError: It is too large.
        OSError: It can't be read.
    """
    if file.stat().st_size > MAX_REPORT_BYTES:
        raise ValueError(f"larger than {MAX_REPORT_BYTES // 2**20} MiB")
    return file.read_bytes()


def _read_verdict(report: Path) -> StoredVerdict | None:
    """Read the comparison with a baseline in a report; None if it has none.

    Raises:
        OSError: It can't be read.
        ValueError: It is damaged.
    """
    content = parse_json(_read_limited(report), ReportedEvaluation)
    baseline = next((model["name"] for model in content["models"] if model["role"] == BASELINE), None)
    compared = [comparison for comparison in content["comparisons"] if comparison["against"] == BASELINE]
    if baseline is None or not compared:
        return None
    chosen = next((comparison for comparison in compared if comparison["metric"] == HELD_OUT_LOSS), compared[0])
    conclusion = tuple(content.get("conclusion", ()))
    return StoredVerdict(baseline, chosen["metric"], chosen["verdict"], str(report.parent), conclusion)


def _last_step(metrics: Path) -> int | None:
    """Return the step of the last complete line of metrics.jsonl; None if there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError):
            return parse_json(line, MetricsLine)["step"]
    return None


def _run_changed(folder: Path, record: ListedRecord) -> str:
    """Return when a run ended; of an unfinished run, when it was last written."""
    with suppress(ValueError, OverflowError):  # no time, or one outside the calendar
        ended = datetime.fromisoformat(record.get("finished") or "")
        return ended.astimezone(UTC).isoformat(timespec="seconds")
    return _latest_change(folder / RECORD, folder / METRICS)


def _latest_change(*paths: Path) -> str:
    """Return the latest time at which a file was written, in ISO 8601; empty if there is none."""
    times = list(_modification_times(paths))
    if not times:
        return ""
    return datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds")


def _modification_times(paths: tuple[Path, ...]) -> Iterator[float]:
    for path in paths:
        with suppress(OSError):
            yield path.stat().st_mtime


def _timestamp(summary: RunSummary) -> float:
    return datetime.fromisoformat(summary.changed).timestamp() if summary.changed else 0.0
