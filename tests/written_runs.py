"""Folders of runs and sweeps, written by hand in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from neftcli.recipe.loading import recipe_fingerprint, to_yaml
from neftcli.recipe.schema import Adapter, Model, Neftune, Recipe, Training

HASHES = {"data_sha256": "d" * 64, "tokens_sha256": "t" * 64, "model_fingerprint": "sha256 m"}


def recipe_of(alpha: float = 5.0, seed: int = 0, **options: Any) -> Recipe:
    """Return a LoRA recipe on opt-125m with these options."""
    recipe = Recipe(name="mine", model=Model(name="opt-125m"), neftune=Neftune(alpha=alpha))
    return replace(recipe, training=Training(seed=seed), adapter=Adapter(type="lora", r=8), **options)


def write_run(parent: Path, recipe: Recipe, name: str = "", **fields: Any) -> Path:
    """Write the folder of a run, by default a finished one; `fields` replace those of its record, None removes one."""
    folder = parent / (name or recipe.run_name())
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "adapter_model.safetensors").write_bytes(b"w" * 1000)
    (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    losses = {"base_held_out_loss": 2.5, "held_out_loss": 2.0, "base_train_loss": 2.25, "train_loss": 1.5}
    record = {
        "status": "finished",
        "started": "2026-01-02T03:00:00+0000",
        "finished": "2026-01-02T03:04:05+0000",
        "recipe_sha256": recipe_fingerprint(recipe),
        "model": recipe.model.name,
        "method": {"type": "lora", "r": 8},
        "seed": recipe.training.seed,
        "neftune": {"alpha": recipe.neftune.alpha},
        **HASHES,
        "results": {"seconds": 60.0, **losses},
        **fields,
    }
    record = {key: value for key, value in record.items() if value is not None}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    write_metrics(folder, [(0, 2.5), (4, 2.0)])
    return folder


def write_metrics(run: Path, evaluations: Sequence[tuple[int, float]]) -> None:
    """Write `metrics.jsonl` with evaluations: step and held-out loss."""
    lines = [{"event": "training.evaluated", "step": step, "held_out_loss": loss} for step, loss in evaluations]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_verdict(run: Path, baseline: str, verdict: str, folder: str = "held-out") -> Path:
    """Write the report of a comparison of a run with a baseline."""
    report = {
        "models": [{"role": "run", "name": run.name}, {"role": "baseline", "name": baseline}],
        "comparisons": [
            {"metric": "held_out_loss", "against": "base", "verdict": "better"},
            {"metric": "held_out_loss", "against": "baseline", "verdict": verdict},
        ],
        "conclusion": [f"{verdict} than {baseline}."],
    }
    file = run / "evaluation" / folder / "report.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(report), encoding="utf-8")
    return file


def write_sweep(parent: Path, recipe: Recipe, cells: Sequence[Recipe], report: dict[str, Any] | None = None) -> Path:
    """Write the folder of a sweep with finished cells, and its report if there is one."""
    folder = parent / f"{recipe.name}-sweep"
    (folder / "cells").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    for cell in cells:
        write_run(folder / "cells", cell)
    if report is not None:
        states = [{"key": str(index), "status": "finished", "run": ""} for index in range(len(cells))]
        content = {"cells": states, "failed": [], "unfinished": 0, "recommended": "", "conclusion": [], **report}
        (folder / "sweep.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
