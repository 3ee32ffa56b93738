"""Merge the settings of files and command line, validate them, and build the recipe.

Precedence: command line, then recipe file, then the file it extends, then the defaults of the schema. All errors are
reported together.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, get_type_hints

from neftcli.errors import Problem, RecipeError
from neftcli.metrics.registry import HELD_OUT_LOSS
from neftcli.recipe import catalog
from neftcli.recipe.hints import (
    closest_choice,
    describe_type,
    is_mapping,
    list_entry_type,
    suggest_list_flag,
    suggest_value,
)
from neftcli.recipe.keys import Key, format_value, keys
from neftcli.recipe.relative_paths import OPTIONS, find_relative_paths, rewrite_layer, rewrite_value
from neftcli.recipe.schema import MIN_SHARE, Option, Recipe
from neftcli.recipe.yaml_file import Layer, Setting, read_layer, read_value

SHOW_OPTIONS = "neft recipes show quickstart --all    to see every option with its default"
EXTENDS = "extends"
FOREIGN_NAMES = {
    "neftune_noise_alpha": "neftune.alpha",
    "noise_alpha": "neftune.alpha",
    "max_seq_length": "data.max_length",
    "cutoff_len": "data.max_length",
    "completion_only_loss": "data.loss_on",
    "assistant_only_loss": "data.loss_on",
    "lora_rank": "adapter.r",
    "lora_target": "adapter.target_modules",
    "model_name_or_path": "model.name",
    "base_model": "model.name",
    "dataset_name": "data.source",
    "load_in_4bit": "quantization.type",
    "num_epochs": "training.num_train_epochs",
    "lr": "training.learning_rate",
    "bs": "training.per_device_train_batch_size",
    "metric_for_best_model": "training.best_metric",
}
"""Option names of other tools, for which the most similar name is a different option."""
MAX_COMMON_WORD = 4
"""Letters of a word that is a part of too many options to be a hint."""
WEIGHTED = "--set data.sources='[{source: a.jsonl, weight: 2}, {source: b.jsonl, weight: 1}]'"
ADAPTER_KEYS = ("r", "lora_", "target_", "modules_", "use_", "init_", "pissa_", "loraplus_")
"""Beginnings of the options of an adapter, but for its type."""
PISSA = "--set adapter.init_lora_weights=pissa"
FLOOR = "--set training.lr_scheduler_type=cosine_with_min_lr"
EXCLUSIVE = {"data.source": "data.sources", "data.sources": "data.source"}
"""Options that exclude each other: a setting with precedence replaces the other; both in one file are an error."""
NOT_HASHED = ("name", "about", "output_dir", "checkpoints", "evaluation", "sweep")
"""Options and sections that don't affect the weights."""
NOT_HASHED_OPTIONS = ("training.report_to", "training.best_metric")
"""Options of other sections that don't affect the weights."""
EVERY = "evaluation.every"
BEST_METRIC = "training.best_metric"
ANSWER_SELECTION = (
    *(BEST_METRIC, "evaluation.during_rows"),
    *("evaluation.generation.max_new_tokens", "evaluation.generation.repetition_penalty"),
    "evaluation.generation.batch_size",
)
"""Options that affect the weights if a metric of answers during training selects them."""


def load_recipe(name_or_path: str, overrides: Iterable[Layer] = (), *, as_written: bool = False) -> Recipe:
    """Load a recipe by name or path, with overrides.

    Args:
        name_or_path: A shipped recipe's name ("quickstart") or a file's path.
        overrides: Layers of the command line; later ones take precedence.
        as_written: Keep the paths of a run's recipe; otherwise make them relative to the current folder.

    Raises:
        RecipeError: With all errors of the recipe.
    """
    return resolve_recipe([*read_recipe_layers(name_or_path, as_written=as_written), *overrides])


def read_recipe_layers(name_or_path: str, *, as_written: bool = False) -> list[Layer]:
    """Return the layers of a recipe file: first those of the recipe that it extends, then its own.

    If none of them has a name, the first layer names the recipe after its file. The relative paths of a run's recipe
    are rewritten for the current folder, unless it is read `as_written`.
    """
    layers: list[Layer] = []
    visited: list[Path] = []
    path = catalog.find_recipe(name_or_path)
    while True:
        if path.resolve() in visited:
            chain = " -> ".join(file.name for file in [*visited, path])
            raise RecipeError(Problem(f"{path}: a recipe can't extend itself", chain, "remove one of the `extends`"))
        visited.append(path.resolve())
        layer = read_layer(path)
        if not as_written and (relative_paths := find_relative_paths(path)) is not None:
            layer = rewrite_layer(layer, relative_paths.to_current_folder)
        parent = layer.pop(EXTENDS, None)
        layers.insert(0, layer)
        if parent is None:
            break
        if not isinstance(parent.value, str):
            raise RecipeError(
                Problem(f"{parent.origin}: extends must name a recipe", parent.typed, "extends: quickstart")
            )
        path = catalog.find_recipe(parent.value, parent=path.parent, origin=parent.origin)
    if not any("name" in layer for layer in layers):
        stem = visited[0].stem
        layers.insert(0, {"name": Setting(clean_name(stem), str(visited[0]), stem)})
    return layers


def clean_name(text: str) -> str:
    """Return a text as the name of a run: at most 40 letters, digits, dots, hyphens and underscores of ASCII."""
    cleaned = "".join(letter if letter.isalnum() or letter in ".-_" else "-" for letter in text if letter.isascii())
    return cleaned.lstrip(".-")[:40] or "run"


def parse_assignment(text: str) -> Layer:
    """Parse a `--set key=value` into a layer."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(Problem("--set takes key=value", text, "--set training.learning_rate=1e-4"))
    origin = f"--set {key.strip()}"
    return {key.strip(): Setting(read_value(value, origin), origin, text)}


def resolve_recipe(layers: Iterable[Layer]) -> Recipe:
    """Merge layers over the defaults, validate everything, and return the recipe.

    Raises:
        RecipeError: With all errors of the recipe.
    """
    merged: Layer = {}
    below: Layer = {}  # settings of files that were replaced
    for layer in layers:
        for path, setting in layer.items():
            if path in merged and _is_of_file(merged[path]):
                below[path] = merged[path]
            # Replaced settings are removed, so that `merged` is in the order in which settings apply.
            merged = {key: old for key, old in merged.items() if not f"{key}.".startswith(f"{path}.")}
            excluded = merged.get(EXCLUSIVE.get(path, ""))
            if excluded is not None and _source(excluded) != _source(setting):
                del merged[EXCLUSIVE[path]]
            merged[path] = setting
    problems: list[Problem] = []
    known = {key.path: key for key in keys()}
    nested: dict[str, Any] = {}
    for path, setting in merged.items():
        if _option_of(path, known) is None:
            problems.append(_unknown(path, setting, known))
        elif not _is_encodable(setting.value):
            # Only from flags: Python turns a shell's bytes that are not UTF-8 into surrogates.
            message = f"{setting.origin}: {path} has bytes that are not UTF-8"
            problems.append(Problem(message, ascii(setting.value), "use a name in UTF-8"))
        else:
            _insert(nested, path, setting.value)
    recipe, invalid = _validate(nested, merged, below, known)
    problems += invalid
    if recipe is None or problems:
        raise RecipeError(*problems)
    problems = _contradictions(recipe, merged)
    if problems:
        raise RecipeError(*problems)
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, which `load_recipe` reads back to an equal recipe."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import SafeRepresenter

    class Representer(SafeRepresenter):
        """Escapes rare line breaks: ruamel writes them unescaped, and reads them back as spaces."""

        def represent_str(self, data: str) -> Any:
            breaks = any(character in data for character in "\x85\u2028\u2029")
            return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if breaks else None)

    Representer.add_representer(str, Representer.represent_str)
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = Representer
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = StringIO()
    yaml.dump(_plain(asdict(recipe)), stream)
    return stream.getvalue()


def recipe_differences(first: Recipe, second: Recipe, prefixes: tuple[str, ...] = ()) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ between two recipes: dotted key to both values.

    Args:
        first: A recipe.
        second: The recipe to compare it with.
        prefixes: Compare only keys with one of these prefixes; if empty, those that affect the weights.
    """
    changed = {}
    selecting = {*selection_options(first), *selection_options(second)}
    for path in (key.path for key in keys()):
        is_compared = path.startswith(prefixes) if prefixes else _affects_weights(path, selecting)
        before, after = value_at(first, path), value_at(second, path)
        if is_compared and before != after:
            changed[path] = (before, after)
    return changed


def selection_options(recipe: Recipe) -> tuple[str, ...]:
    """Return the options that affect the weights because evaluations during training select them; none if they don't.

    Options that always affect the weights are not among them.
    """
    if not recipe.training.selects_weights():
        return ()
    return (EVERY,) if recipe.training.best_metric == HELD_OUT_LOSS else (EVERY, *ANSWER_SELECTION)


def _affects_weights(path: str, selecting: Container[str]) -> bool:
    """Return whether an option affects the weights; `selecting`: those that do because evaluations select them."""
    if path in selecting:
        return True
    return path.partition(".")[0] not in NOT_HASHED and path not in NOT_HASHED_OPTIONS


def rewrite_paths(recipe: Recipe, change: Callable[[str], str]) -> Recipe:
    """Return the recipe with its paths rewritten."""
    content: Any = recipe
    for path in OPTIONS:
        content = _rewrite_section(content, path.split("."), change)
    return content  # type: ignore[no-any-return]


def _rewrite_section(section: Any, path: list[str], change: Callable[[str], str]) -> Any:
    name, *below = path
    value = getattr(section, name, None)
    if value is None:
        return section
    changed = _rewrite_section(value, below, change) if below else rewrite_value(value, change)
    return replace(section, **{name: changed})


def list_path_values(recipe: Recipe) -> list[str]:
    """Return all values of the recipe that may be paths."""
    values: list[str] = []

    def collect(value: str) -> str:
        values.append(value)
        return value

    rewrite_paths(recipe, collect)
    return values


def value_at(recipe: Recipe, path: str) -> Any:
    """Return the value of an option; entries of data.sources as in JSON."""
    value: Any = recipe
    for part in path.split("."):
        value = getattr(value, part)
    if isinstance(value, tuple) and any(map(is_dataclass, value)):  # as in JSON
        return [{name: entry for name, entry in asdict(item).items() if entry is not None} for item in value]
    return value


def recipe_fingerprint(recipe: Recipe) -> str:
    """Return the SHA-256 of the options of the resolved recipe that affect the weights."""
    content = {key: value for key, value in _plain(asdict(recipe)).items() if key not in NOT_HASHED}
    for path in NOT_HASHED_OPTIONS:
        section, _, name = path.partition(".")
        del content[section][name]
    for path in selection_options(recipe):
        content[path] = value_at(recipe, path)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _source(setting: Setting) -> str:
    """Return the source of a setting: the command line, or its file."""
    return "the command line" if setting.origin.startswith("-") else setting.origin.rpartition(", line ")[0]


def _is_of_file(setting: Setting) -> bool:
    return ", line " in setting.origin and not setting.origin.startswith("-")


def _option_of(path: str, known: Mapping[str, Key]) -> Key | None:
    """Return the option that a dotted key sets: the key itself, or the mapping that it is an entry of."""
    if path in known:
        return known[path]
    parent = known.get(path.rpartition(".")[0])
    return parent if parent is not None and is_mapping(parent.type) else None


def _is_encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _insert(nested: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        if not isinstance(nested.get(parent), dict):
            nested[parent] = {}
        nested = nested[parent]
    nested[last] = dict(value) if isinstance(value, Mapping) else value


def _unknown(path: str, setting: Setting, known: Mapping[str, Key]) -> Problem:
    sections = {key.rpartition(".")[0] for key in known} - {""}
    if path in sections:
        options = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == path]
        hint = f"--set {path}.{options[0]}=VALUE" if setting.origin.startswith("--") else f"{path}: {{...}}"
        hint += f"    its options are {', '.join(options)}"
        return Problem(f"{setting.origin}: {path} is a section, not an option", setting.typed, hint)
    closest = closest_key(path, known)
    return Problem(f"{setting.origin}: {path} is not an option", setting.typed, SHOW_OPTIONS, closest)


def closest_key(path: str, known: Iterable[str]) -> str:
    """Return the known key most similar to `path`, by its full path or its last part; empty if none is similar."""
    if path.rpartition(".")[2] in FOREIGN_NAMES:
        return FOREIGN_NAMES[path.rpartition(".")[2]]
    by_last_part = {key.rpartition(".")[2]: key for key in known}
    whole = get_close_matches(path, known, n=1, cutoff=0.75)
    if whole:
        return whole[0]
    typed = path.rpartition(".")[2]
    last = get_close_matches(typed, by_last_part, n=1, cutoff=0.7)
    # "batch_size" is similar to "batching", but is meant for an option that contains it.
    parts = [name for name in by_last_part if len(typed) > MAX_COMMON_WORD and f"_{typed}" in f"_{name}"]
    return by_last_part[[*parts, *last][0]] if parts or last else ""


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Recipe)


def _validate(
    nested: dict[str, Any], merged: Layer, below: Layer, known: Mapping[str, Key]
) -> tuple[Recipe | None, list[Problem]]:
    from pydantic import ValidationError

    try:
        # In JSON mode pydantic is strict about values ("5" is not a number) and still builds dataclasses from mappings.
        return _adapter().validate_json(json.dumps(nested), strict=True), []
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            path, setting = _known_prefix(detail["loc"], known), merged[_known_prefix(detail["loc"], merged)]
            if (entry := list_entry_type(known[path].type)) and len(detail["loc"]) > len(path.split(".")):
                inside = detail["loc"][len(path.split(".")) :]
                problems.append(_entry_problem(path, setting, entry, inside))
                continue
            message = f"{setting.origin}: {path} must be {describe_type(known[path].type)}"
            near = closest_choice(known[path], setting.value)
            hint = suggest_list_flag(path, setting.value)
            hint = hint or suggest_value(known[path], setting.origin, near, _value_below(known[path], below))
            if list_entry_type(known[path].type):
                hint = WEIGHTED
            problems.append(Problem(message, setting.typed, hint, near))
        return None, list(dict.fromkeys(problems))  # a union reports each of its choices


def _value_below(key: Key, below: Layer) -> tuple[Any, str] | None:
    """Return a valid value that was replaced, and the name of its file; None if there is none."""
    from pydantic import TypeAdapter, ValidationError

    setting = below.get(key.path)
    if setting is None:
        return None
    try:
        TypeAdapter(key.type).validate_json(json.dumps(setting.value), strict=True)
    except ValidationError:
        return None
    return setting.value, Path(_source(setting)).name


def _entry_problem(path: str, setting: Setting, entry: type, location: tuple[Any, ...]) -> Problem:
    """Return the error of an entry of a list of mappings; `location` is its index, then the key in it."""
    hints = {
        name: hint for name, hint in get_type_hints(entry, include_extras=True).items() if not name.startswith("_")
    }
    where = f"{setting.origin}: {path}, entry {location[0] + 1}"
    item = setting.value[location[0]]
    needed = [field.name for field in fields(entry) if field.default is MISSING]
    form = f"{{{', '.join(f'{name}: ...' for name in needed)}}}    keys: {', '.join(hints)}"
    if len(location) == 1 or not isinstance(item, Mapping):
        return Problem(f"{where} must be {describe_type(entry)}", str(item)[:60], form)
    key = str(location[1])
    if key not in hints:
        near = "".join(get_close_matches(key, hints, n=1))
        return Problem(f"{where}: {key} is not a key of an entry", str(dict(item))[:60], form, near)
    if key not in item:
        return Problem(f"{where} has no {key}", str(dict(item))[:60], form)
    near = closest_choice(Key(key, Option(""), hints[key], None), item[key])
    return Problem(f"{where}: {key} must be {describe_type(hints[key])}", str(item[key])[:60], form, near)


def _known_prefix(location: tuple[Any, ...], known: Container[str]) -> str:
    parts = [str(part) for part in location]
    return next(path for end in range(len(parts), 0, -1) if (path := ".".join(parts[:end])) in known)


def _needs(recipe: Recipe) -> list[tuple[str, bool, str, str]]:
    """Return the options that need another: (prefix of their keys, need is met, needed setting, hint)."""
    lora, sampled = recipe.adapter.type == "lora", recipe.evaluation.generation.do_sample
    sampling = ("do_sample: true", "--set evaluation.generation.do_sample=true")
    has_floor = recipe.training.lr_scheduler_type in ("cosine_with_min_lr", "warmup_stable_decay")
    weighted = any(source.weight is not None for source in recipe.data.sources)
    return [
        *((f"adapter.{key}", lora, "adapter.type lora", "--lora") for key in ADAPTER_KEYS),
        ("adapter.pissa_", recipe.adapter.uses_pissa() or not lora, "adapter.init_lora_weights pissa", PISSA),
        ("quantization.double", recipe.quantization.type == "nf4", "quantization.type nf4", "--qlora"),
        *((f"evaluation.generation.{key}", sampled, *sampling) for key in ("temperature", "top_p")),
        ("training.min_lr_ratio", has_floor, "a schedule with an end above 0", FLOOR),
        ("data.stopping_strategy", weighted, "weights in data.sources", WEIGHTED),
        (BEST_METRIC, recipe.training.selects_weights(), "training.keep best or training.patience", "--keep best"),
        ("evaluation.during_rows", bool(recipe.evaluation.during), "evaluation.during", "--during rouge_l"),
        ("evaluation.task_settings", bool(recipe.evaluation.tasks), "evaluation.tasks", "--tasks arc_easy"),
    ]


def _is_default(path: str, merged: Layer) -> bool:
    """Return whether a file sets an option to its default, as a run's recipe.yaml does."""
    default = next(key.default for key in keys() if key.path == path)
    return not merged[path].origin.startswith("-") and merged[path].value == default


def _contradictions(recipe: Recipe, merged: Layer) -> list[Problem]:
    """Return the errors of options that are valid by themselves but contradict each other."""

    def where(path: str) -> str:
        return merged[path].origin if path in merged else "defaults"

    problems = [
        Problem(f"{setting.origin}: {path} needs {needed}", setting.typed, hint)
        for path, setting in merged.items()
        if setting.origin.startswith("--")
        for prefix, met, needed, hint in _needs(recipe)
        if path.startswith(prefix) and not met
    ]
    if recipe.data.sources and "data.source" in merged and not _is_default("data.source", merged):
        problems.append(
            Problem(
                f"{where('data.sources')}: data.source and data.sources can't be combined",
                merged["data.source"].typed,
                "use one of the two; a single source can be an entry of data.sources",
            )
        )
    if recipe.quantization.type != "none" and recipe.adapter.type == "none":
        problems.append(
            Problem(
                f"{where('quantization.type')}: quantization.type {recipe.quantization.type} needs an adapter: "
                "quantised weights can't be trained",
                "adapter.type none",
                "--lora, or adapter.type: lora",
            )
        )
    if recipe.quantization.type == "int8" and recipe.adapter.type != "none" and recipe.adapter.use_dora:
        problems.append(
            Problem(
                f"{where('adapter.use_dora')}: adapter.use_dora and quantization.type int8 can't be combined: peft "
                "loses the scales of the weights",
                "adapter.use_dora true",
                "--qlora, or --set adapter.use_dora=false",
            )
        )
    if {"@", "?", "#"} & set(recipe.evaluation.judge.base_url or ""):
        problems.append(
            Problem(
                f"{where('evaluation.judge.base_url')}: evaluation.judge.base_url must not contain a user, password or "
                "key",
                "a URL with @, ? or #",
                "export OPENAI_API_KEY=...    the key is read from the environment and never written",
            )
        )
    if len(set(recipe.model.new_tokens)) < len(recipe.model.new_tokens):
        message = f"{where('model.new_tokens')}: model.new_tokens names a token twice"
        problems.append(Problem(message, ", ".join(recipe.model.new_tokens), "name each token once"))
    problems += _pissa_problems(recipe, where("adapter.init_lora_weights"))
    if recipe.training.freeze and recipe.adapter.type != "none":
        problems.append(
            Problem(
                f"{where('training.freeze')}: training.freeze and adapter.type {recipe.adapter.type} can't be combined",
                ", ".join(recipe.training.freeze),
                "--set training.freeze=[]    an adapter freezes all of the model's weights",
            )
        )
    problems += _selection_problems(recipe, where)
    if recipe.adapter.modules_to_save and recipe.adapter.type == "none" and not problems:
        problems.append(
            Problem(
                f"{where('adapter.modules_to_save')}: adapter.modules_to_save needs adapter.type lora",
                "adapter.type none",
                "--lora",
            )
        )
    return problems


def _pissa_problems(recipe: Recipe, origin: str) -> list[Problem]:
    """Return the errors of options that PiSSA can't be combined with, since it changes the base weights.

    Args:
        recipe: The recipe.
        origin: Origin of adapter.init_lora_weights.
    """
    if not recipe.adapter.uses_pissa():
        return []
    message = f"{origin}: adapter.init_lora_weights pissa and {{}} can't be combined: the saved adapter would not fit"
    problems = []
    if recipe.quantization.type != "none":
        quantization = f"quantization.type {recipe.quantization.type}"
        reason = f"{message.format(quantization)} the quantised base model"
        problems.append(Problem(reason, quantization, "--set quantization.type=none"))
    if recipe.adapter.use_dora:
        reason = f"{message.format('adapter.use_dora')} the norms of the original weights"
        problems.append(Problem(reason, "adapter.use_dora true", "--set adapter.use_dora=false"))
    return problems


def _selection_problems(recipe: Recipe, where: Callable[[str], str]) -> list[Problem]:
    """Return the errors of a recipe whose evaluations can't select weights or stop the training.

    Args:
        recipe: The recipe.
        where: Returns the origin of an option.
    """
    training, every = recipe.training, recipe.evaluation.every
    path = "training.keep" if training.keep == "best" else "training.patience"
    name = f"{where(path)}: {path}{' best' if training.keep == 'best' else ''}"
    problems = []
    if training.selects_weights() and not recipe.data.held_out_rows:
        problems.append(Problem(f"{name} needs a held-out split", "data.held_out_rows 0", "--held-out-rows 200"))
    elif recipe.evaluation.during and not recipe.data.held_out_rows:
        message = f"{where('evaluation.during')}: evaluation.during needs a held-out split"
        problems.append(Problem(message, "data.held_out_rows 0", "--held-out-rows 200"))
    metric = training.best_metric
    if training.selects_weights() and metric not in (HELD_OUT_LOSS, *recipe.evaluation.during):
        message = f"{where(BEST_METRIC)}: {BEST_METRIC} {metric} is not measured during training"
        measured = ",".join((*recipe.evaluation.during, metric))
        received = f"evaluation.during {format_value(recipe.evaluation.during)}"
        problems.append(Problem(message, received, f"--during {measured}"))
    evaluations = math.ceil(1 / every - 1e-9)
    if training.selects_weights() and evaluations == 1:
        message = f"{name} needs evaluations during training"
        problems.append(Problem(message, f"evaluation.every {every:g}: only the last step", f"--set {EVERY}=0.1"))
    elif training.patience is not None and training.patience >= evaluations - 1:
        received = f"{training.patience} (evaluation.every {every:g} gives {evaluations} evaluations)"
        enough = 1 / (2 * training.patience + 2)
        hint = f"--set {EVERY}={enough:.2g}" if enough >= MIN_SHARE else f"--patience 4 --set {EVERY}=0.1"
        message = f"{where('training.patience')}: with so few evaluations training.patience never stops the training"
        problems.append(Problem(message, received, hint))
    return problems
