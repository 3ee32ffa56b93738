"""Reads rows, one at a time, each with the place where it stands.

json, jsonl, csv, tsv, parquet, any of them as .gz, a folder of them, the built-in set, or a hub data set.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

from neftcli.errors import DataError, Problem

BUILTIN = "builtin"
BUILTIN_SPLITS = ("train", "held_out")
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
HUB_ALIASES = {"imdb": "stanfordnlp/imdb", "alpaca": "tatsu-lab/alpaca", "open-platypus": "garage-bAInd/Open-Platypus"}
MOST_PROBLEMS = 5

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
    return source in HUB_ALIASES or (source.count("/") == 1 and not looks_like_a_path and not Path(source).exists())


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
        for file in _files(Path(source).expanduser()):
            yield from _read_file(file, str(file))


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in ENDINGS else ""


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _ending(file))
        if not files:
            raise DataError(
                Problem(f"{path}: this folder holds no data file", _listing(path), f"one of {', '.join(ENDINGS)}")
            )
        return files
    if not path.is_file():
        raise DataError(
            Problem(
                f"data.source: there is no file or folder of this name: {path}",
                "",
                "neft train --dataset rows.jsonl, or a hub id (owner/name), or builtin",
                _nearest_file(path),
            )
        )
    if not _ending(path):
        raise DataError(
            Problem(f"{path}: the ending tells the format, and this one is unknown", path.name, " ".join(ENDINGS))
        )
    return [path]


def _listing(folder: Path) -> str:
    return ", ".join(sorted(item.name for item in folder.iterdir())[:5]) or "nothing"


def _nearest_file(path: Path) -> str:
    names = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    nearest = get_close_matches(path.name, names, n=1)
    return str(path.with_name(nearest[0])) if nearest else ""


def _read_file(path: Path, name: str) -> Iterator[Row]:
    if path.stat().st_size == 0:
        raise DataError(Problem(f"{name}: the file is empty", "0 bytes"))
    read = {".json": _read_json, ".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
    rows = 0
    for row in read.get(_ending(path), _read_json_lines)(path, name):
        rows += 1
        yield row
    if not rows:
        raise DataError(Problem(f"{name}: the file holds no row", f"{path.stat().st_size} bytes"))


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of text; what is no UTF-8 text is refused with its line."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise DataError(
                            Problem(f"{name}, line 1: text must be UTF-8", "UTF-16", _conversion("utf-16", path))
                        )
                    line = line.removeprefix(b"\xef\xbb\xbf")
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        Problem(
                            f"{name}, line {number}: text must be UTF-8",
                            f"byte 0x{line[error.start]:02x} at column {error.start + 1}",
                            _conversion("latin1", path),
                        )
                    ) from None
                if "\0" in text:
                    raise DataError(Problem(f"{name}, line {number}: text must not hold NUL bytes", repr(text[:40])))
                yield number, text
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(Problem(f"{name}: this .gz can't be unpacked", f"{error} (after line {number})")) from None


def _conversion(encoding: str, path: Path) -> str:
    """The command that makes UTF-8 of a file."""
    if path.suffix.lower() == ".gz":
        return f"zcat {path.name} | iconv -f {encoding} -t utf-8"
    return f"iconv -f {encoding} -t utf-8 {path.name}"


def _with_ending(path: Path, ending: str) -> str:
    """The file's name with another ending before the .gz, if it has that."""
    packed = path.suffix if path.suffix.lower() == ".gz" else ""
    return Path(path.name.removesuffix(packed)).stem + ending + packed


def _parsed(text: str) -> Any:
    """The value of a JSON text; whatever stands against it is a JSONDecodeError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError):
        raise json.JSONDecodeError("Nested too deep, or a number of thousands of digits", text, 0) from None


def _read_json_lines(path: Path, name: str) -> Iterator[Row]:
    problems: list[Problem] = []
    for number, line in _lines(path, name):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        if number == 1 and line.lstrip().startswith("["):
            remedy = f"rename it to {_with_ending(path, '.json')}"
            raise DataError(Problem(f"{where}: a .jsonl file has one object a line", "a list", remedy))
        try:
            value = _parsed(line)
        except json.JSONDecodeError as error:
            typed = line.strip()[max(0, error.pos - 30) : error.pos + 30]
            problems.append(Problem(f"{where}: not JSON: {error.msg} (column {error.pos + 1})", typed))
        else:
            if isinstance(value, dict):
                if not problems:
                    yield Row(value, where)
                continue
            problems.append(Problem(f"{where}: a row must be an object", line.strip()[:60]))
        if len(problems) == MOST_PROBLEMS:
            break
    if problems:
        raise DataError(*problems)


def _read_json(path: Path, name: str) -> Iterator[Row]:
    text = "".join(line for _, line in _lines(path, name))
    try:
        value = _parsed(text)
    except json.JSONDecodeError as error:
        remedy = f"mv {path.name} {_with_ending(path, '.jsonl')}" if error.msg == "Extra data" else ""
        typed = text[max(0, error.pos - 30) : error.pos + 30].replace("\n", " ").strip()
        raise DataError(
            Problem(f"{name}, line {error.lineno}: not JSON: {error.msg} (column {error.colno})", typed, remedy)
        ) from None
    if isinstance(value, dict) and len(lists := [item for item in value.values() if isinstance(item, list)]) == 1:
        value = lists[0]
    if not isinstance(value, list):
        raise DataError(Problem(f"{name}: a .json file must hold a list of objects", text.strip()[:60]))
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise DataError(Problem(f"{name}, row {number}: a row must be an object", json.dumps(item)[:60]))
        yield Row(item, f"{name}, row {number}")


def _read_csv(path: Path, name: str) -> Iterator[Row]:
    for _ in _lines(path, name):  # refuses what is no text, with its line
        pass
    with _open(path) as binary, TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if _ending(path) == ".tsv" else ",", strict=True)
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
                    if repeated := [column for column in header if header.count(column) > 1]:
                        raise DataError(Problem(f"{where}: the header names a column twice", repeated[0]))
                elif len(values) != len(header):
                    raise DataError(
                        Problem(
                            f"{where}: a row must have the header's {len(header)} columns", f"{len(values)} columns"
                        )
                    )
                else:
                    yield Row(dict(zip(header, values, strict=True)), where)
        except csv.Error as error:
            raise DataError(Problem(f"{name}, line {start}: not CSV: {error}")) from None


def _read_parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        with _open(path) as binary:
            number = 0
            for batch in parquet.ParquetFile(binary).iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{name}, row {number}")
    except (arrow.ArrowException, OSError, EOFError, zlib.error) as error:
        raise DataError(
            Problem(f"{name}: this is no Parquet file that can be read", str(error).splitlines()[0])
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
                str(error).splitlines()[0] if str(error) else type(error).__name__,
                "go online once, or give a file: --dataset rows.jsonl; `hf auth login` for a private set",
            )
        ) from None
    except ValueError as error:  # a split or configuration that the data set doesn't have
        raise DataError(Problem(f"data.source: {hub_id} can't be read as asked", str(error).splitlines()[0])) from None
    for number, values in enumerate(rows, 1):
        yield Row(values, f"{hub_id} {split}, row {number}")
