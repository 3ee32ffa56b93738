"""`neft answer`: answer the rows of a data set, and write the answers to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from neftcli.cli.arguments import RunOrModelArgument
from neftcli.cli.chat import CHAT_FLAGS
from neftcli.cli.display import choose_display
from neftcli.cli.help import JsonOption, QuietOption, panel
from neftcli.cli.options import with_overrides
from neftcli.system.distributed import require_single_process


@with_overrides("answer", CHAT_FLAGS, "the run's")
def answer(
    overrides: list[dict[str, Any]],
    target: RunOrModelArgument,
    dataset: Annotated[
        str, panel("Data", "--dataset", metavar="TEXT", help="Rows to answer, with or without answers of their own")
    ],
    out: Annotated[Path, panel("Output", "--out", metavar="FILE", help="File of the answers, a line for each row")],
    split: Annotated[str | None, panel("Data", "--split", metavar="TEXT", help="Split of a hub data set")] = None,
    max_rows: Annotated[
        int | None,
        panel("Data", "--max-rows", metavar="INTEGER", help="Answer the first N rows only  [default: all]", min=1),
    ] = None,
    seed: Annotated[
        int | None,
        panel("Evaluation", "--seed", metavar="INTEGER", help="Seed of sampling  [default: the run's]", min=0),
    ] = None,
    json_lines: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Answer the rows of a data set, and write the answers to a file.

    A line has the prompt, the answer, and why it ended. The answers equal those of an evaluation with the same rows and
    settings. The same command resumes a stopped one (exit code 75).
    """
    require_single_process("neft answer")
    from neftcli.inference.answers import AnswerRequest, answer_rows
    from neftcli.training.signals import StopSignal

    request = AnswerRequest(target, dataset, out, split, max_rows, tuple(overrides), seed)
    stop = StopSignal()
    with choose_display(json_lines=json_lines, quiet=quiet) as display, stop.handle_signals(), stop.interruptible():
        answer_rows(request, display)
