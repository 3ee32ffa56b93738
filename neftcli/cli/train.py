"""`neft train`: fine-tunes by a recipe, or goes on with a run that was stopped."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from neftcli.cli.display import choose_display
from neftcli.cli.options import recipe_of, with_recipe
from neftcli.errors import InputError, Problem
from neftcli.machine.processes import together


@with_recipe
def train(
    layers: list[dict[str, Any]],
    recipe: str | None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume", metavar="RUN", help="Go on with a run that was stopped, by its own recipe.", show_default=False
        ),
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="With --resume: go on though recipe, data or model differ.")
    ] = False,
    requeue_signal: Annotated[
        str, typer.Option("--requeue-signal", metavar="NAME", help="Stops and saves, as Ctrl-C and SIGTERM do.")
    ] = "SIGUSR1",
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            metavar="N",
            help="Train in N processes of this machine: N times as many rows an update.",
            min=1,
        ),
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved recipe, the data and the memory; train nothing.")
    ] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object an event on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the last line and errors.")] = False,
) -> None:
    """Fine-tune a model with NEFTune.

    Without options: SmolLM2-135M on the built-in set (the quickstart recipe). Command line beats recipe beats default.
    A first Ctrl-C, SIGTERM or SIGUSR1 stops after the update and saves (exit code 75); a second stops at once.
    """
    if resume is not None and (recipe is not None or dry_run):
        other = "--recipe" if recipe is not None else "--dry-run"
        raise InputError(Problem(f"--resume and {other} can't stand together", remedy=f"neft train --resume {resume}"))
    if accept_changes and resume is None:
        raise InputError(Problem("--accept-changes needs --resume", remedy="neft train --resume RUN --accept-changes"))
    command = [] if dry_run else [sys.executable, "-m", "neftcli.cli.main", *sys.argv[1:]]
    with together(processes, command), choose_display(json_lines=json_lines, quiet=quiet) as display:
        if dry_run:
            from neftcli.training.plan import plan

            plan(recipe_of(layers, recipe), display)
            return
        from neftcli.training.resume import find_resumption
        from neftcli.training.run import train as run
        from neftcli.training.stopping import Stop

        stop = Stop()
        with stop.listening(requeue_signal, first=lambda: stop.tell(display)):
            if resume is None:
                run(recipe_of(layers, recipe), display, stop=stop)
            else:
                resolved, resumption = find_resumption(resume, layers, accept_changes=accept_changes)
                run(resolved, display, stop=stop, resume=resumption)
