"""Generate the reference pages of the documentation from the code, and add pages that live at the repository's root.

mkdocs calls `on_files` (see `hooks` in mkdocs.yml). `python docs/generate_reference.py FOLDER` writes the same pages
into a folder, to read them without mkdocs.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from neftcli.evaluation.exports import EXPORTS

ROOT = Path(__file__).resolve().parent.parent
RUN_FILES = {
    "recipe.yaml": "The resolved recipe. Training with it on the same machine repeats the run.",
    "run.json": "The record: status, versions, hardware, seeds, hashes, noise strength, results.",
    "metrics.jsonl": "One line for each log row and each evaluation during training.",
    "samples.jsonl": "Held-out prompts, reference answers, and the answers before and after training.",
    "train.log": "Output of the libraries.",
    "model/": "Weights or adapter (safetensors), tokenizer, and the model card `README.md`.",
    "checkpoints/": "Checkpoints of an unfinished run. A finished run has none.",
    "best/": "The best weights so far, while a run with `training.keep: best` trains.",
    "evaluation/": "Results of `neft eval`.",
    "trackers/": "Files of experiment trackers (`--report-to`).",
    ".lock": "Held while a process writes to the run.",
}
CHECKPOINT_FILES = {
    "manifest.json": "Sizes and SHA-256 of all files. Written last; a checkpoint without it is ignored.",
    "trainer_state.json": "Progress, and the state of neft's callback.",
}
EVALUATION_FILES = {
    "ROWS-vs-BASELINE/report.json": "The whole table, the settings and the definitions.",
    "ROWS-vs-BASELINE/examples.jsonl": "One line for each example: prompt, reference, and each model's loss, answer, "
    "metrics and judge verdicts.",
    **{
        f"ROWS-vs-BASELINE/{export.file}": f"With `--export {export.id}`: {export.content}."
        for export in EXPORTS.values()
    },
    "ROWS-vs-BASELINE/eval.log": "Output of the libraries.",
    "ROWS-vs-BASELINE/.question": "A hash of the models, rows and settings; the folder is reused for these only.",
    "losses-*.jsonl": "Losses, appended batch by batch; reused when nothing they depend on has changed.",
    "answers-*.jsonl": "Generated answers, likewise.",
    "task-*.jsonl": "Results of benchmark tasks, likewise.",
    "cell.json": "In a sweep's cell: its metrics, row by row.",
    ".lock": "Held while a process evaluates the run.",
}
SWEEP_FILES = {
    "recipe.yaml": "The sweep's recipe.",
    "paths.json": "The folder from which relative paths in the recipe start.",
    "cells/": "One run for each cell.",
    "sweep.json": "All results.",
    "verdict.md": "The table and the sentences of the verdict.",
    "cells.csv": "One row for each cell.",
    "plots/": "Each metric against alpha, and learning curves, as PNG and SVG.",
    "best": "A link to the recommended arm's run, if a single arm is recommended.",
    "trackers/": "Files of experiment trackers (`--report-to`), with one group for all cells.",
    "workers.log": "Output of the libraries.",
    "judge/": "The judge's replies.",
    ".lock": "Held while a process runs the sweep.",
}

ANSWER_FILES = {
    "OUT": "One line for each row: prompt, answer, stop reason and tokens.",
    "OUT.settings.json": "Everything that the answers depend on; other answers are rejected.",
    "OUT.partial": "Answers of an unfinished command, in the order in which they were generated.",
    "OUT.lock": "Held while a process writes the answers.",
}


def command_page() -> str:
    """Return the reference of the command line."""
    import typer.main

    from neftcli.cli.main import app

    root = typer.main.get_command(app)
    lines = ["# Command line", "", str(root.help), ""]
    lines += [
        "Every option of a recipe can be set with `--set KEY=VALUE`; those with a flag of their own are listed below.",
        "For the types and defaults of all options see [Recipe keys](recipe.md).",
        "",
        "| exit code | meaning |",
        "|---:|---|",
        "| 0 | finished |",
        "| 1 | failed |",
        "| 2 | bad input; nothing was started |",
        "| 75 | preempted by a signal; can be resumed |",
        "| 130 | interrupted at once |",
        "",
    ]
    for name, command in _commands(root, "neft"):
        lines += [f"## {name}", "", *_paragraphs(command.help or ""), ""]
        lines += _parameter_tables(command)
        examples = getattr(command, "examples", ())
        if examples:
            width = max(len(text) for text, _ in examples)
            lines += ["```", *(f"{text:{width}}  # {meaning}" for text, meaning in examples), "```", ""]
    return "\n".join(lines)


def recipe_page() -> str:
    """Return the reference of the recipe's keys."""
    from neftcli.recipe.keys import keys, type_name
    from neftcli.recipe.schema import Recipe, Source

    sections: dict[str, list[str]] = {}
    for key in keys(Recipe):
        section = key.path.rpartition(".")[0] or "Run"
        flag = f"<br>`{key.option.flag}`" if key.option.flag else ""
        kinds = ", ".join(f"`{kind}`" for kind in type_name(key.type).split("|"))
        kind = f"{kinds} {_bounds(key.type)}".strip()
        meaning = f"{key.option.help}. {key.option.details}".strip()
        row = f"| `{key.path}`{flag} | {kind} | {_default(key)} | {_cell(meaning)} |"
        sections.setdefault(section, []).append(row)
    lines = [
        "# Recipe keys",
        "",
        "A recipe is a YAML file. Keys that it leaves out have the defaults below; `extends: NAME` starts from another",
        "recipe. The command line overrides the recipe: a key with a flag can be set with it, any key with",
        "`--set KEY=VALUE`.",
        "",
    ]
    for section, rows in sections.items():
        lines += [f"## {section}", "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]
        if section == "data":
            lines += ["### data.sources", "", _summary(Source), "", "| key | meaning |", "|---|---|"]
            lines += [f"| `{name}` | {_cell(meaning)} |" for name, meaning in _attributes(Source).items()]
            lines.append("")
    return "\n".join(lines)


def events_page() -> str:
    """Return the reference of the events that `--json` prints."""
    from neftcli.events import SCHEMA_VERSION
    from neftcli.events.phases import PhaseId
    from neftcli.events.reference import Description, describe_events, describe_parts

    def section(description: Description, heading: str) -> list[str]:
        lines = [f"{heading} {description.name}", "", description.summary, ""]
        if description.fields:
            lines += ["| key | type | meaning |", "|---|---|---|"]
        for field in description.fields:
            lines.append(f"| `{field.name}` | `{field.type}` | {_cell(field.description)} |")
        return [*lines, ""]

    lines = [
        "# Events",
        "",
        "With `--json`, a command prints one JSON object per line on stdout. `event` names the event,",
        f"`schema_version` is {SCHEMA_VERSION}, and the other keys are listed below. NaN and infinity are `null`.",
        "`metrics.jsonl` in a run's folder holds some of the same events.",
        "",
    ]
    for event in describe_events():
        lines += section(event, "##")
    lines += ["## Parts of events", "", "Objects that the events above hold.", ""]
    for part in describe_parts():
        lines += section(part, "###")
    lines += ["### PhaseId", "", "Ids of phases: " + ", ".join(f"`{phase.value}`" for phase in PhaseId) + ".", ""]
    lines += ["### Error codes", "", "Values of `code` of a problem.", "", "| code | error |", "|---|---|"]
    lines += [f"| `{code}` | {_cell(meaning)} |" for code, meaning in _error_codes().items()]
    return "\n".join([*lines, ""])


def _error_codes() -> dict[str, str]:
    """Return the codes of errors with their meanings."""
    from neftcli import errors
    from neftcli.evaluation import judge  # noqa: F401 - they define errors
    from neftcli.sweep import reporter  # noqa: F401

    codes = {
        errors.USAGE: "The command line can't be parsed.",
        errors.DISK_FULL: "The disk is full, or has too little space.",
        errors.PERMISSION: "A file or folder can't be read or written with this user's permissions.",
        errors.OUT_OF_MEMORY: "The GPU or the machine has too little memory.",
        errors.INTERNAL: "An unexpected exception.",
    }
    classes = [errors.NeftError]
    for error in classes:
        classes += [kind for kind in error.__subclasses__() if kind.__module__.startswith("neftcli.")]
        summary = (error.__doc__ or "").splitlines()[0]
        codes[error.code] = "Any other error." if error is errors.NeftError else summary
    return codes


def run_files_page() -> str:
    """Return the reference of the files that neft writes."""
    from neftcli.runs import schemas

    lines = [
        "# Files",
        "",
        "A run is a folder of plain files: `runs/NAME-aALPHA-sSEED`, with `-2`, `-3` if the name is taken. Every JSON",
        "file is checked against its schema when it is read. Files are replaced atomically or appended line by line.",
        "",
    ]
    tables = {
        "A run": RUN_FILES,
        "A checkpoint: `checkpoints/checkpoint-STEP/`": CHECKPOINT_FILES,
        "An evaluation: `evaluation/`": EVALUATION_FILES,
        "A sweep: `runs/NAME-sweep/`": SWEEP_FILES,
        "Answers: `neft answer --out OUT`": ANSWER_FILES,
    }
    for title, files in tables.items():
        lines += [f"## {title}", "", "| file | content |", "|---|---|"]
        lines += [f"| `{file}` | {content} |" for file, content in files.items()]
        lines.append("")
    lines += ["## Schemas", "", "The keys that neft relies on. A file may hold more.", ""]
    for name, schema in vars(schemas).items():
        if inspect.isclass(schema) and schema.__module__ == schemas.__name__:
            lines += [f"### {name}", "", _summary(schema), "", "| key | type |", "|---|---|"]
            lines += [f"| `{key}` | `{_type(kind)}` |" for key, kind in schema.__annotations__.items()]
            lines.append("")
    return "\n".join(lines)


def root_page(name: str) -> str:
    """Return a page that lives at the repository's root, with its links relative to docs/."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = text.replace("](docs/", "](").replace("](CONTRIBUTING.md", "](contributing.md")
    return text.replace("](CHANGELOG.md", "](changelog.md").replace("](README.md", "](index.md")


PAGES: dict[str, Callable[[], str]] = {
    "index.md": lambda: root_page("README.md"),
    "contributing.md": lambda: root_page("CONTRIBUTING.md"),
    "changelog.md": lambda: root_page("CHANGELOG.md"),
    "reference/commands.md": command_page,
    "reference/recipe.md": recipe_page,
    "reference/files.md": run_files_page,
    "reference/events.md": events_page,
}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site (mkdocs calls this)."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield every command that can be typed, with its full name."""
    subcommands = getattr(command, "commands", None)
    if not subcommands or getattr(command, "invoke_without_command", False):
        yield name, command
    for word, subcommand in (subcommands or {}).items():
        yield from _commands(subcommand, f"{name} {word}")


def _parameter_tables(command: Any) -> list[str]:
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or "--help" in parameter.opts:
            continue
        if parameter.param_type_name == "argument":
            panel, shown = "Arguments", parameter.metavar or parameter.name.upper()
        else:
            panel = getattr(parameter, "rich_help_panel", None) or "Output"
            shown = " / ".join([*parameter.opts, *parameter.secondary_opts])
            shown += f" {parameter.metavar}" if parameter.metavar else ""
        panels.setdefault(panel, []).append(f"| `{shown}` | {_cell(_flag_meaning(parameter))} |")
    lines = []
    for panel, rows in panels.items():
        lines += [f"**{panel}**", "", "| option | meaning |", "|---|---|", *rows, ""]
    return lines


def _flag_meaning(parameter: Any) -> str:
    """Return a parameter's help; for the flag of a recipe key with its default and a link to the key."""
    from neftcli.recipe.keys import keys

    help_text = str(getattr(parameter, "help", None) or "")
    text, _, default = help_text.rstrip("]").partition("  [default: ")
    key = next((key for key in keys() if key.option.flag in parameter.opts), None)
    if key is None or key.flag_help.rstrip(".") not in text:
        return f"{text}. Default: {default}." if default else text
    section = key.path.rpartition(".")[0].replace(".", "") or "run"
    default = "" if key.option.switch is not None else f" Default: {_default(key)}."
    return f"{text.rstrip('.')}.{default} Key: [`{key.path}`](recipe.md#{section})"


def _default(key: Any) -> str:
    """Return the default of a recipe key in Markdown, or in words the value that applies if it has none."""
    return str(key.option.unset) if key.option.unset else f"`{_yaml(key.default)}`"


def _attributes(kind: type) -> dict[str, str]:
    """Return the descriptions in a docstring's section `Attributes`."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", section, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def _summary(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def _type(hint: Any) -> str:
    text = hint if isinstance(hint, str) else getattr(hint, "__forward_arg__", None) or repr(hint)
    return str(text).replace("typing.", "")


def _bounds(annotation: Any) -> str:
    """Return the bounds of an option's values, as ">= 0, < 1"; empty without any."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = []
    for extra in getattr(annotation, "__metadata__", ()):
        for name, sign in signs.items():
            bound = getattr(extra, name, None)
            if bound is not None and bound != float("inf"):
                bounds.append(f"{sign} {bound:g}" if bound < 1e6 else f"{sign} {bound}")
    for argument in typing.get_args(annotation):
        if argument is not annotation and (inner := _bounds(argument)):
            bounds.append(inner)
    return ", ".join(bounds)


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return str(value) or '""'


def _cell(text: str) -> str:
    """Return text for a cell of a table. Code in a cell needs no escapes."""
    return text.replace("|", "\\|").replace("\n", " ")


def _paragraphs(text: str) -> list[str]:
    return inspect.cleandoc(text).replace("\f", "").splitlines()


def main() -> None:
    """Write the generated pages into the folder given on the command line."""
    folder = Path(sys.argv[1])
    for path, page in PAGES.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
