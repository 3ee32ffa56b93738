"""Flags for recipe options, made from the schema, so that an option is defined once.

Values are read as YAML, exactly as in a recipe file, and checked with the rest of the recipe; so a bad flag, a bad
`--set` and a bad line of a file are told in the same words, all at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neftcli.recipe.schema import Key, keys, type_name

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.recipe.yaml_file import Layer

QUICKSTART = "quickstart"
PANELS = {
    "model": "Model",
    "data": "Data",
    "neftune": "NEFTune",
    "adapter": "Adapter",
    "quantization": "Adapter",
    "training": "Training",
    "checkpoints": "Training",
    "evaluation": "Evaluation",
}


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Gives `command` the options `--recipe`, `--set` and one flag for each flagged option of training.

    `command` takes the layers that were typed, the strongest last, as its first argument and the value of `--recipe` as
    the argument `recipe`; `recipe_of` makes the recipe of both.
    """
    flagged = [key for key in keys() if key.option.flag and not key.option.command]
    return _with_flags(command, flagged, _recipe_option())


def recipe_of(layers: list[Layer], recipe: str | None) -> Recipe:
    """The recipe of a name or file with `layers` over it; without one the quickstart, or the defaults."""
    from neftcli.recipe.loading import load_recipe, resolve

    own_name = _own_name(layers)
    if recipe is None and own_name:
        return resolve([own_name, *layers])
    return load_recipe(QUICKSTART if recipe is None else recipe, layers)


def with_overrides(name: str, paths: Container[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command `--set` and the flags of some options, for a recipe that something else determines.

    The command takes the layers that were typed, the strongest last, as its first argument.

    Args:
        name: The command's name; options of this command alone get their flag.
        paths: Dotted keys of other options that do.
    """
    flagged = [key for key in keys() if key.option.flag and (key.option.command == name or key.path in paths)]
    return lambda command: _with_flags(command, flagged)


def _with_flags(command: Callable[..., None], flagged: list[Key], *before: inspect.Parameter) -> Callable[..., None]:
    """`command` with the flags, and the options `before` them; it is given the typed layers first."""

    @wraps(command)
    def wrapper(assignments: list[str] | None, **values: Any) -> None:
        typed = {key.path: values.pop(_parameter(key)) for key in flagged}
        command(_layers(assignments or [], typed, flagged), **values)

    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        if parameter.name not in {known.name for known in before}
    ]
    parameters = [*before, *(_flag(key) for key in flagged), _set_option(), *own]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def _layers(assignments: list[str], typed: dict[str, Any], flagged: list[Key]) -> list[Layer]:
    from neftcli.recipe.loading import assignment
    from neftcli.recipe.yaml_file import Setting

    layer: Layer = {}
    for key in flagged:
        value = typed[key.path]
        flag = str(key.option.flag)
        if isinstance(value, list):  # a list's flag may be repeated
            value = ",".join(value) if value else None
        if value is None:
            continue
        if key.option.switch is not None:
            layer[key.path] = Setting(key.option.switch, flag, flag)
            layer.update({path: Setting(implied, flag, flag) for path, implied in key.option.implies})
        else:
            layer[key.path] = Setting(_flag_value(key, value, flag), flag, f"{flag} {value}")
    return [layer, *(assignment(text) for text in assignments)]


def _flag_value(key: Key, value: str, flag: str) -> Any:
    """The value of a flag: text as it is, a list with commas between, anything else as in a recipe file.

    If a number or text is expected, what is no YAML ("%") is text.
    """
    from neftcli.errors import RecipeError
    from neftcli.recipe.yaml_file import read_value

    kind = type_name(key.type)
    if kind == "NUMBER|TEXT":
        try:
            return read_value(value, flag)
        except RecipeError:
            return value
    if kind == "LIST" and not value.lstrip().startswith("["):
        return tuple(read_value(part.strip(), flag) for part in value.split(",") if part.strip())
    return value if kind == "TEXT" else read_value(value, flag)


def _own_name(layers: list[Layer]) -> Layer:
    """A name for a run of a model or data of one's own; empty where neither was typed."""
    from neftcli.recipe.yaml_file import Setting

    said = {path: setting.value for layer in layers for path, setting in layer.items()}
    parts = [said[path] for path in ("model.name", "data.source") if isinstance(said.get(path), str)]
    entries = said.get("data.sources")
    if isinstance(entries, tuple):
        parts += [str(entry["source"]) for entry in entries if isinstance(entry, dict) and "source" in entry]
    if not parts:
        return {}
    name = "-".join(part.rstrip("/").rpartition("/")[2].partition(".")[0] or "run" for part in parts)
    cleaned = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name if letter.isascii())
    return {"name": Setting(cleaned.lstrip("-")[:40] or "run", "--model and --dataset", name)}


def _parameter(key: Key) -> str:
    return str(key.option.flag).removeprefix("--").replace("-", "_")


def _flag(key: Key) -> inspect.Parameter:
    section = key.path.partition(".")[0]
    shared: dict[str, Any] = {"help": _help(key), "rich_help_panel": PANELS.get(section, "Run"), "show_default": False}
    if key.option.switch is not None:
        return _keyword(_parameter(key), Annotated[bool | None, typer.Option(key.option.flag, **shared)])
    metavar = type_name(key.type)
    kind: Any = list[str] if metavar == "LIST" else str
    return _keyword(
        _parameter(key),
        Annotated[kind | None, typer.Option(key.option.flag, metavar=metavar, **shared)],
    )


def _help(key: Key) -> str:
    return f"{key.flag_help} ({key.path})"


def _recipe_option() -> inspect.Parameter:
    return _keyword(
        "recipe",
        Annotated[
            str | None,
            typer.Option(
                "--recipe",
                metavar="NAME|FILE",
                help="A shipped recipe (see `neft recipes`) or a YAML file. Without it: quickstart, or the defaults "
                "where --model or --dataset is given.",
                show_default=False,
                rich_help_panel="Run",
            ),
        ],
    )


def _set_option() -> inspect.Parameter:
    return _keyword(
        "assignments",
        Annotated[
            list[str] | None,
            typer.Option(
                "--set",
                metavar="KEY=VALUE",
                help="Set any option of the recipe: --set training.learning_rate=1e-4. May be repeated.",
                show_default=False,
                rich_help_panel="Run",
            ),
        ],
    )


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
