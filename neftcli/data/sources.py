"""Reads rows, one at a time, each with the place where it stands.

json, jsonl, csv, tsv, parquet, any of them as .gz, a folder of them, the built-in set, or a hub data set.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from neftcli.data.text import lines, open_file, renaming, showing, through, with_ending
from neftcli.errors import DataError, Problem
from neftcli.machine.hub import with_settings
from neftcli.recipe.nearest import at_home, exists, nearest_path

BUILTIN = "builtin"
BUILTIN_SPLITS = ("train", "held_out")
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
HUB_ALIASES = {"imdb": "stanfordnlp/imdb", "alpaca": "tatsu-lab/alpaca", "open-platypus": "garage-bAInd/Open-Platypus"}
MOST_PROBLEMS = 5
ONE_ROW = '{"prompt": "...", "completion": "..."}'
COMMAS = "python -c \"import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter='{}'))\""

csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read.

    Attributes:
        values: Column to value.
        where: "rows.jsonl, line 17".
    """

    values: dict[str, Any]
    where: str


def is_hub(source: str) -> bool:
    """Whether `source` names a hub data set and no local file."""
    looks_like_a_path = source.startswith((".", "/", "~")) or source.endswith("/") or _ending(Path(source))
    return source in HUB_ALIASES or (source.count("/") == 1 and not looks_like_a_path and not exists(Path(source)))


def read_rows(source: str, split: str = "train", config: str | None = None) -> Iterator[Row]:
    """The rows of a source, in order.

    Args:
        source: "builtin", a file, a folder, or a hub id.
        split: "train" or "held_out" of the built-in set; any split of a hub data set.
        config: Configuration of a hub data set.

    Raises:
        DataError: The source is missing, or a row can't be read; with file and line.
    """
    if source == BUILTIN:
        if split not in BUILTIN_SPLITS:
            raise DataError(
                Problem("data.split: the built-in set has no split of this name", split, " or ".join(BUILTIN_SPLITS))
            )
        yield from _read_file(Path(__file__).parent / "builtin" / f"{split}.jsonl", f"built-in {split}")
    elif is_hub(source):
        yield from _read_hub(HUB_ALIASES.get(source, source), split, config)
    else:
        for file in _files(at_home(source)):
            yield from _read_file(file, str(file))


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in ENDINGS else ""


def _files(path: Path) -> list[Path]:
    if not exists(path):
        raise DataError(
            Problem(
                "data: there is no file or folder of this name",
                str(path),
                f"a file, a folder, a hub id (owner/name), or {BUILTIN}",
                nearest_path(path, [BUILTIN, *HUB_ALIASES]),
            )
        )
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _ending(file))
        if not files:
            raise DataError(
                Problem(f"{path}: this folder holds no data file", _listing(path), f"one of {', '.join(ENDINGS)}")
            )
        return files
    if not _ending(path):
        raise DataError(
            Problem(f"{path}: the ending tells the format, and this one is unknown", path.name, " ".join(ENDINGS))
        )
    return [path]


def _listing(folder: Path) -> str:
    return ", ".join(sorted(item.name for item in folder.iterdir())[:5]) or "nothing"


def _read_file(path: Path, name: str) -> Iterator[Row]:
    if path.stat().st_size == 0:
        raise DataError(Problem(f"{name}: the file is empty", "0 bytes", _rows_wanted(path)))
    read = {".json": _read_json, ".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
    rows = 0
    for row in read.get(_ending(path), _read_json_lines)(path, name):
        rows += 1
        yield row
    if not rows:
        raise DataError(Problem(f"{name}: the file holds no row", f"{path.stat().st_size} bytes", _rows_wanted(path)))


def _rows_wanted(path: Path) -> str:
    """What a file of this kind holds, for whoever has none in it."""
    rows = {
        ".json": f"a list of rows: [{ONE_ROW}, ...]",
        ".csv": "the names of the columns, then a row a line",
        ".parquet": "a table with a row or more",
    }
    ending = _ending(path)
    return rows.get(".csv" if ending == ".tsv" else ending, f"a row a line: {ONE_ROW}")


CUT = "the file ends within a row: fetch or write it again"


class _NotJson(Exception):  # noqa: N818 - told with file and line by whoever catches it
    """A text that is no JSON, or that says two things at once."""

    def __init__(self, said: str, text: str, position: int) -> None:
        super().__init__(said)
        self.said = said
        self.position = position
        self.line = text.count("\n", 0, position) + 1
        self.column = position - text.rfind("\n", 0, position)
        self.typed = text[max(0, position - 30) : position + 30].replace("\n", " ").strip()
        self.cut = "Unterminated" in said or position >= len(text.rstrip())


class _RepeatedKey(Exception):  # noqa: N818
    """A key stands twice in one object, so that one of its values would be lost."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _RepeatedKey(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return values


def _parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        _NotJson: Whatever stands against it.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise _NotJson(f"not JSON: {error.msg}", text, error.pos) from None
    except _RepeatedKey as error:
        said = f"the key {str(error)[:40]} is given twice in one object"
        raise _NotJson(said, text, max(0, text.find(json.dumps(str(error))))) from None
    except (RecursionError, ValueError):
        raise _NotJson("not JSON: nested too deep, or a number of thousands of digits", text, 0) from None


def _read_json_lines(path: Path, name: str) -> Iterator[Row]:
    problems: list[Problem] = []
    for number, line in lines(path, name):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        if number == 1:
            _require_lines(line, path, where)
        try:
            value = _parsed(line)
        except _NotJson as error:
            remedy = CUT if error.cut and not line.endswith("\n") else showing(path, number)
            problems.append(Problem(f"{where}: {error.said} (column {error.column})", error.typed, remedy))
        else:
            if isinstance(value, dict):
                if not problems:
                    yield Row(value, where)
                continue
            problems.append(Problem(f"{where}: a row must be an object", line.strip()[:60], _rows_wanted(path)))
        if len(problems) == MOST_PROBLEMS:
            break
    if problems:
        raise DataError(*problems)


def _require_lines(first: str, path: Path, where: str) -> None:
    """Refuses a file whose first line shows that it has no row a line."""
    beginning = first.strip()
    if beginning.startswith("[") and not _is_list_of_others(beginning):
        remedy = renaming(path, with_ending(path, ".json"))
        raise DataError(Problem(f"{where}: a .jsonl file has one object a line", "a list", remedy))
    if beginning == "{" and first.endswith("\n"):
        remedy = through("jq -c .", path, f"lines-{path.name}")
        raise DataError(Problem(f"{where}: a .jsonl file has one object a line", "an object over several", remedy))


def _is_list_of_others(line: str) -> bool:
    """Whether a line is a whole list of what are no rows, so that another ending would not help."""
    try:
        value = _parsed(line)
    except _NotJson:
        return False
    return isinstance(value, list) and not all(isinstance(item, dict) for item in value)


def _read_json(path: Path, name: str) -> Iterator[Row]:
    text = "".join(line for _, line in lines(path, name))
    try:
        value = _parsed(text)
    except _NotJson as error:
        several = error.said.endswith("Extra data")
        remedy = CUT if error.cut else showing(path, error.line)
        if several:
            remedy = renaming(path, with_ending(path, ".jsonl"))
        raise DataError(
            Problem(f"{name}, line {error.line}: {error.said} (column {error.column})", error.typed, remedy)
        ) from None
    if isinstance(value, dict) and len(lists := [item for item in value.values() if isinstance(item, list)]) == 1:
        value = lists[0]
    if not isinstance(value, list):
        raise DataError(
            Problem(f"{name}: a .json file must hold a list of objects", text.strip()[:60], _rows_wanted(path))
        )
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise DataError(
                Problem(f"{name}, row {number}: a row must be an object", json.dumps(item)[:60], _rows_wanted(path))
            )
        yield Row(item, f"{name}, row {number}")


def _read_csv(path: Path, name: str) -> Iterator[Row]:
    for _ in lines(path, name):  # refuses what is no text, with its line
        pass
    delimiter = "\t" if _ending(path) == ".tsv" else ","
    with open_file(path) as binary, TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] = []
        start = 1
        try:
            for values in reader:
                where = f"{name}, line {start}"
                start = reader.line_num + 1
                if not values:  # a blank line
                    continue
                if not header:
                    header = values
                    _check_header(header, delimiter, path, where)
                elif len(values) != len(header):
                    mark = "tab" if delimiter == "\t" else "comma"
                    raise DataError(
                        Problem(
                            f"{where}: a row must have as many columns as the header: {len(header)}",
                            str(len(values)),
                            f'double quotes around a text that holds a {mark}: "..."',
                        )
                    )
                else:
                    yield Row(dict(zip(header, values, strict=True)), where)
        except csv.Error as error:
            raise DataError(
                Problem(
                    f"{name}, line {start}: not CSV: {error}",
                    "a row that begins here",
                    'close the quotes; a quote inside of a quoted text is written twice: ""',
                )
            ) from None


def _check_header(header: list[str], delimiter: str, path: Path, where: str) -> None:
    """Refuses column names that stand twice, or with something other than the format's delimiter between them."""
    repeated = [column for column in header if header.count(column) > 1]
    if repeated:
        raise DataError(
            Problem(f"{where}: the header names a column twice", repeated[0][:60], "a name of its own for each column")
        )
    other = next((mark for mark in ",\t;|" if mark in header[0]), "")
    if len(header) > 1 or not other:
        return
    if {delimiter, other} == {",", "\t"}:
        remedy = renaming(path, with_ending(path, ".tsv" if other == "\t" else ".csv"))
    else:
        remedy = through(COMMAS.format(other), path, f"commas-{with_ending(path, '.csv')}")
    between = "commas" if delimiter == "," else "tabs"
    raise DataError(Problem(f"{where}: {between} must stand between the columns", header[0][:60], remedy))


def _read_parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        with open_file(path) as binary:
            number = 0
            for batch in parquet.ParquetFile(binary).iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{name}, row {number}")
    # ValueError: text that is no UTF-8, and with OverflowError dates that Python has not.
    except (arrow.ArrowException, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise DataError(
            Problem(
                f"{name}: this is no Parquet file that can be read",
                str(error).splitlines()[0],
                "fetch or write the file again",
            )
        ) from None


def _read_hub(hub_id: str, split: str, config: str | None) -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(hub_id, config, split=split)
    except (ConnectionError, DatasetsError, OSError, RuntimeError) as error:
        raise DataError(
            Problem(
                f"data.source: the data set {hub_id} can't be reached on the hub, and is not in the local cache",
                with_settings(str(error).splitlines()[0] if str(error) else type(error).__name__),
                "go online once, or give a file; `hf auth login` for a private set",
                nearest_path(Path(hub_id)) if Path(hub_id).parent.is_dir() else "",
            )
        ) from None
    except ValueError as error:  # a split or configuration that the data set doesn't have
        raise DataError(Problem(f"data.source: {hub_id} can't be read as asked", str(error).splitlines()[0])) from None
    for number, values in enumerate(rows, 1):
        yield Row(values, f"{hub_id} {split}, row {number}")
