"""Flags of recipe options, made from the schema, so that each option is defined once.

Values are read as YAML, exactly as in a recipe file, and checked with the rest of the recipe: a bad flag, a bad `--set`
and a bad line of a file are reported in the same words, all at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neftcli.cli.completion import complete_from, complete_model, complete_recipe
from neftcli.recipe.keys import Key, keys

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
    "sweep": "Sweep",
}
"""Titles of the sections of a help page by the recipe's section; other options are in "Run"."""
SET_BY_RECIPES = frozenset(
    {
        *("model.name", "model.chat_template", "data.source", "data.format", "data.max_length"),
        *("adapter.type", "adapter.r", "adapter.lora_alpha", "quantization.type", "neftune.alpha", "name"),
        *("training.gradient_checkpointing", "training.learning_rate", "training.max_steps"),
        *("training.num_train_epochs", "training.per_device_train_batch_size"),
    }
)
"""Options with a flag that a shipped recipe sets to a value other than the default."""


def with_recipe(*sections: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `--recipe`, `--set` and the flags of the recipe's options.

    The command takes the typed layers, the strongest last, as its first argument and the value of `--recipe` as the
    argument `recipe`; `recipe_of` makes the recipe of both.

    Args:
        sections: The recipe's sections whose options have a flag; all if there is none.
    """
    flagged = [
        key
        for key in keys()
        if key.option.flag and not key.option.commands and (not sections or key.path.partition(".")[0] in sections)
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        return _with_flags(command, flagged, "the recipe's", (), _recipe_option())

    return decorate


def recipe_of(layers: list[Layer], recipe: str | None) -> Recipe:
    """Load a recipe by its name or file and apply the layers; without a name the quickstart recipe, or the defaults."""
    from neftcli.recipe.loading import load_recipe, resolve_recipe

    own_name = _own_name(layers)
    if recipe is None and own_name:
        return resolve_recipe([own_name, *layers])
    return load_recipe(QUICKSTART if recipe is None else recipe, layers)


def with_overrides(
    name: str, paths: Container[str], default: str = "the recipe's"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `--set` and the flags of some options, for a recipe that an argument determines.

    The command takes the typed layers, the strongest last, as its first argument.

    Args:
        name: The command's name; options that only some commands have a flag for, this one among them, have it.
        paths: Dotted keys of other options with a flag, and of those whose default is `default`.
        default: Default of the options in `paths`, in words.
    """
    flagged = [key for key in keys() if key.option.flag and (name in key.option.commands or key.path in paths)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        return _with_flags(command, flagged, default, paths)

    return decorate


def _with_flags(
    command: Callable[..., None],
    flagged: list[Key],
    default: str,
    paths: Container[str],
    *before: inspect.Parameter,
) -> Callable[..., None]:
    """Return a command with the flags, and with the parameters `before` them; it takes the typed layers first."""

    @wraps(command)
    def wrapper(assignments: list[str] | None, **values: Any) -> None:
        typed = {key.path: values.pop(_parameter_name(key)) for key in flagged}
        command(_layers(assignments or [], typed, flagged), **values)

    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        if parameter.name not in {known.name for known in before}
    ]
    flags = [_flag(key, _default_in_help(key, default, paths)) for key in flagged]
    parameters = [*before, *flags, _set_option(), *own]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def _layers(assignments: list[str], typed: dict[str, Any], flagged: list[Key]) -> list[Layer]:
    from neftcli.recipe.loading import parse_assignment
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
        else:
            layer[key.path] = Setting(read_flag_value(key, value, flag), flag, f"{flag} {value}")
        layer.update({path: Setting(implied, flag, flag) for path, implied in key.option.implies})
    return [layer, *(parse_assignment(text) for text in assignments)]


def read_flag_value(key: Key, value: str, flag: str) -> Any:
    """Read the value of a flag: text as it is, a list by its commas, everything else as in a recipe file.

    For NUMBER|TEXT, a value that is not YAML ("1%") is text.
    """
    from neftcli.errors import Problem, RecipeError
    from neftcli.recipe.yaml_file import read_value

    kind = key.type_name
    if kind == "NUMBER|TEXT":
        try:
            return read_value(value, flag)
        except RecipeError:
            return value
    if kind == "LIST" and not value.lstrip().startswith("["):
        parts = [part.strip() for part in value.split(",")]
        if "" in parts and any(parts):
            hint = f"{flag} {','.join(filter(None, parts))}"
            raise RecipeError(Problem(f"{flag}: an entry between the commas is empty", f"{flag} {value}", hint))
        return tuple(read_value(part, flag) for part in parts if part)
    return value if kind == "TEXT" else read_value(value, flag)


def _own_name(layers: list[Layer]) -> Layer:
    """Name a run after the model and the data that were typed; return an empty layer without either."""
    from neftcli.recipe.loading import clean_name
    from neftcli.recipe.yaml_file import Setting

    typed = {path: setting.value for layer in layers for path, setting in layer.items()}
    parts = [typed[path] for path in ("model.name", "data.source") if isinstance(typed.get(path), str)]
    entries = typed.get("data.sources")
    if isinstance(entries, tuple):
        parts += [str(entry["source"]) for entry in entries if isinstance(entry, dict) and "source" in entry]
    if not parts:
        return {}
    name = "-".join(_without_endings(part.rstrip("/").rpartition("/")[2]) or "run" for part in parts)
    return {"name": Setting(clean_name(name), "--model and --dataset", name)}


def _without_endings(name: str) -> str:
    """Return a name without file extensions: rows.jsonl.gz is rows, but Qwen2.5-0.5B has none."""
    path = Path(name)
    while path.suffix and not path.suffix[1].isdigit():
        path = path.with_suffix("")
    return path.name


def _parameter_name(key: Key) -> str:
    return str(key.option.flag).removeprefix("--").replace("-", "_")


def _flag(key: Key, default: str) -> inspect.Parameter:
    """Return the parameter of a key's flag, with its help, choices and default."""
    settings: dict[str, Any] = {
        "help": _help(key, default),
        "rich_help_panel": PANELS.get(key.path.partition(".")[0], "Run"),
        "show_default": False,
    }
    if key.option.switch is not None:
        return _keyword(_parameter_name(key), Annotated[bool | None, typer.Option(key.option.flag, **settings)])
    kind: Any = list[str] if key.type_name == "LIST" else str
    if key.choices:
        settings["autocompletion"] = complete_from(lambda: key.choices)
    elif key.path == "model.name":
        settings["autocompletion"] = complete_model
    option = typer.Option(key.option.flag, metavar=_metavar(key), **settings)
    return _keyword(_parameter_name(key), Annotated[kind | None, option])


def _metavar(key: Key) -> str:
    """Return the placeholder of a flag's value: its type, or the name of a choice."""
    if key.choices:
        return str(key.option.flag).rpartition("-")[2].upper()
    return "V,V" if key.type_name == "LIST" else key.type_name


def _help(key: Key, default: str) -> str:
    """Return the help of a flag, with its choices and default: "Row format: auto, text  [default: auto]"."""
    help_text = key.flag_help
    if key.choices and key.option.switch is None:
        help_text += f": {', '.join(key.choices)}"
    if key.option.switch is not None or not default:
        return help_text
    return f"{help_text}  [default: {default}]"


def _default_in_help(key: Key, default: str, paths: Container[str]) -> str:
    """Return the default that the help of a flag shows: `default` if a recipe or a run sets the option."""
    if default == "the recipe's":
        return default if key.path in SET_BY_RECIPES else key.default_text
    return default if key.path in paths else key.default_text


def _recipe_option() -> inspect.Parameter:
    return _keyword(
        "recipe",
        Annotated[
            str | None,
            typer.Option(
                "--recipe",
                metavar="NAME|FILE",
                help="Shipped recipe (see `neft recipes`) or YAML file  [default: quickstart; none with --model or "
                "--dataset]",
                show_default=False,
                autocompletion=complete_recipe,
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
                help="Set any option of the recipe; may be repeated",
                show_default=False,
                rich_help_panel="Run",
            ),
        ],
    )


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
