"""`neft sweep-alpha`: which alpha, and are you sure?"""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any

import typer

from neftcli.cli.display import choose_display
from neftcli.cli.options import QUICKSTART, with_overrides
from neftcli.errors import InputError, Problem
from neftcli.recipe.schema import keys
from neftcli.system.distributed import require_single_process

OF_CELLS = frozenset(key.path for key in keys() if key.option.flag and not key.option.command) - {
    "neftune.alpha",
    "training.seed",
    "training.processes",
}
OF_ANSWERS = (
    *("evaluation.judge.base_url", "evaluation.judge.model", "evaluation.judge.prompt", "evaluation.tasks"),
    *(f"evaluation.task_settings.{name}" for name in ("apply_chat_template", "num_fewshot", "limit")),
)


@with_overrides("sweep-alpha", OF_CELLS | frozenset(OF_ANSWERS))
def sweep_alpha(
    overrides: list[dict[str, Any]],
    earlier: Annotated[
        str | None,
        typer.Argument(metavar="[SWEEP]", help="A sweep to go on with: its folder, or name.", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME|FILE", help="What each cell is trained by; without it: quickstart."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=V,V", help="Sweep another option as well. May be repeated."),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="local|ray", help="Worker processes here, or tasks of a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", help="auto or HOST:PORT; without it a cluster on this machine is started."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells and what is done; train nothing.")] = False,
    pilot: Annotated[
        str | None,
        typer.Option(
            "--pilot", metavar="SWEEP", help="With --dry-run: plan by the variance of this sweep.", show_default=False
        ),
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object an event on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the result and errors.")] = False,
) -> None:
    """Train a grid of alphas, and say which of them differ.

    Seeds are paired, and the verdict comes with intervals. The same command again, or the sweep's folder, goes on: what
    is done is skipped. With --name, the folder's recipe begins a sweep of its own.
    """
    require_single_process("neft sweep-alpha")
    from neftcli.recipe.loading import file_layers
    from neftcli.recipe.yaml_file import Setting
    from neftcli.runs.directory import find_sweep
    from neftcli.sweep.folder import load_layers, resolve_sweep
    from neftcli.sweep.sweep_alpha import SweepRequest, run_sweep

    if earlier is not None and re.fullmatch(r"[\d.]+", earlier) and find_sweep(earlier) is None:
        listed = "--alphas 0,5,10"
        raise InputError(Problem("the alphas are one list, with commas", earlier, f"neft sweep-alpha {listed}"))
    folder = None if earlier is None else resolve_sweep(earlier)
    if folder is not None and recipe is not None:
        same = f"neft sweep-alpha {shlex.quote(str(folder))}"
        raise InputError(Problem("a sweep's folder and --recipe can't stand together: it has its own", recipe, same))
    typed = [*overrides]
    if grid:
        typed.append({"sweep.grid": Setting(tuple(grid), "--grid", ", ".join(grid))})
    is_new = any(key in ("name", "output_dir") for layer in typed for key in layer)
    working_folder = None
    if folder is None:
        layers = [*file_layers(recipe or QUICKSTART), *typed]
    else:
        layers, working_folder = load_layers(folder, typed, resume=not is_new)
    with choose_display(json_lines=json_lines, quiet=quiet) as display:
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
