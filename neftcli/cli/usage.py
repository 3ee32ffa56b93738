"""Usage errors of typer, reported like every other error: what is wrong, what neft got, a hint to type."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from neftcli.errors import Problem
from neftcli.recipe.keys import keys

MIN_PART = 5
"""Characters from which a part of an option's name suggests the option; shorter parts fit too many."""
OTHER_COMMANDS = {
    "resume": "neft train --resume RUN",
    "sweep": "neft sweep-alpha",
    "finetune": "neft train",
    "inspect": "neft data inspect",
}
"""Names that people expect, and the command to type instead."""
RUNS_COMMANDS = {
    "ls": "neft runs list",
    "remove": "neft runs rm RUN",
    "delete": "neft runs rm RUN",
    "diff": "neft runs compare A B",
}
"""The same below `neft runs`; other names are taken for a run's."""


def usage_problem(error: Any) -> Problem:
    """Convert an error of typer to a problem."""
    command = error.ctx.command_path if error.ctx is not None else "neft"
    options, message = _option_names(error.ctx), error.format_message()
    if name := getattr(error, "option_name", None):
        if "such option" in message:
            name = _typed_option(name)
            nearest = _closest_option(name, options)
            return Problem(f"{command}: there is no option {name}", name, f"{command} --help", nearest)
        return Problem(_as_clause(message), name, f"{name} VALUE" if "requires" in message else name)
    if match := re.search(r"unexpected extra arguments? \((.*)\)", message.replace("argument(s)", "arguments")):
        return _extra_argument(command, match[1], options, error.ctx.params)
    if match := re.search(r"No such command '([^']*)'", message):
        return _unknown_command(error.ctx, command, match[1])
    if isinstance(error, typer.BadParameter) and error.__cause__ is not None and error.param is not None:
        return _bad_value(command, error)
    return Problem(f"{command}: {_as_clause(message)}", hint=f"{command} --help")


def find_flag(command: Any, flag: str, words: Sequence[str]) -> int | None:
    """Return the index of a flag among the words of a command line; None if it was not typed, or as a value.

    Args:
        command: The root command of typer.
        flag: The flag, "--json".
        words: The command line without the program.
    """
    is_value = False
    for index, word in enumerate(words):
        if is_value:
            is_value = False
        elif word == "--":
            return None
        elif word == flag:
            return index
        elif word.startswith("-"):
            is_value = any(word in parameter.opts and not parameter.is_flag for parameter in _options(command))
        else:
            command = getattr(command, "commands", {}).get(word, command)
    return None


def _options(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "option"]


def _option_names(context: Any) -> list[str]:
    parameters = context.command.params if context is not None else []
    return [name for parameter in parameters for name in parameter.opts if name.startswith("--")]


def _closest_option(name: str, options: Sequence[str]) -> str:
    """Return the option that a name of another tool means, or the most similar one, or one that contains the name."""
    from neftcli.recipe.loading import FOREIGN_NAMES

    path = FOREIGN_NAMES.get(name[2:].replace("-", "_"))
    flags = {key.path: key.option.flag for key in keys()}
    if path is not None and flags[path] in options:
        return str(flags[path])
    similar = get_close_matches(f"--{name.lstrip('-')}", options, n=1)
    if not similar and len(name) > MIN_PART:
        similar = [option for option in options if name[2:] in option]
    return similar[0] if similar else ""


def _typed_option(name: str) -> str:
    """Return an option as it was typed: of `-alpha` the parser reports the first letter alone."""
    if name.startswith("--"):
        return name
    for typed in sys.argv:
        if typed.startswith(name) and not typed.startswith("--"):
            return typed.partition("=")[0]
    return name


def _extra_argument(command: str, arguments: str, options: Sequence[str], values: Mapping[str, Any]) -> Problem:
    """Return the problem of arguments that a command does not take, with the option that they need."""
    from neftcli.recipe import catalog

    message = f"{command}: this argument needs an option in front of it"
    first, quoted = arguments.split()[0], shlex.quote(arguments)
    if command == "neft sweep-alpha" and re.fullmatch(r"[\d. ]+", arguments):
        return Problem(f"{command}: write the alphas as one list with commas", arguments, f"{command} --alphas 0,5,10")
    if "--recipe" in options and (arguments in catalog.list_recipes() or Path(first).suffix in (".yaml", ".yml")):
        return Problem(message, arguments, f"{command} --recipe {quoted}")
    second = {"neft eval": "--baseline", "neft chat": "--against"}.get(command)
    if second is not None and len(arguments.split()) == 1:
        target = shlex.quote(str(values.get("target") or "RUN"))
        hint = f"{command} {target} {second} {quoted}"
        return Problem(f"{command} takes one run or model", arguments, hint)
    if "--dataset" in options and Path(arguments).exists():
        return Problem(message, arguments, f"{command} --dataset {quoted}")
    return Problem(f"{command}: unexpected argument", arguments, f"{command} --help")


def _unknown_command(context: Any, command: str, name: str) -> Problem:
    names = context.command.list_commands(context) if context is not None else []
    by_first_part = {first: full for full in names for first in (full, full.partition("-")[0])}
    nearest = "".join(by_first_part[found] for found in get_close_matches(name, by_first_part, n=1))
    hint = OTHER_COMMANDS.get(name, "") if command == "neft" else ""
    if command == "neft runs":
        hint = RUNS_COMMANDS.get(name, "" if nearest else f"neft runs show {shlex.quote(name)}")
    return Problem(f"{command}: there is no command {name}", name, hint or f"{command} --help", nearest)


def _bad_value(command: str, error: Any) -> Problem:
    """Return the problem of a value that pydantic rejects."""
    option, detail = error.param.opts[0], error.__cause__.errors()[0]
    bounds = detail.get("ctx", {})
    requirement = _as_clause(detail["msg"])
    if "ge" in bounds:
        requirement = f"must be {bounds['ge']} or more"
    elif "int" in detail["type"]:
        requirement = "must be a whole number"
    return Problem(f"{option} {requirement}", str(detail["input"]), f"{command} --help")


def _as_clause(message: str) -> str:
    """Return a message without its capital and its full stop."""
    return (message[:1].lower() + message[1:]).rstrip(".")
