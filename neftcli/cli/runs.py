"""`neft runs`: list, show, compare and remove runs and sweeps."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neftcli.cli.completion import complete_run, complete_run_or_sweep
from neftcli.cli.display import choose_display
from neftcli.cli.help import JsonOption, command_with
from neftcli.errors import InputError, Problem

if TYPE_CHECKING:
    from neftcli.events import RunSummary

app = typer.Typer(help="List, show, compare and remove runs and sweeps.", invoke_without_command=True)
ParentOption = Annotated[
    Path, typer.Option("--output-dir", metavar="FOLDER", help="Folder of the runs", rich_help_panel="Runs")
]
DEFAULT = Path("runs")
RUN = "Folder or name of a run"


@app.callback()
def root(context: typer.Context, output_dir: ParentOption = DEFAULT, json_lines: JsonOption = False) -> None:
    """List the runs and sweeps in a folder, the newest first."""
    if context.invoked_subcommand is None:
        _list(output_dir, json_lines=json_lines)
    elif json_lines or output_dir != DEFAULT:
        option = "--json" if json_lines else f"--output-dir {output_dir}"
        command = f"neft runs {context.invoked_subcommand}"
        raise InputError(Problem("options follow the command", option, f"{command} ... {option}"))


@app.command(
    "list",
    cls=command_with(
        ("neft runs list", "list the runs in runs/"),
        ("neft runs list --output-dir /scratch/runs --json", "list the runs in another folder, for a program"),
    ),
)
def list_folder(output_dir: ParentOption = DEFAULT, json_lines: JsonOption = False) -> None:
    """List the runs and sweeps in a folder, the newest first."""
    _list(output_dir, json_lines=json_lines)


@app.command(
    "show",
    cls=command_with(
        ("neft runs show quickstart-a5-s0", "show recipe, results, files and next commands"),
        ("neft runs show quickstart-sweep", "show the cells and the verdict of a sweep"),
    ),
)
def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|SWEEP", help="Folder or name of a run or a sweep", autocompletion=complete_run_or_sweep
        ),
    ],
    output_dir: ParentOption = DEFAULT,
    json_lines: JsonOption = False,
) -> None:
    """Show a run or a sweep: its recipe, results, files, and the commands that continue from it."""
    from neftcli.runs.details import read_details

    with choose_display(json_lines=json_lines, quiet=False) as display:
        display.notify(read_details(run, output_dir))


@app.command(
    "compare",
    cls=command_with(
        ("neft runs compare quickstart-a5-s0 quickstart-a0-s0", "show in which options and results they differ")
    ),
)
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=RUN, autocompletion=complete_run)],
    second: Annotated[str, typer.Argument(metavar="B", help="Another run", autocompletion=complete_run)],
    output_dir: ParentOption = DEFAULT,
    json_lines: JsonOption = False,
) -> None:
    """Compare the recipes and the results of two runs.

    Their losses are as recorded at the end of training. `neft eval A --baseline B` measures both on the same rows, with
    intervals.
    """
    from neftcli.runs.details import compare_runs

    with choose_display(json_lines=json_lines, quiet=False) as display:
        display.notify(compare_runs(first, second, output_dir))


@app.command(
    "rm",
    cls=command_with(
        ("neft runs rm quickstart-a5-s0 quickstart-a0-s0", "remove two runs, after a question"),
        ("neft runs rm quickstart-sweep --yes", "remove a sweep with all its cells, without a question"),
    ),
)
def remove(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|SWEEP", help="Folders or names of runs and sweeps", autocompletion=complete_run_or_sweep
        ),
    ],
    output_dir: ParentOption = DEFAULT,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask", rich_help_panel="Runs")] = False,
    json_lines: JsonOption = False,
) -> None:
    """Remove runs and sweeps with all their files.

    neft refuses what is in use, cells of a sweep, and folders that are not runs, and it follows no links.
    """
    from neftcli.runs.removal import plan_removal, remove_runs

    with choose_display(json_lines=json_lines, quiet=False) as display:
        planned = plan_removal(runs, output_dir)
    if not yes and not _confirm(planned, json_lines=json_lines):
        typer.echo("nothing was removed", err=True)
        raise typer.Exit(1)
    with choose_display(json_lines=json_lines, quiet=False) as display:
        remove_runs(planned, display)


def _list(folder: Path, *, json_lines: bool) -> None:
    from neftcli.runs.catalog import read_catalog

    with choose_display(json_lines=json_lines, quiet=False) as display:
        display.notify(read_catalog(folder))


def _confirm(planned: list[RunSummary], *, json_lines: bool) -> bool:
    """Ask on the terminal whether to remove runs.

    Raises:
        InputError: There is no terminal, so --yes is required.
    """
    from neftcli.cli.display.run_rows import age
    from neftcli.cli.display.text import sanitize
    from neftcli.system.files import format_bytes
    from neftcli.wording import count_noun

    names = shlex.join(run.path for run in planned)
    if json_lines or not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        hint = f"neft runs rm {names} --yes"
        raise InputError(Problem("neft runs rm needs --yes unless it can ask on a terminal", names, hint))
    for run in planned:
        facts = [run.kind, run.status.value, f"{age(run.changed)} old", format_bytes(run.size_bytes)]
        typer.echo(sanitize(f" {run.path}   {', '.join(facts)}"), err=True)
    total = format_bytes(sum(run.size_bytes for run in planned))
    typer.echo(f"Remove {count_noun(len(planned), 'folder')} ({total})? [y/N] ", nl=False, err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
