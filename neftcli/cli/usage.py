"""Usage errors as problems: message, got, did you mean, hint."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from neftcli.errors import Problem
from neftcli.recipe.schema import keys

SHORT = 5
"""Characters of an option that is a part of too many others."""
COMMANDS = {"resume": "neft train --resume RUN", "sweep": "neft sweep-alpha", "finetune": "neft train"}


def usage_problem(error: Any) -> Problem:
    """The problem of one of typer's own errors."""
    command = error.ctx.command_path if error.ctx is not None else "neft"
    options, message = _options(error.ctx), error.format_message()
    if name := getattr(error, "option_name", None):
        if "such option" in message:
            name = _whole(name)
            nearest = _nearest(name, options)
            return Problem(f"{command}: there is no option {name}", name, _help(command), nearest)
        return Problem(_sentence(message), name, f"{name} VALUE" if "requires" in message else name)
    if found := re.search(r"unexpected extra arguments? \((.*)\)", message.replace("argument(s)", "arguments")):
        return _extra(command, found[1], options)
    if found := re.search(r"No such command '([^']*)'", message):
        return _no_command(error.ctx, command, found[1])
    if isinstance(error, typer.BadParameter) and error.__cause__ is not None and error.param is not None:
        return _bad_value(command, error)
    return Problem(f"{command}: {_sentence(message)}", hint=_help(command))


def _options(context: Any) -> list[str]:
    parameters = context.command.params if context is not None else []
    return [name for parameter in parameters for name in parameter.opts if name.startswith("--")]


def _nearest(name: str, options: Sequence[str]) -> str:
    """The option that was meant: by another tool's name for it, by its letters, or as a part of its name."""
    from neftcli.recipe.loading import FOREIGN_NAMES

    elsewhere = FOREIGN_NAMES.get(name[2:].replace("-", "_"))
    flags = {key.path: key.option.flag for key in keys()}
    if elsewhere is not None and flags[elsewhere] in options:
        return str(flags[elsewhere])
    parts = [one for one in options if len(name) > SHORT and name[2:] in one]
    return next(iter([*get_close_matches(f"--{name.lstrip('-')}", options, n=1), *parts]), "")


def _whole(name: str) -> str:
    """The option as it was typed, of which the parser takes the first letter alone: -alpha."""
    if name.startswith("--"):
        return name
    return next((typed for typed in sys.argv if typed.startswith(name) and typed[:2] != "--"), name).partition("=")[0]


def _extra(command: str, arguments: str, options: Sequence[str]) -> Problem:
    """Something that stands where the command takes nothing."""
    from neftcli.recipe import catalog

    said = f"{command}: nothing can stand here without an option"
    first, quoted = arguments.split()[0], shlex.quote(arguments)
    if command == "neft sweep-alpha" and re.fullmatch(r"[\d. ]+", arguments):
        return Problem(f"{command}: write the alphas as one list with commas", arguments, f"{command} --alphas 0,5,10")
    if "--recipe" in options and (arguments in catalog.list_recipes() or Path(first).suffix in (".yaml", ".yml")):
        return Problem(said, arguments, f"{command} --recipe {quoted}")
    if command == "neft eval" and len(arguments.split()) == 1:
        return Problem(f"{command}: one run or model is measured", arguments, f"{command} RUN --baseline {quoted}")
    if "--dataset" in options and Path(arguments).exists():
        return Problem(said, arguments, f"{command} --dataset {quoted}")
    return Problem(said, arguments, _help(command))


def _no_command(context: Any, command: str, name: str) -> Problem:
    names = context.command.list_commands(context) if context is not None else []
    nearest = "".join(get_close_matches(name, names, n=1, cutoff=0.5))
    hint = COMMANDS.get(name, "") if command == "neft" else ""
    return Problem(f"{command}: there is no command {name}", name, hint or _help(command), nearest)


def _bad_value(command: str, error: Any) -> Problem:
    """A value that pydantic refused."""
    option, detail = error.param.opts[0], error.__cause__.errors()[0]
    bounds = detail.get("ctx", {})
    wanted = f"{bounds['ge']} or more" if "ge" in bounds else "a whole number" if "int" in detail["type"] else ""
    said = f"must be {wanted}" if wanted else _sentence(detail["msg"])
    return Problem(f"{option} {said}", str(detail["input"]), _help(command))


def _sentence(message: str) -> str:
    """A message without its capital and its full stop."""
    return (message[:1].lower() + message[1:]).rstrip(".")


def _help(command: str) -> str:
    return f"{command} --help"
