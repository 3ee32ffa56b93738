"""Shell commands that convert rows into a readable form."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from shlex import quote
from urllib.parse import unquote, urlsplit

from neftcli.data.data_file import through, with_ending

LINES = (".jsonl", ".ndjson")
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".tsv": "csv", ".txt": "text"}


def jq(location: str, expression: str) -> str:
    """The shell command that applies a jq expression to every row and writes a new file.

    Args:
        location: The place of a row of the file, as "rows.jsonl, line 17".
        expression: From a row to the new row, to several (`.[]`) or to none (`select(...)`).
    """
    source = location.rpartition(", ")[0]
    path = _local_path(source)
    ending = _ending(path)
    if ending in LINES:
        return _download(source) + through(f"jq -c {quote(expression)}", path, f"new-{path.name}")
    if ending == ".json":
        return _download(source) + through(f"jq {quote(f'map({expression})')}", path, f"new-{path.name}")
    lines = path.with_name(with_ending(Path(path.name.removesuffix(".gz")), ".jsonl")) if ending else Path("rows.jsonl")
    return f"{_python(source, ending, f'to_json({_literal(str(lines))})')} && {jq(f'{lines}, line 1', expression)}"


def nested_rows(location: str, keys: str) -> str:
    """The shell command that writes the rows of a nested list to a file.

    Args:
        location: The place of a row; a .json file may be this row as a whole.
        keys: The way from the row to the list in jq's notation (`.data.train`).
    """
    source = location.rpartition(", ")[0]
    path = _local_path(source)
    if _ending(path) != ".json":
        return jq(location, f"{keys}[]")
    each = f'if type == "array" then .[] else . end | {keys}[]'
    return _download(source) + through(f"jq -c {quote(each)}", path, f"new-{with_ending(path, '.jsonl')}")


def one_row(location: str) -> str:
    """The shell command for a .json file that is one conversation; nothing for other files."""
    source = location.rpartition(", ")[0]
    path = _local_path(source)
    if _ending(path) != ".json":
        return ""
    whole = 'if type == "array" then [{messages: .}] else [.] end'
    return _download(source) + through(f"jq {quote(whole)}", path, f"new-{path.name}")


def without_column(location: str, column: str) -> str:
    """The shell command that writes the rows of a file without one of their columns."""
    source = location.rpartition(", ")[0]
    ending = _ending(_local_path(source))
    if ending in (*LINES, ".json"):
        return jq(location, f"del({jq_key(column)})")
    return _python(source, ending, f'remove_columns({_literal(column)}).to_json("new-rows.jsonl")')


def jq_key(name: str) -> str:
    """A column in jq's notation."""
    return f".{name}" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else f".{_literal(name)}"


def _literal(text: str) -> str:
    """A text as jq and Python write it."""
    return json.dumps(text, ensure_ascii=False)


def _local_path(source: str) -> Path:
    """The path of a source; of an address the name of the file once it is downloaded."""
    return Path(unquote(PurePosixPath(urlsplit(source).path).name)) if "://" in source else Path(source)


def _download(source: str) -> str:
    """The beginning of a shell command that downloads a file from a web address; empty for other sources."""
    if not source.startswith(("http://", "https://")):
        return ""
    return f"curl -L -o {quote(str(_local_path(source)))} {quote(source)} && "


def _ending(path: Path) -> str:
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    return ending if ending in (*LINES, ".json", *TABLES) else ""


def _python(source: str, ending: str, call: str) -> str:
    """The shell command that loads a table or a hub data set and calls a method of it."""
    if ending:
        separator = ', delimiter="\\t"' if ending == ".tsv" else ""
        loaded = f'"{TABLES[ending]}", data_files={_literal(source)}{separator}, split="train"'
    else:
        name, _, split = source.partition(" ")
        loaded = f"{_literal(name)}, split={_literal(split or 'train')}"
    return f"python -c {quote(f'from datasets import load_dataset; load_dataset({loaded}).{call}')}"
