"""Runs with shared assets are bit-identical to runs that loaded the model and the data themselves.

Oracle: SHA-256 of the weights of the same recipe trained alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from neftcli.evaluation.loss import mean_loss
from neftcli.events import RunFinished
from neftcli.recipe.loading import load_recipe, parse_assignment
from neftcli.recipe.schema import Recipe
from neftcli.training.assets import AssetCache
from neftcli.training.train import train

METHODS = {
    "full": [],
    "lora": ["adapter.type=lora", "adapter.lora_dropout=0.1"],
    "qlora": ["adapter.type=lora", "quantization.type=nf4"],
    "packed": ["training.batching=packed", "data.max_length=200"],
}


class Silent:
    """Observer that ignores all events."""

    def notify(self, event: object) -> None:
        """Ignore an event."""


@pytest.fixture
def recipe(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Return a recipe of three steps on a tiny model with dropout."""

    def of(*sets: str) -> Recipe:
        settings = [
            f"model.name={tiny_folder('llama')}",
            f"data.source={rows_file}",
            f"output_dir={tmp_path / 'runs'}",
            "training.max_steps=3",
            "training.learning_rate=1e-3",
            "evaluation.samples=1",
            "evaluation.generation.max_new_tokens=4",
            *sets,
        ]
        return load_recipe("quickstart", [parse_assignment(text) for text in settings])

    return of


def outcome(finished: RunFinished) -> dict[str, Any]:
    """Return a run's weights and measurements, without its name and times."""
    run = Path(finished.run)
    [weights] = (run / "model").glob("*.safetensors")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("tokens_per_second", None)
        line.pop("memory_bytes", None)
    return {
        "weights": sha256(weights.read_bytes()).hexdigest(),
        "metrics": lines,
        "samples": (run / "samples.jsonl").read_text(),
        "base": (finished.base_held_out_loss, finished.base_train_loss),
    }


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_asset_cache_bit_identical(method: str, recipe: Callable[..., Recipe]) -> None:
    """Alpha, seed and learning rate of earlier runs leave no trace."""
    sets = METHODS[method]
    cells = [
        recipe(*sets, "neftune.alpha=15", "training.seed=3", "training.learning_rate=1e-2"),
        recipe(*sets, "neftune.alpha=0"),
        recipe(*sets, "neftune.alpha=5"),
        recipe(*sets, "neftune.alpha=5", "training.seed=1"),
    ]
    asset_cache = AssetCache()
    shared = [outcome(train(cell, Silent(), asset_cache)) for cell in cells]
    alone = [outcome(train(cell, Silent())) for cell in cells]
    assert shared == alone
    assert len({one["weights"] for one in shared}) == len(cells)


@pytest.mark.slow
def test_asset_cache_loads_once(recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs load once; a different model, rows or tuning method loads again."""
    from neftcli.training import assets

    loads: list[str] = []
    load = assets.load_model_for_recipe

    def counted(*arguments: Any) -> Any:
        loads.append(arguments[0].adapter.type)
        return load(*arguments)

    monkeypatch.setattr(assets, "load_model_for_recipe", counted)
    asset_cache = AssetCache()
    for sets in (["neftune.alpha=0"], ["neftune.alpha=5"], ["training.seed=1"]):
        train(recipe(*sets), Silent(), asset_cache)
    assert loads == ["none"]
    for sets in (["data.max_rows=30"], ["adapter.type=lora"], ["training.precision=float32"]):
        train(recipe(*sets), Silent(), asset_cache)
    assert loads == ["none", "none", "lora", "none"]


def test_train_on_finish(recipe: Callable[..., Recipe]) -> None:
    handed: list[Any] = []
    finished = train(recipe(), Silent(), on_finish=handed.append)
    [trained] = handed
    assert str(trained.directory.path) == finished.run
    assert trained.model is trained.assets.model  # without a asset_cache nobody else needs it
    assert mean_loss(trained.losses) == finished.held_out_loss
