"""`neft eval`: did it help?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from neftcli.cli.display import choose_display
from neftcli.cli.options import with_overrides
from neftcli.system.distributed import require_single_process

WITH_FLAGS = ("model.revision", "model.chat_template", "model.trust_remote_code", "data.format", "data.max_length")


@with_overrides("eval", WITH_FLAGS)
def evaluate(
    overrides: list[dict[str, Any]],
    subject: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A run's folder or name, or a model as for `neft train --model`.")
    ],
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="RUN|MODEL", help="Compare with it: usually the same recipe with alpha 0."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Rows to evaluate on; without it those that the run held out."),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Split of a hub data set.")] = None,
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", help="Use at most N rows, drawn at random, always the same.", min=1)
    ] = None,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Compare with the run's base model, too.")] = True,
    answers: Annotated[bool, typer.Option("--answers/--no-answers", help="Generate answers.")] = True,
    show: Annotated[
        int, typer.Option("--show", help="Show N prompts with all answers, the most different first.", min=0)
    ] = 0,
    export: Annotated[
        str | None, typer.Option("--export", metavar="alpaca-eval", help="Write the answers for AlpacaEval.")
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object an event on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the result and errors.")] = False,
) -> None:
    """Measure a run or a model on held-out rows, and compare it.

    Loss, answers, a judge and benchmark tasks, against a baseline and the base model. What was measured before is
    kept, and not measured again: an evaluation that was stopped (Ctrl-C, SIGTERM or SIGUSR1: exit code 75) goes on.
    """
    require_single_process("neft eval")
    from neftcli.evaluation.evaluate import EvalRequest
    from neftcli.evaluation.evaluate import evaluate as run
    from neftcli.training.signals import StopSignal

    request = EvalRequest(subject, baseline, dataset, split, max_rows, tuple(overrides), base, answers, show, export)
    stop = StopSignal()
    with choose_display(json_lines=json_lines, quiet=quiet) as display, stop.handle_signals(), stop.interruptible():
        run(request, display)
