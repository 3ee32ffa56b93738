"""The command `neft`: its subcommands, and the place where errors become messages and exit codes."""

from __future__ import annotations

import atexit
import errno
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, Any

import typer

from neftcli.cli import answer, chat, data, doctor, eval, export, merge, models, push, recipes, runs, sweep, train
from neftcli.cli.display.text import drop_unread_output, lost_output, replace_unencodable
from neftcli.cli.help import Command, HelpOption, command_with
from neftcli.errors import (
    INTERNAL,
    INTERNAL_MESSAGE,
    PERMISSION,
    USAGE,
    InputError,
    Interrupted,
    NeftError,
    Preempted,
    Problem,
    describe_error,
    first_line,
    panics_as_errors,
)
from neftcli.system.distributed import is_main_process, rank
from neftcli.system.environment import drop_overrides, exclude_current_folder
from neftcli.system.files import restrict_umask
from neftcli.version import VERSION

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Base class of typer's usage errors, of which typer exports only some."""
OTHER_RANKS_WAIT = 30.0
"""Seconds in which the main process can report an error before another process does."""
SHOWN_LIBRARIES = ("torch", "transformers", "trl")
"""Libraries whose versions --version shows."""
INTERRUPTED = 130
"""Exit code that typer returns for Ctrl-C."""
COMPLETION = "_NEFT_COMPLETE"
"""Variable with which a shell asks for completion. Otherwise typer's own options would import pydantic."""
app = typer.Typer(
    help="Fine-tune language models with NEFTune, and find out whether it helped.",
    epilog="Start with: neft train",
    no_args_is_help=True,
    add_completion=COMPLETION in os.environ,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_help_option=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command(
    "train",
    cls=command_with(
        ("neft train", "train the quickstart recipe"),
        ("neft train --model opt-350m --dataset rows.jsonl --lora", "train a LoRA adapter on rows of your own"),
        ("neft train --recipe recipe.yaml --alpha 0", "train a baseline without noise"),
        ("neft train --dataset rows.jsonl --dry-run", "show steps and memory, train nothing"),
        ("neft train --resume quickstart-a5-s0", "resume a stopped run"),
    ),
)(train.train)
app.command(
    "eval",
    cls=command_with(
        ("neft eval quickstart-a5-s0 --baseline quickstart-a0-s0 --show 5", "compare two runs"),
        ("neft eval smollm2-135m --dataset rows.jsonl", "measure a model on rows of your own"),
        ("neft eval quickstart-a5-s0 --tasks arc_easy --limit 100", "run a benchmark task"),
    ),
)(eval.evaluate)
app.command(
    "sweep-alpha",
    cls=command_with(
        ("neft sweep-alpha --recipe quickstart --alphas 0,5,10 --seeds 3", "compare three alphas over three seeds"),
        ("neft sweep-alpha --recipe quickstart --dry-run", "show the cells and their estimated time"),
        ("neft sweep-alpha runs/quickstart-sweep --seeds 6", "resume a sweep with more seeds"),
    ),
)(sweep.sweep_alpha)
app.command(
    "chat",
    cls=command_with(
        ("neft chat quickstart-a5-s0", "talk to a run"),
        ("neft chat quickstart-a5-s0 --against base", "the same questions to its base model"),
        ("neft chat smollm2-135m --temperature 0.7 --max-new-tokens 100", "talk to a model, with sampled answers"),
        ('echo "Why is the sky blue?" | neft chat quickstart-a5-s0', "answer each line of standard input"),
    ),
)(chat.chat)
app.command(
    "answer",
    cls=command_with(
        ("neft answer quickstart-a5-s0 --dataset questions.jsonl --out answers.jsonl", "answer a file of questions"),
        ("neft answer smollm2-135m --dataset questions.csv --out answers.jsonl --max-rows 5", "try it on five rows"),
    ),
)(answer.answer)
app.add_typer(runs.app, name="runs")
app.command(
    "doctor",
    cls=command_with(
        ("neft doctor", "check packages, hardware, hub and disk"),
        ("neft doctor --clear-cache", "remove converted models and tokenised rows from neft's cache"),
    ),
)(doctor.doctor)
app.command(
    "merge",
    cls=command_with(
        ("neft merge quickstart-a5-s0 --out my-model", "write the tuned model with the base model's type"),
        ("neft merge quickstart-a5-s0 --out my-model --dtype bfloat16", "halve the size of float32 weights"),
    ),
)(merge.merge)
app.command(
    "export",
    cls=command_with(
        ("neft export quickstart-a5-s0 --to gguf --quantize q8_0", "write a file for llama.cpp"),
        ("neft export quickstart-a5-s0 --to ollama --out my-model", "write a folder for `ollama create`"),
    ),
)(export.export)
app.command(
    "push",
    cls=command_with(
        ("neft push quickstart-a5-s0 me/my-model --dry-run", "show what would be uploaded"),
        ("neft push quickstart-a5-s0 me/my-model --private --merged", "upload a model that needs no base model"),
    ),
)(push.push)
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
app.command("models", cls=Command)(models.models)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"neft {VERSION} ({_library_versions()})")
        raise typer.Exit


def _install_completion(context: typer.Context, parameter: typer.CallbackParam, wanted: bool) -> None:
    if wanted:
        from typer.completion import install_callback

        install_callback(context, parameter, wanted)


def _library_versions() -> str:
    """Return the versions of Python and the libraries, without importing them."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions = [f"Python {platform.python_version()}"]
    for name in SHOWN_LIBRARIES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} is not installed")
    return ", ".join(versions)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the versions of neft and its libraries, and exit", callback=_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors")] = False,
    install_completion: Annotated[
        bool,
        typer.Option("--install-completion", help="Install completion for your shell", callback=_install_completion),
    ] = False,
    show_help: HelpOption = False,
) -> None:
    """Exit codes: 0 finished, 1 failed, 2 bad input, 75 stopped and resumable, 130 stopped at once."""


@cache
def _command() -> Any:
    """Return typer's command for `app`, which takes 20 ms to build."""
    return typer.main.get_command(app)


def _find_flag(flag: str) -> int | None:
    """Return the index of a flag on the command line, without the program; None if it was not typed."""
    if flag not in sys.argv:
        return None
    from neftcli.cli.usage import find_flag

    return find_flag(_command(), flag, sys.argv[1:])


def _report(problems: Sequence[Problem], exit_code: int) -> None:
    """Print the problems on stderr and, with --json, write them as an event on stdout."""
    from neftcli.cli.display.screens import print_problems

    if not is_main_process():  # the main process reports an error that all processes have, and ends them
        time.sleep(OTHER_RANKS_WAIT)
        problems = [replace(problem, message=f"process {rank()}: {problem.message}") for problem in problems]
    elif _find_flag("--json") is not None:
        from neftcli.cli.display.json_lines import JsonLines
        from neftcli.events import CommandFailed

        JsonLines(sys.stdout).notify(CommandFailed(tuple(problems), exit_code))
    print_problems(problems, started=exit_code != 2)


def _ignore_signals() -> None:
    """Ignore further signals: everything is saved, and a signal during the exit would change the exit code."""
    from neftcli.training.signals import WARNINGS

    for name in WARNINGS:
        signal.signal(signal.Signals[name], signal.SIG_IGN)


def command() -> None:
    """Run the process `neft`, and end it by os._exit: to tear down the libraries and the model takes a second.

    Functions that libraries register with atexit run first, because this one is registered before they are imported.
    """
    code: object = None
    exclude_current_folder()
    drop_unread_output()

    def leave() -> None:
        if "logging" in sys.modules:  # it was imported earlier
            sys.modules["logging"].shutdown()
        try:
            sys.stdout.flush()
            if lost := lost_output():
                sys.stderr.write(f"output was lost, as it could not be written: {lost}\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            return  # Python flushes once more, and reports the error
        if code is None or code == 0:
            os._exit(1 if lost else 0)
        os._exit(code if isinstance(code, int) else 1)

    atexit.register(leave)
    try:
        main()
    except SystemExit as error:
        code = error.code
        raise
    except BaseException:
        atexit.unregister(leave)
        raise


def main() -> None:
    """Run the command line and turn errors into messages and exit codes."""
    replace_unencodable(sys.stdout, sys.stderr)
    drop_overrides()
    restrict_umask()
    arguments = sys.argv[1:]
    position = _find_flag("--debug")
    debug = position is not None
    if position is not None:  # every command takes it, in any place
        del arguments[position]
    try:
        with panics_as_errors():
            code = _command()(args=arguments, prog_name="neft", standalone_mode=False)
        if code == INTERRUPTED:
            _report([Problem("stopped by Ctrl-C before anything was started", code=Interrupted.code)], INTERRUPTED)
        sys.exit(code)
    except UsageError as error:
        if debug:
            traceback.print_exc()
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help page of a group
            typer.echo(str(error), err=True)
        else:
            from neftcli.cli.usage import usage_problem

            _report([replace(usage_problem(error), code=USAGE)], 2)
        sys.exit(2)
    except NeftError as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, Preempted | Interrupted):
            _ignore_signals()
        if is_main_process() or not isinstance(error, Preempted | Interrupted):
            _report(error.problems, error.exit_code)
        sys.exit(error.exit_code)
    except Exception as error:
        if isinstance(error, PermissionError) and error.filename is not None:
            if debug:
                traceback.print_exc()
            path = str(error.filename)
            hint = f"ls -l {shlex.quote(path)}    shows the permissions"
            problem = Problem(f"{path}: no permission to read or write it", first_line(error), hint, code=PERMISSION)
            _report([problem], 2)
            sys.exit(2)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            message = "a file name or path is too long for this file system"
            _report([Problem(message, str(error.filename), code=InputError.code)], 2)
            sys.exit(2)
        if debug:
            raise
        if isinstance(error, typer.Abort) and isinstance(error.__cause__, Exception):  # what typer makes of EOFError
            error = error.__cause__
        problem = Problem(
            INTERNAL_MESSAGE,
            describe_error(error),
            "run the same command with --debug, and report its output",
            code=INTERNAL,
        )
        _report([problem], 1)
        sys.exit(1)
