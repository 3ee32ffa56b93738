"""`neft export`: write a run's tuned model for another program."""

from __future__ import annotations

from typing import Annotated

from neftcli.cli.arguments import RunArgument, TrustOption
from neftcli.cli.display import choose_display
from neftcli.cli.help import JsonOption, QuietOption, panel
from neftcli.export.export_targets import EXPORT_TARGETS, QUANTIZATIONS
from neftcli.system.distributed import require_single_process


def export(
    run: RunArgument,
    to: Annotated[
        str,
        panel("Export", "--to", metavar="TARGET", help=f"Program or format: {', '.join(EXPORT_TARGETS)}"),
    ],
    out: Annotated[
        str | None,
        panel(
            "Export",
            "--out",
            metavar="PATH",
            help="New file (gguf) or folder (ollama)  [default: RUN-TYPE.gguf, RUN-ollama]",
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        panel(
            "Export",
            "--quantize",
            metavar="TYPE",
            help=f"Type of the matrices: {', '.join(QUANTIZATIONS)}  [default: f16]",
        ),
    ] = None,
    trust_remote_code: TrustOption = False,
    json_lines: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Export a run's model as a .gguf file or for Ollama.

    The adapter is merged first. The file has tokenizer, chat template and stop tokens; neft loads it again and compares
    its logits with the run's.
    """
    require_single_process("neft export")
    from neftcli.export.export import export_run
    from neftcli.training.signals import StopSignal

    stop = StopSignal()
    with choose_display(json_lines=json_lines, quiet=quiet) as display, stop.handle_signals(), stop.interruptible():
        export_run(run, to, out, quantize, display, trust_remote_code=trust_remote_code)
