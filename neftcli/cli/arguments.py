"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from neftcli.cli.completion import complete_run, complete_run_or_model
from neftcli.cli.help import panel

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Folder or name of a run", autocompletion=complete_run)]
RunOrModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL", help="Folder or name of a run, or a model", autocompletion=complete_run_or_model
    ),
]
TrustOption = Annotated[
    bool, panel("Model", "--trust-remote-code", help="Run Python code that comes with the base model")
]
