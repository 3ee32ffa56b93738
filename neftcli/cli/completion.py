"""Values that the shell completes; it completes the names of files itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

RUNS = Path("runs")
"""Default folder of runs; typed options are not known while a word is completed."""


def complete_from(values: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a function that completes a word to those of `values()` that begin with it."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values() if value.startswith(incomplete)]

    return complete


def _recipes() -> Iterable[str]:
    from neftcli.recipe.catalog import list_recipes

    return list_recipes()


def _models() -> Iterable[str]:
    from neftcli.models.registry import ALIASES

    return ALIASES


def _runs() -> Iterable[str]:
    return sorted(record.parent.name for record in RUNS.glob("*/run.json"))


def _sweeps() -> Iterable[str]:
    return sorted(cells.parent.name for cells in RUNS.glob("*/cells"))


complete_recipe = complete_from(_recipes)
complete_model = complete_from(_models)
complete_run = complete_from(_runs)
complete_run_or_model = complete_from(lambda: [*_runs(), *_models()])
complete_sweep = complete_from(_sweeps)
complete_run_or_sweep = complete_from(lambda: [*_runs(), *_sweeps()])
