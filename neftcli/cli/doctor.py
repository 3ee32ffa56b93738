"""`neft doctor`: check what training needs, and clear neft's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neftcli.cli.display import choose_display
from neftcli.cli.help import JsonOption, QuietOption, panel


def doctor(
    output_dir: Annotated[
        Path, panel("Checks", "--output-dir", metavar="FOLDER", help="Folder for runs to check  [default: runs]")
    ] = Path("runs"),
    clear_cache: Annotated[
        bool,
        panel("Cache", "--clear-cache", help="Remove converted models and tokenised rows from neft's cache first"),
    ] = False,
    json_lines: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check packages, hardware, hub, caches and disk, and print the commands that fix what is wrong.

    The exit code is 1 if a problem would stop training, else 0. Warnings don't stop it. Tokens are never shown.

    --clear-cache removes only files that neft makes again when it needs them. It leaves the hub's cache as it is.
    """
    from neftcli.doctor.diagnose import diagnose
    from neftcli.doctor.storage import clear

    with choose_display(json_lines=json_lines, quiet=quiet) as display:
        if clear_cache:
            display.notify(clear())
        diagnosis = diagnose(output_dir, display)
    if diagnosis.problems:
        raise typer.Exit(1)
