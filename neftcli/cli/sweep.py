"""`neft sweep-alpha`: train a grid of alphas, and test which of them differ."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any

import typer

from neftcli.cli.completion import complete_recipe, complete_sweep
from neftcli.cli.display import choose_display
from neftcli.cli.help import JsonOption, QuietOption, panel
from neftcli.cli.options import QUICKSTART, with_overrides
from neftcli.errors import InputError, Problem
from neftcli.recipe.keys import keys
from neftcli.system.distributed import require_single_process

CELL_KEYS = frozenset(key.path for key in keys() if key.option.flag and not key.option.commands) - {
    "neftune.alpha",
    "training.seed",
    "training.processes",
}
ANSWER_OPTIONS = (
    *("evaluation.judge.base_url", "evaluation.judge.model", "evaluation.judge.prompt", "evaluation.tasks"),
    *(f"evaluation.task_settings.{name}" for name in ("apply_chat_template", "num_fewshot", "limit")),
)

ALPHA = r"\.?\d[\d.]*"
"""A number that was typed as the name of a sweep."""


@with_overrides("sweep-alpha", CELL_KEYS | frozenset(ANSWER_OPTIONS))
def sweep_alpha(
    overrides: list[dict[str, Any]],
    earlier: Annotated[
        str | None,
        typer.Argument(
            metavar="SWEEP",
            help="Folder or name of a sweep to resume",
            show_default=False,
            autocompletion=complete_sweep,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        panel(
            "Run",
            "--recipe",
            metavar="NAME|FILE",
            help="Recipe of the cells  [default: quickstart]",
            autocompletion=complete_recipe,
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        panel("Sweep", "--grid", metavar="KEY=V,V", help="Sweep another option as well; may be repeated"),
    ] = None,
    engine: Annotated[
        str,
        panel("Sweep", "--engine", metavar="ENGINE", help="Engine that runs the cells: local, ray  [default: local]"),
    ] = "local",
    ray_address: Annotated[
        str | None,
        panel(
            "Sweep",
            "--ray-address",
            metavar="HOST:PORT",
            help="Ray cluster, or auto  [default: a new one on this machine]",
        ),
    ] = None,
    dry_run: Annotated[
        bool, panel("Output", "--dry-run", help="Show the cells, their estimated time and the MDE; train nothing")
    ] = False,
    pilot: Annotated[
        str | None,
        panel(
            "Output",
            "--pilot",
            metavar="SWEEP",
            help="With --dry-run: use the variance of this sweep",
            autocompletion=complete_sweep,
        ),
    ] = None,
    json_lines: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a grid of alphas, and test which of them differ.

    All alphas share their seeds and rows, and each difference has a confidence interval. The same command, or the
    sweep's folder, resumes a sweep: finished cells are kept. With --name the folder's recipe starts a new sweep.
    """
    require_single_process("neft sweep-alpha")
    from neftcli.recipe.loading import read_recipe_layers
    from neftcli.recipe.yaml_file import Setting
    from neftcli.runs.directory import find_sweep
    from neftcli.sweep.folder import load_layers, resolve_sweep
    from neftcli.sweep.sweep_alpha import SweepRequest, run_sweep
    from neftcli.training.signals import StopSignal

    if earlier is not None and re.fullmatch(ALPHA, earlier) and find_sweep(earlier) is None:
        hint = "neft sweep-alpha --alphas 0,5,10"
        raise InputError(Problem("write the alphas as one list with commas", earlier, hint))
    folder = None if earlier is None else resolve_sweep(earlier)
    if folder is not None and recipe is not None:
        same = f"neft sweep-alpha {shlex.quote(str(folder))}"
        raise InputError(
            Problem("a sweep's folder and --recipe can't be combined: the folder has its own recipe", recipe, same)
        )
    typed = [*overrides]
    if grid:
        typed.append({"sweep.grid": Setting(tuple(grid), "--grid", ", ".join(grid))})
    is_new = any(key in ("name", "output_dir") for layer in typed for key in layer)
    working_folder = None
    if folder is None:
        layers = [*read_recipe_layers(recipe or QUICKSTART), *typed]
    else:
        layers, working_folder = load_layers(folder, typed, resume=not is_new)
    stop = StopSignal()  # until the sweep handles signals itself
    with choose_display(json_lines=json_lines, quiet=quiet) as display, stop.handle_signals(), stop.interruptible():
        pilot_folder = None if pilot is None else resolve_sweep(pilot, "--pilot")
        request = SweepRequest(
            layers=tuple(layers),
            folder=None if is_new else folder,
            engine=engine,
            ray_address=ray_address,
            dry_run=dry_run,
            pilot=pilot_folder,
            working_folder=working_folder,
        )
        run_sweep(request, display)
