"""`neft train`: fine-tunes by a recipe, or goes on with a run that was stopped."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neftcli.cli.display import choose_display
from neftcli.cli.options import recipe_of, with_recipe
from neftcli.errors import InputError, Problem
from neftcli.system.distributed import launch_processes, launched_externally, world_size

if TYPE_CHECKING:
    from neftcli.recipe.yaml_file import Layer
    from neftcli.training.resume import ResumeState


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
        raise InputError(Problem(f"--resume and {other} can't stand together", hint=f"neft train --resume {resume}"))
    if accept_changes and resume is None:
        raise InputError(Problem("--accept-changes needs --resume", hint="neft train --resume RUN --accept-changes"))
    from neftcli.training.dry_run import plan_run
    from neftcli.training.resume import find_resume_state
    from neftcli.training.signals import StopSignal
    from neftcli.training.train import train as run

    stop = StopSignal()
    resume_state: ResumeState | None = None
    with (
        choose_display(json_lines=json_lines, quiet=quiet) as display,
        stop.handle_signals(requeue_signal, first=lambda: stop.announce(display)),
    ):
        layers = [*layers, _of_a_launcher(layers)]
        if resume is None:
            resolved = recipe_of(layers, recipe)
        else:
            resolved, resume_state = find_resume_state(resume, layers, accept_changes=accept_changes)
        # -P: the folder that the command is typed in is none that code is loaded from.
        command = [] if dry_run else [sys.executable, "-P", "-m", "neftcli", *sys.argv[1:]]
        with launch_processes(resolved.training.processes, command):
            if dry_run:
                plan_run(resolved, display)
            else:
                run(resolved, display, stop=stop, resume=resume_state)


def _of_a_launcher(layers: list[Layer]) -> Layer:
    """The number of processes that torchrun has started: by so many the recipe is trained.

    Raises:
        InputError: Another number was typed.
    """
    from neftcli.recipe.yaml_file import Setting

    if not launched_externally():
        return {}
    started = f"WORLD_SIZE {world_size()}"
    typed = [layer["training.processes"] for layer in layers if "training.processes" in layer]
    if typed and typed[-1].value != world_size():
        told = "training.processes: a launcher has started another number of them"
        raise InputError(Problem(told, f"{typed[-1].typed} ({started})", "one of both alone"))
    return {"training.processes": Setting(world_size(), "the launcher", started)}
