"""`neft train`: fine-tune by a recipe, or resume a stopped run."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

from neftcli.cli.completion import complete_run
from neftcli.cli.display import choose_display
from neftcli.cli.help import JsonOption, QuietOption, panel
from neftcli.cli.options import recipe_of, with_recipe
from neftcli.errors import InputError, Problem
from neftcli.system.distributed import launch_processes, launched_externally, world_size

if TYPE_CHECKING:
    from neftcli.recipe.yaml_file import Layer
    from neftcli.training.resume import ResumeState


@with_recipe()
def train(
    layers: list[dict[str, Any]],
    recipe: str | None,
    resume: Annotated[
        str | None,
        panel(
            "Resume",
            "--resume",
            metavar="RUN",
            help="Resume a stopped run with its own recipe",
            autocompletion=complete_run,
        ),
    ] = None,
    accept_changes: Annotated[
        bool, panel("Resume", "--accept-changes", help="Resume even if recipe, data or model differ")
    ] = False,
    requeue_signal: Annotated[
        str,
        panel(
            "Resume",
            "--requeue-signal",
            metavar="NAME",
            help="Signal that saves a checkpoint and stops  [default: SIGUSR1]",
        ),
    ] = "SIGUSR1",
    with_baseline: Annotated[
        bool,
        panel(
            "Comparison", "--with-baseline", help="Train the same recipe at alpha 0 as well, and compare the two runs"
        ),
    ] = False,
    dry_run: Annotated[
        bool, panel("Output", "--dry-run", help="Show the recipe, the data, the steps and the memory; train nothing")
    ] = False,
    json_lines: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune a model with NEFTune.

    Without options neft trains SmolLM2-135M on the built-in data (the quickstart recipe). Flags override the recipe,
    and the recipe overrides the defaults.

    Ctrl-C, SIGTERM and SIGUSR1 stop after the current step and save a checkpoint (exit code 75); a second signal stops
    at once.
    """
    if resume is not None and (recipe is not None or dry_run):
        other = "--recipe" if recipe is not None else "--dry-run"
        hint = f"neft train --resume {shlex.quote(resume)}"
        raise InputError(Problem(f"--resume and {other} can't be combined", hint=hint))
    if accept_changes and resume is None:
        raise InputError(Problem("--accept-changes needs --resume", hint="neft train --resume RUN --accept-changes"))
    if with_baseline and (dry_run or resume is not None):
        other = "--dry-run" if dry_run else "--resume"
        raise InputError(Problem(f"--with-baseline and {other} can't be combined", hint="leave out one of them"))
    from neftcli.training.dry_run import plan_run
    from neftcli.training.resume import find_resume_state
    from neftcli.training.signals import StopSignal
    from neftcli.training.train import train as run

    stop = StopSignal()
    if with_baseline:
        from neftcli.cli.with_baseline import train_with_baseline

        resolved = recipe_of([*layers, _launcher_layer(layers)], recipe)
        train_with_baseline(resolved, layers, stop, requeue_signal, json_lines=json_lines, quiet=quiet)
        return
    resume_state: ResumeState | None = None
    with (
        choose_display(json_lines=json_lines, quiet=quiet) as display,
        stop.handle_signals(requeue_signal, first=lambda: stop.announce(display)),
    ):
        layers = [*layers, _launcher_layer(layers)]
        if resume is None:
            resolved = recipe_of(layers, recipe)
        else:
            resolved, resume_state = find_resume_state(resume, layers, accept_changes=accept_changes)
        # -P keeps modules of the current folder out.
        command = [] if dry_run else [sys.executable, "-P", "-m", "neftcli", *sys.argv[1:]]
        with launch_processes(resolved.training.processes, command):
            if dry_run:
                with stop.interruptible():  # there is nothing to save
                    plan_run(resolved, display)
            else:
                run(resolved, display, stop=stop, resume=resume_state)


def _launcher_layer(layers: list[Layer]) -> Layer:
    """Return the number of processes that a launcher such as torchrun has started, as a layer of the recipe.

    Raises:
        InputError: A different number was typed.
    """
    from neftcli.recipe.yaml_file import Setting

    if not launched_externally():
        return {}
    started = f"WORLD_SIZE {world_size()}"
    typed = [layer["training.processes"] for layer in layers if "training.processes" in layer]
    if typed and typed[-1].value != world_size():
        message = "training.processes: a launcher has started a different number of processes"
        raise InputError(Problem(message, f"{typed[-1].typed} ({started})", "leave --processes out"))
    return {"training.processes": Setting(world_size(), "the launcher", started)}
