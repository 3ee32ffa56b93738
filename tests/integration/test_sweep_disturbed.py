"""Sweeps on a tiny model with changed files, a full disk or a missing cluster, and one that stops early.

Oracles: the same recipe trained by `neft train` alone, the files of the sweep before, a disk that is really full, and
the number of cells of a plan.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result, events, file_system
from tests.tiny_sweep import hash_cells, start_sweep, sweep_arguments, wait_for, weights_hash

Neft = Callable[..., Result]


def read_evaluations(folder: Path) -> dict[str, Any]:
    """Return the evaluations of a sweep's cells, without their durations."""
    found = {}
    for file in sorted(folder.glob("cells/*/evaluation/cell.json")):
        found[file.parts[-3]] = json.loads(file.read_text())
        found[file.parts[-3]].pop("seconds")
    return found


def modification_times(folder: Path) -> dict[Path, int]:
    """Return the modification times of the weights of a sweep's cells."""
    return {file: file.stat().st_mtime_ns for file in folder.glob("cells/*/model/*.safetensors")}


def require_bit_identical_alone(neft: Neft, cell: Path, output: Path) -> None:
    """Train a cell's recipe by `neft train`; the weights must be bit-identical."""
    assert neft("train", "--recipe", cell / "recipe.yaml", "--output-dir", output).code == 0
    assert weights_hash(output / cell.name) == weights_hash(cell)


@pytest.mark.slow
def test_sweep_alpha_evaluates_trained_cells_and_rejects_changed_rows(
    neft: Neft, tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    rows, held_out = tmp_path / "rows.jsonl", tmp_path / "held_out.jsonl"
    lines = rows_file.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:40]))
    held_out.write_text("".join(lines[40:]))
    arguments = sweep_arguments(tiny_folder("llama"), rows, tmp_path / "runs")
    assert neft(*arguments, "--held-out", held_out, "--seeds", "1").code == 0
    folder = tmp_path / "runs" / "tiny-sweep"
    measured, stamps = read_evaluations(folder), modification_times(folder)
    recipe = (folder / "recipe.yaml").read_text()
    # An evaluation is missing, as after a kill, or damaged.
    (folder / "cells" / "tiny-a0-s0" / "evaluation" / "cell.json").unlink()
    (folder / "cells" / "tiny-a5-s0" / "evaluation" / "cell.json").write_text("{")
    stream = events(neft("sweep-alpha", folder, "--json").out)
    assert {one["status"] for one in stream if one["event"] == "sweep.cell"} == {"starting", "evaluating", "finished"}
    assert read_evaluations(folder) == measured
    assert modification_times(folder) == stamps
    # The same rows in a different order could not be paired with the old results.
    for file in (held_out, rows):
        before = file.read_text()
        file.write_text("".join(before.splitlines(keepends=True)[::-1]))
        result = neft("sweep-alpha", folder, "--seeds", "2")
        assert result.code == 2
        assert "the rows changed since cells were trained" in result.err
        assert "tiny-a0-s0, tiny-a5-s0" in result.err
        assert (folder / "recipe.yaml").read_text() == recipe
        assert modification_times(folder) == stamps
        file.write_text(before)
    assert neft("sweep-alpha", folder, "--seeds", "2").code == 0
    assert modification_times(folder).items() > stamps.items()


@pytest.mark.slow
def test_sweep_alpha_early_stopping_with_two_workers(
    neft: Neft,
    tiny_folder: Callable[[str], Path],
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Noise that is harmful is stopped after three of five seeds; a resumed sweep has the same result."""
    monkeypatch.setattr("neftcli.sweep.engines.local_engine.list_devices", lambda: [None, None])
    arguments = sweep_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs", alphas="0,100")
    seeds = ["--set", "training.max_steps=12", "--seeds", "5", "--early-stopping", "always"]
    result = neft(*arguments, *seeds, "--set", "sweep.answers=false", "--json")
    assert result.code == 0, result.err
    stream = events(result.out)
    folder, report = tmp_path / "runs" / "tiny-sweep", stream[-1]
    notices = [one["message"] for one in stream if one["event"] == "notice"]
    assert any(notice.startswith("alpha 100 gets no further seeds: worse than alpha 0 by ") for notice in notices)
    [stopped] = [notice for notice in notices if notice.startswith("Stopped early, after 3 of 5 seeds: ")]
    assert stopped in report["conclusion"]
    assert [(arm["alpha"], arm["dropped"], arm["seeds"]) for arm in report["arms"]] == [(0, False, 3), (100, True, 3)]
    assert (report["saved"], report["unfinished"], len(hash_cells(folder))) == (4, 0, 6)
    rows = list(csv.DictReader((folder / "cells.csv").read_text().splitlines()))
    assert [row["status"] for row in rows].count("not_needed") == 4
    # Two cells run at a time, each bit-identical to the same training alone.
    states, together = dict[str, str](), 0
    for one in stream:
        if one["event"] == "sweep.cell":
            states[one["key"]] = one["status"]
            together = max(together, sum(state == "starting" for state in states.values()))
    assert together == 2
    for name in ("tiny-a100-s2", "tiny-a0-s1"):
        assert (
            neft("train", "--recipe", folder / "cells" / name / "recipe.yaml", "--output-dir", tmp_path / "one").code
            == 0
        )
        assert weights_hash(tmp_path / "one" / name) == weights_hash(folder / "cells" / name)
    stamps = modification_times(folder)
    again = events(neft("sweep-alpha", folder, "--json").out)[-1]
    assert (again["arms"], again["saved"]) == (report["arms"], 4)
    assert modification_times(folder) == stamps


@pytest.mark.slow
def test_sweep_alpha_full_disk_keeps_finished_cells(
    neft: Neft, tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    arguments = [*sweep_arguments(tiny_folder("llama"), rows_file, small), "--set", "sweep.answers=false"]
    with file_system(small, "-t", "tmpfs", "-o", "size=30m", "tmpfs"):
        folder = small / "tiny-sweep"
        process = start_sweep(arguments)
        wait_for(lambda: (folder / "cells" / "tiny-a0-s0" / "evaluation" / "cell.json").is_file(), process)
        with (small / "filler").open("wb") as file:
            try:
                while True:
                    os.write(file.fileno(), bytes(4096))
            except OSError:
                pass
        output = "".join(process.communicate(timeout=120))
        assert process.returncode == 1, output
        assert "the disk is full; finished cells are kept" in output
        assert f"neft sweep-alpha {folder}" in output
        assert "alpha 0: seeds=1" in output, "results so far are shown"
        assert "unexpected error" not in output
        assert "Traceback" not in output
        stamps = {file: stamp for file, stamp in modification_times(folder).items() if "a0-s0" in str(file)}
        assert stamps
        (small / "filler").unlink()
        assert neft(*arguments).code == 0
        assert modification_times(folder).items() >= stamps.items()
        assert len(read_evaluations(folder)) == 4
        require_bit_identical_alone(neft, folder / "cells" / "tiny-a5-s1", tmp_path / "alone")


@pytest.mark.slow
def test_sweep_alpha_rejects_unknown_tasks(
    neft: Neft, tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="the extra neftcli[tasks] is not installed")
    arguments = sweep_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs")
    result = neft(*arguments, "--metric", "tasks", "--tasks", "no_such_task")
    assert result.code == 2
    assert "lm-evaluation-harness has no such task" in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.enable_socket
def test_sweep_alpha_missing_cluster_keeps_all_files(
    neft: Neft, tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    """Neither a folder whose cells were deleted nor a missing one is changed."""
    pytest.importorskip("ray", reason="the extra neftcli[ray] is not installed")
    arguments = sweep_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs")
    folder = tmp_path / "runs" / "tiny-sweep"
    for exists in (False, True):
        if exists:
            (folder / "judge").mkdir(parents=True)
            (folder / "judge" / "verdicts.jsonl").write_text("{}\n")
            (folder / "notes.txt").write_text("mine")
        result = neft(*arguments, "--engine", "ray", "--ray-address", "127.0.0.1:1")
        assert result.code == 2
        assert "there is no Ray cluster that can be joined" in result.err
        remaining = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {".lock"}
        assert remaining == ({"judge/verdicts.jsonl", "notes.txt"} if exists else set())
        assert folder.exists() is exists
