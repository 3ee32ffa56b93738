"""`neft merge`: write a run's tuned model without an adapter."""

from __future__ import annotations

from typing import Annotated

from neftcli.cli.arguments import RunArgument, TrustOption
from neftcli.cli.display import choose_display
from neftcli.cli.help import JsonOption, QuietOption, panel
from neftcli.system.distributed import require_single_process


def merge(
    run: RunArgument,
    out: Annotated[str, panel("Model", "--out", metavar="FOLDER", help="New or empty folder for the model")],
    dtype: Annotated[
        str | None,
        panel(
            "Model",
            "--dtype",
            metavar="TYPE",
            help="Type of the weights: float32, bfloat16, float16  [default: the base model's]",
        ),
    ] = None,
    trust_remote_code: TrustOption = False,
    json_lines: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Merge a run's adapter into its base model.

    neft writes safetensors, tokenizer and chat template to a folder that transformers and vLLM load, and compares its
    logits with the run's. A run without an adapter is converted to another type with --dtype.
    """
    require_single_process("neft merge")
    from neftcli.export.merge import merge as merge_run
    from neftcli.training.signals import StopSignal

    stop = StopSignal()
    with choose_display(json_lines=json_lines, quiet=quiet) as display, stop.handle_signals(), stop.interruptible():
        merge_run(run, out, dtype, display, trust_remote_code=trust_remote_code)
