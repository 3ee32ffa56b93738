"""Readers of data files, one for each ending, and the rows that they read.

A reader yields rows one at a time, each with its place. A new kind of file is one entry of READERS.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from shlex import quote
from typing import Any

from neftcli.data.data_file import MOST_LINE, MOST_UNPACKED, DataFile, lines, renaming, showing, through, with_ending
from neftcli.data.turns import has_role
from neftcli.errors import DataError, Problem

MOST_PROBLEMS = 5
ONE_ROW = '{"prompt": "...", "completion": "..."}'
COMMAS = "python -c \"import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter='{}'))\""
ROW_COLUMNS = frozenset(("messages", "conversations", "prompt", "completion", "instruction", "output", "text"))
"""Keys by which an object at the top of a .json file is one row, not a wrapper around a list of rows."""
LIKE_TEXT = (".md", ".text", ".log")

csv.field_size_limit(MOST_LINE)


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read.

    Attributes:
        values: Column to value.
        location: "rows.jsonl, line 17".
    """

    values: dict[str, Any]
    location: str


@dataclass(frozen=True, slots=True)
class Reader:
    """The reader of a kind of file.

    Attributes:
        read: Yields its rows; if `running_text`, it also takes `sample_by`.
        wanted: The expected content, for the message about an empty file.
        running_text: Its rows are parts of a running text, chosen by data.sample_by.
    """

    read: Callable[..., Iterator[Row]]
    wanted: str
    running_text: bool = False


def ending(path: Path | str) -> str:
    """The ending by which a file is read, without .gz; empty if it is unknown."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in ENDINGS else ""


def read_file(file: DataFile, sample_by: str = "paragraph") -> Iterator[Row]:
    """The rows of a file, in order.

    Args:
        file: The file; its ending is known.
        sample_by: What a row of running text is: a paragraph, a line, or the whole document.

    Raises:
        DataError: The file or a row can't be read, with its line; or the file holds none.
    """
    try:
        yield from _read_file(file, READERS[ending(file.path)], sample_by)
    except OSError as error:  # a link to nothing, a file of somebody else, a bad disk
        link = f"it links to {file.path.readlink()}" if file.path.is_symlink() else f"ls -l {quote(str(file.path))}"
        said = error.strerror or str(error) or type(error).__name__
        raise DataError(Problem(f"{file.name}: the file can't be read", said, link)) from None


def _read_file(file: DataFile, reader: Reader, sample_by: str) -> Iterator[Row]:
    if file.size() == 0:
        raise DataError(Problem(f"{file.name}: the file is empty", "0 bytes", reader.wanted))
    rows = 0
    for row in reader.read(file, sample_by) if reader.running_text else reader.read(file):
        rows += 1
        yield row
    if not rows:
        raise DataError(Problem(f"{file.name}: the file holds no row", f"{file.size()} bytes", reader.wanted))


def require_ending(path: Path, name: str) -> None:
    """Reject a file whose ending names no reader.

    Raises:
        DataError: With the endings, or how to rename what looks like text.
    """
    if ending(path):
        return
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    hint = renaming(path, with_ending(path, ".txt")) if suffix in LIKE_TEXT else " ".join(ENDINGS)
    raise DataError(
        Problem(f"{name}: the ending tells the format, and this one is unknown", path.name or "no ending", hint)
    )


def _rows_wanted(path: Path) -> str:
    return READERS[ending(path)].wanted


CUT = "the file ends within a row: fetch or write it again"


class _NotJson(Exception):  # noqa: N818 - the caller reports it with file and line
    """A text that is no JSON, or that says two things at once."""

    def __init__(self, said: str, text: str, position: int) -> None:
        super().__init__(said)
        self.said = said
        end = len(text.rstrip())
        position = min(position, end)
        self.position = position
        self.line = text.count("\n", 0, position) + 1
        self.column = position - text.rfind("\n", 0, position)
        before, after = "..." if position > 30 else "", "..." if position + 30 < end else ""
        excerpt = text[max(0, position - 30) : position + 30].replace("\n", " ").strip()
        self.typed = f"{before}{excerpt}{after}"
        self.cut = "Unterminated" in said or position >= end


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


def _read_json_lines(file: DataFile) -> Iterator[Row]:
    path, name = file.path, file.name
    problems: list[Problem] = []
    for number, line in lines(file):
        if not line.strip():
            continue
        location = f"{name}, line {number}"
        if number == 1:
            _require_lines(line, path, location)
        try:
            value = _parsed(line)
        except _NotJson as error:
            hint = CUT if error.cut and not line.endswith("\n") else showing(path, number)
            problems.append(Problem(f"{location}: {error.said} (column {error.column})", error.typed, hint))
        else:
            if isinstance(value, dict):
                if not problems:
                    yield Row(value, location)
                continue
            problems.append(Problem(f"{location}: a row must be an object", line.strip()[:60], _rows_wanted(path)))
        if len(problems) == MOST_PROBLEMS:
            break
    if problems:
        raise DataError(*problems)


def _require_lines(first: str, path: Path, location: str) -> None:
    """Reject a file whose first line shows that it has no row a line."""
    beginning = first.strip()
    if beginning.startswith("[") and not _is_list_of_others(beginning):
        hint = renaming(path, with_ending(path, ".json"))
        raise DataError(Problem(f"{location}: a .jsonl file has one object a line", "a list", hint))
    if beginning == "{" and first.endswith("\n"):
        hint = through("jq -c .", path, f"lines-{path.name}")
        raise DataError(Problem(f"{location}: a .jsonl file has one object a line", "an object over several", hint))


def _is_list_of_others(line: str) -> bool:
    """Return whether a line is a complete list of values that are no rows: renaming the file would not help."""
    try:
        value = _parsed(line)
    except _NotJson:
        return False
    return isinstance(value, list) and not all(isinstance(item, dict) for item in value)


def _read_json(file: DataFile) -> Iterator[Row]:
    path, name = file.path, file.name
    parts, size = [], 0
    for number, line in lines(file, whole=True):
        parts.append(line)
        size += len(line)
        if size > MOST_UNPACKED and path.suffix.lower() == ".gz":
            said = f"{name}, line {number}: a .json.gz has at most {MOST_UNPACKED:,} characters"
            raise DataError(Problem(said, "more", f"{with_ending(path, '.jsonl')}, which is read row by row"))
    text = "".join(parts)
    try:
        value = _parsed(text)
    except _NotJson as error:
        several = error.said.endswith("Extra data")
        hint = CUT if error.cut else showing(path, error.line)
        if several:
            hint = renaming(path, with_ending(path, ".jsonl"))
        raise DataError(
            Problem(f"{name}, line {error.line}: {error.said} (column {error.column})", error.typed, hint)
        ) from None
    if isinstance(value, dict):
        value = _rows_of_object(value, file)
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


def _rows_of_object(value: dict[str, Any], file: DataFile) -> list[Any]:
    """The rows of an object at the top of a .json file: the one list in it, or itself as one row.

    Raises:
        DataError: It holds several lists of rows, or columns instead of rows.
    """
    path, name = file.path, file.name
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    is_row = not ROW_COLUMNS.isdisjoint(value) or any(rows and has_role(rows[0]) for rows in lists.values())
    if _are_columns(list(value.values())):
        rows = with_ending(path, ".jsonl")
        written = f"to_json({str(path.with_name(rows))!r}, orient='records', lines=True)"
        hint = f"python -c {quote(f'import pandas; pandas.read_json({str(path)!r}).{written}')}"
        raise DataError(Problem(f"{name}: this .json file holds columns, not rows", ", ".join(value)[:60], hint))
    tables = {key: rows for key, rows in lists.items() if all(isinstance(row, dict) for row in rows)}
    if not is_row and len(tables) > 1:
        key = next(iter(tables))
        hint = through(f"jq -c {quote(f'.{json.dumps(key)}[]')}", path, f"{key}-{with_ending(path, '.jsonl')}")
        raise DataError(Problem(f"{name}: this .json file holds several lists of rows", ", ".join(tables)[:60], hint))
    holds_objects = any(isinstance(item, dict) for item in value.values())
    if is_row or not lists or (holds_objects and not tables):
        return [value]
    return next(iter((tables or lists).values()))


def _are_columns(values: list[Any]) -> bool:
    """Return whether these are columns of one length, as a table's `to_json` or `to_dict` writes them."""
    if len(values) < 2 or not all(isinstance(value, list | dict) and value for value in values):
        return False
    cells = [list(value.values()) if isinstance(value, dict) else value for value in values]
    same = len({len(column) for column in cells}) == 1 and len({type(value) for value in values}) == 1
    return same and all(isinstance(cell, str | int | float | None) for column in cells for cell in column)


def _read_csv(file: DataFile) -> Iterator[Row]:
    path, name = file.path, file.name
    for _ in lines(file):  # refuses what is no text, with its line
        pass
    delimiter = "\t" if ending(path) == ".tsv" else ","
    with file.open() as binary, TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] = []
        start = 1
        try:
            for values in reader:
                location = f"{name}, line {start}"
                start = reader.line_num + 1
                if not values:  # a blank line
                    continue
                if not header:
                    header = values
                    _check_header(header, delimiter, path, location)
                elif len(values) != len(header):
                    mark = "tab" if delimiter == "\t" else "comma"
                    raise DataError(
                        Problem(
                            f"{location}: a row must have as many columns as the header: {len(header)}",
                            str(len(values)),
                            f'double quotes around a text that holds a {mark}: "..."',
                        )
                    )
                else:
                    yield Row(dict(zip(header, values, strict=True)), location)
        except csv.Error as error:
            raise DataError(
                Problem(
                    f"{name}, line {start}: not CSV: {error}",
                    "a row that begins here",
                    'close the quotes; a quote inside of a quoted text is written twice: ""',
                )
            ) from None


def _check_header(header: list[str], delimiter: str, path: Path, location: str) -> None:
    """Reject column names that appear twice, or with something other than the format's delimiter between them."""
    repeated = [column for column, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(
            Problem(
                f"{location}: the header names a column twice", repeated[0][:60], "a name of its own for each column"
            )
        )
    other = next((mark for mark in ",\t;|" if mark in header[0]), "")
    if len(header) > 1 or not other:
        return
    if {delimiter, other} == {",", "\t"}:
        hint = renaming(path, with_ending(path, ".tsv" if other == "\t" else ".csv"))
    else:
        hint = through(COMMAS.format(other), path, f"commas-{with_ending(path, '.csv')}")
    between = "commas" if delimiter == "," else "tabs"
    raise DataError(Problem(f"{location}: {between} must stand between the columns", header[0][:60], hint))


def _read_parquet(file: DataFile) -> Iterator[Row]:
    from pyarrow import parquet

    with _as_table(file, "Parquet"), file.open() as binary:
        yield from table_rows(parquet.ParquetFile(binary).iter_batches(batch_size=1024), file.name)


END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def _read_arrow(file: DataFile) -> Iterator[Row]:
    """Arrow's file format, or its stream format, which `datasets` writes; a local file is mapped, not read."""
    import pyarrow as arrow

    with _as_table(file, "Arrow"), file.open() as binary:
        is_file = binary.read(6) == b"ARROW1"
        if not is_file and file.path.suffix.lower() != ".gz":
            # A stream that was cut between two batches reads as a shorter one.
            binary.seek(-len(END_OF_STREAM), 2)
            if binary.read() != END_OF_STREAM:
                raise ValueError("it ends without the mark of its end: it was cut off")
        binary.seek(0)
        mapped = file.downloaded is None and file.path.suffix.lower() != ".gz"
        source = arrow.memory_map(str(file.path)) if mapped else binary
        if is_file:
            opened = arrow.ipc.open_file(source)
            batches: Iterable[Any] = (opened.get_batch(number) for number in range(opened.num_record_batches))
        else:
            batches = arrow.ipc.open_stream(source)
        yield from table_rows(batches, file.name)


@contextmanager
def _as_table(file: DataFile, kind: str) -> Iterator[None]:
    """Turn the errors that pyarrow raises for a damaged file into a DataError."""
    import pyarrow as arrow

    try:
        yield
    # ValueError: text that is no UTF-8, and with OverflowError dates that Python has not.
    except (arrow.ArrowException, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        article = "no" if kind == "Parquet" else "not an"
        raise DataError(
            Problem(
                f"{file.name}: this is {article} {kind} file that can be read",
                str(error).splitlines()[0],
                "fetch or write the file again",
            )
        ) from None


def table_rows(batches: Iterable[Any], name: str) -> Iterator[Row]:
    """The rows of Arrow record batches or tables, counted from 1 over all of them."""
    number = 0
    for batch in batches:
        decode = {field.name: _decoder(field.type) for field in batch.schema}
        for values in batch.to_pylist():
            number += 1
            for column, decoded in decode.items():
                if decoded is not None and values[column] is not None:
                    values[column] = decoded(values[column])
            yield Row(values, f"{name}, row {number}")


def _decoder(kind: Any) -> Callable[[Any], Any] | None:
    """The decoder of a column's JSON texts, as `datasets` writes values of mixed types; None for other types."""
    import pyarrow as arrow

    if isinstance(kind, arrow.JsonType):
        return json.loads
    if arrow.types.is_list(kind) or arrow.types.is_large_list(kind):
        if (inner := _decoder(kind.value_type)) is not None:
            return lambda values: [None if value is None else inner(value) for value in values]
    elif arrow.types.is_struct(kind):
        inners = {field.name: decoded for field in kind if (decoded := _decoder(field.type)) is not None}
        if inners:
            return lambda values: {
                name: inners[name](value) if name in inners and value is not None else value
                for name, value in values.items()
            }
    return None


def _read_text(file: DataFile, sample_by: str) -> Iterator[Row]:
    """Running text: a row for each paragraph (separated by blank lines), for each line, or for the whole."""
    part: list[str] = []
    begin, size = 1, 0
    for number, line in lines(file):
        if part and (sample_by == "line" or (sample_by == "paragraph" and not line.strip())):
            yield Row({"text": "".join(part).rstrip("\r\n")}, f"{file.name}, line {begin}")
            part = []
        if line.strip() or (part and sample_by == "document"):
            if not part:
                begin, size = number, 0
            part.append(line)
            size += len(line)
            if size > MOST_LINE:
                said = f"{file.name}, line {begin}: a {sample_by} has at most {MOST_LINE:,} characters"
                raise DataError(Problem(said, f"more, up to line {number}", "--set data.sample_by=line"))
    if part:
        yield Row({"text": "".join(part).rstrip("\r\n")}, f"{file.name}, line {begin}")


READERS = {
    ".jsonl": Reader(_read_json_lines, f"a row a line: {ONE_ROW}"),
    ".ndjson": Reader(_read_json_lines, f"a row a line: {ONE_ROW}"),
    ".json": Reader(_read_json, f"a list of rows: [{ONE_ROW}, ...]"),
    ".csv": Reader(_read_csv, "the names of the columns, then a row a line"),
    ".tsv": Reader(_read_csv, "the names of the columns, then a row a line"),
    ".parquet": Reader(_read_parquet, "a table with a row or more"),
    ".arrow": Reader(_read_arrow, "a table with a row or more"),
    ".txt": Reader(_read_text, "text; a blank line between two rows", running_text=True),
}
ENDINGS = tuple(READERS)
