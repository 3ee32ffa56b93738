"""Every shipped recipe trains two steps, with a tiny model of its family and a few local rows in its format.

Oracle: the run finishes with the recipe's own settings; only the model, the data, the length of the run and settings
that need a GPU are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from neftcli.recipe import catalog
from neftcli.recipe.loading import load_recipe
from tests.conftest import ROWS, Result

LAYOUTS = {
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
    "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "text": lambda q, a: {"text": f"{q} {a}"},
    "auto": lambda q, a: {"prompt": q, "completion": a},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", catalog.list_recipes())
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # bitsandbytes 0.50
def test_train_each_recipe(
    neft: Callable[..., Result], tiny_folder: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    recipe = load_recipe(name)
    row = LAYOUTS[recipe.data.format]
    rows = [row(f"{q} ({n})", a) for n in range(3) for q, a in ROWS]
    columns = dict(recipe.data.columns)
    rows = [{columns.get(key, key): value for key, value in item.items()} for item in rows]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    family = "opt" if "opt" in recipe.model.name else "llama"
    replaced = {
        "training.max_steps": 2,
        "evaluation.samples": 1,
        "evaluation.generation.max_new_tokens": 4,
        "training.optim": "adamw_torch_fused" if "paged" in recipe.training.optim else recipe.training.optim,
        "training.gradient_accumulation_steps": min(2, recipe.training.gradient_accumulation_steps),
    }
    sets = [part for key, value in replaced.items() for part in ("--set", f"{key}={value}")]
    result = neft(
        *("train", "--recipe", name, "--model", tiny_folder(family), "--dataset", file),
        *("--output-dir", tmp_path / "runs", "--max-length", 256, *sets),
    )
    assert result.code == 0, result.err
    [run] = (tmp_path / "runs").iterdir()
    assert run.name == f"{name}-a{recipe.neftune.alpha:g}-s0"
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
