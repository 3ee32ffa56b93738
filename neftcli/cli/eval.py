"""`neft eval`: evaluate a run or a model, and compare it."""

from __future__ import annotations

from typing import Annotated, Any

from neftcli.cli.arguments import RunOrModelArgument
from neftcli.cli.completion import complete_run_or_model
from neftcli.cli.display import choose_display
from neftcli.cli.help import JsonOption, QuietOption, panel
from neftcli.cli.options import with_overrides
from neftcli.evaluation.exports import EXPORTS
from neftcli.system.distributed import require_single_process

EVAL_FLAGS = ("model.revision", "model.chat_template", "model.trust_remote_code", "data.format", "data.max_length")


@with_overrides("eval", EVAL_FLAGS, "the run's")
def evaluate(
    overrides: list[dict[str, Any]],
    target: RunOrModelArgument,
    baseline: Annotated[
        str | None,
        panel(
            "Comparison",
            "--baseline",
            metavar="RUN|MODEL",
            help="Compare with this run or model, usually the same recipe with alpha 0",
            autocompletion=complete_run_or_model,
        ),
    ] = None,
    base: Annotated[
        bool, panel("Comparison", "--base/--no-base", help="Compare with the run's base model  [default: base]")
    ] = True,
    dataset: Annotated[
        str | None,
        panel("Data", "--dataset", metavar="TEXT", help="Rows to evaluate on  [default: the run's held-out split]"),
    ] = None,
    split: Annotated[str | None, panel("Data", "--split", metavar="TEXT", help="Split of a hub data set")] = None,
    max_rows: Annotated[
        int | None,
        panel(
            "Data", "--max-rows", metavar="INTEGER", help="Number of rows to sample at random  [default: all]", min=1
        ),
    ] = None,
    answers: Annotated[
        bool, panel("Evaluation", "--answers/--no-answers", help="Generate answers  [default: answers]")
    ] = True,
    show: Annotated[
        int,
        panel(
            "Output",
            "--show",
            metavar="INTEGER",
            help="Prompts to show with the answers of all models, the most different first  [default: 0]",
            min=0,
        ),
    ] = 0,
    export: Annotated[
        str | None, panel("Output", "--export", metavar="FORMAT", help=f"Export the answers: {', '.join(EXPORTS)}")
    ] = None,
    json_lines: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Evaluate a run or a model on held-out rows, and compare it.

    neft measures loss, answers, a judge's preference and benchmark tasks, against a baseline and the base model. It
    stores each result and reuses it: the same command resumes a stopped evaluation (exit code 75).
    """
    require_single_process("neft eval")
    from neftcli.evaluation.evaluate import EvalRequest
    from neftcli.evaluation.evaluate import evaluate as run
    from neftcli.training.signals import StopSignal

    request = EvalRequest(target, baseline, dataset, split, max_rows, tuple(overrides), base, answers, show, export)
    stop = StopSignal()
    with choose_display(json_lines=json_lines, quiet=quiet) as display, stop.handle_signals(), stop.interruptible():
        run(request, display)
