"""`neft push`: upload the model of a run to the hub."""

from __future__ import annotations

from typing import Annotated

import typer

from neftcli.cli.arguments import RunArgument, TrustOption
from neftcli.cli.display import choose_display
from neftcli.cli.help import JsonOption, QuietOption, panel
from neftcli.system.distributed import require_single_process


def push(
    run: RunArgument,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub")],
    private: Annotated[bool, panel("Repository", "--private", help="Create a private repository")] = False,
    update: Annotated[
        bool, panel("Repository", "--update", help="Add a commit to a repository that has files already")
    ] = False,
    merged: Annotated[
        bool, panel("Model", "--merged", help="Merge the adapter first, and upload a model that needs no base model")
    ] = False,
    trust_remote_code: TrustOption = False,
    dry_run: Annotated[bool, panel("Output", "--dry-run", help="Show what would be uploaded, upload nothing")] = False,
    json_lines: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Upload a run's model to the hub.

    One commit has the model or adapter, the recipe, and the model card with the results as metadata. A new repository
    is public unless you add --private.
    """
    require_single_process("neft push")
    from neftcli.export.push import push_run
    from neftcli.training.signals import StopSignal

    stop = StopSignal()
    with choose_display(json_lines=json_lines, quiet=quiet) as display, stop.handle_signals(), stop.interruptible():
        push_run(
            run,
            repository,
            display,
            private=private,
            merged=merged,
            update=update,
            dry_run=dry_run,
            trust_remote_code=trust_remote_code,
        )
