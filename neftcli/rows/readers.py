"""Readers of data files.

`FILE_READERS` is the registry: one entry for each ending. A reader yields rows one at a time, with their locations.
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
from typing import Any

from neftcli.errors import DataError, Problem, first_line
from neftcli.rows.data_file import MAX_JSON_GZ_BYTES, MAX_LINE_BYTES, DataFile, read_lines
from neftcli.rows.turns import has_role
from neftcli.wording import count_noun

MAX_PROBLEMS = 5
"""Maximum malformed lines that are reported together."""
ROW_EXAMPLE = '{"prompt": "...", "completion": "..."}'
ROW_COLUMNS = frozenset(("messages", "conversations", "prompt", "completion", "instruction", "output", "text"))
"""Keys that make an object at the top of a .json file a row, not a wrapper around a list of rows."""
TEXT_ENDINGS = (".md", ".text", ".log")
"""Endings of text files that no reader is registered for."""
TRUNCATED_FILE = "the file ends within a row: download or write it again"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""Last bytes of an Arrow stream."""

csv.field_size_limit(MAX_LINE_BYTES)


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read.

    Attributes:
        values: Column to value.
        location: File and line or row: "rows.jsonl, line 17".
    """

    values: dict[str, Any]
    location: str


@dataclass(frozen=True, slots=True)
class FileReader:
    """The reader of a kind of file.

    Attributes:
        read: Yields the rows of a file; if `running_text`, it also takes data.sample_by.
        expected: The expected content, for messages and docs/sources.md.
        running_text: A row is a part of a running text, chosen by data.sample_by.
    """

    read: Callable[..., Iterator[Row]]
    expected: str
    running_text: bool = False


def file_ending(path: Path | str) -> str:
    """Return the ending that chooses the reader of a file, without .gz; empty if it is unknown."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FILE_READERS else ""


def is_running_text(path: Path | str) -> bool:
    """Return whether the rows of a file are parts of a running text."""
    return FILE_READERS[file_ending(path)].running_text


def read_file(file: DataFile, sample_by: str = "paragraph") -> Iterator[Row]:
    """Yield the rows of a file, in order.

    Args:
        file: A file with a known ending.
        sample_by: The rows of running text: "paragraph", "line" or "document".

    Raises:
        DataError: The file or a row can't be read, or the file has no rows.
    """
    try:
        yield from _read_rows(file, FILE_READERS[file_ending(file.path)], sample_by)
    except OSError as error:  # a broken link, missing permissions, a bad disk
        if file.path.is_symlink():
            hint = f"it is a link to {file.path.readlink()}"
        else:
            hint = "check the permissions of the file"
        got = error.strerror or str(error) or type(error).__name__
        raise DataError(Problem(f"{file.name}: the file can't be read", got, hint)) from None


def _read_rows(file: DataFile, reader: FileReader, sample_by: str) -> Iterator[Row]:
    if file.size() == 0:
        raise DataError(Problem(f"{file.name}: the file is empty", "0 bytes", reader.expected))
    rows = 0
    for row in reader.read(file, sample_by) if reader.running_text else reader.read(file):
        rows += 1
        yield row
    if not rows:
        raise DataError(Problem(f"{file.name}: the file has no rows", count_noun(file.size(), "byte"), reader.expected))


def require_known_ending(path: Path, name: str) -> None:
    """Reject a file for whose ending no reader is registered.

    Raises:
        DataError: With the known endings.
    """
    if file_ending(path):
        return
    hint = f"one of {', '.join(FILE_READERS)}"
    if Path(path.name.removesuffix(".gz")).suffix.lower() in TEXT_ENDINGS:
        hint = f"rename it to {DataFile(path, name).name_with_ending('.txt')}"
    message = f"{name}: unknown file extension"
    raise DataError(Problem(message, path.name or "no ending", hint))


class _JsonError(Exception):
    """A text that is not JSON, or has a key twice in an object."""

    def __init__(self, message: str, text: str, position: int) -> None:
        super().__init__(message)
        self.message = message
        end = len(text.rstrip())
        position = min(position, end)
        self.line = text.count("\n", 0, position) + 1
        self.column = position - text.rfind("\n", 0, position)
        before, after = "..." if position > 30 else "", "..." if position + 30 < end else ""
        excerpt = text[max(0, position - 30) : position + 30].replace("\n", " ").strip()
        self.excerpt = f"{before}{excerpt}{after}"
        self.is_truncated = "Unterminated" in message or position >= end


class _RepeatedKeyError(Exception):
    """A key occurs twice in an object, so one of its values would be lost."""


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _RepeatedKeyError(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return values


def _parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        _JsonError: It is not valid JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_to_object)
    except json.JSONDecodeError as error:
        raise _JsonError(f"not JSON: {error.msg}", text, error.pos) from None
    except _RepeatedKeyError as error:
        message = f"the key {str(error)[:40]} occurs twice in an object"
        raise _JsonError(message, text, max(0, text.find(json.dumps(str(error))))) from None
    except (RecursionError, ValueError):
        raise _JsonError("not JSON: nested too deeply, or a number with thousands of digits", text, 0) from None


def _read_json_lines(file: DataFile) -> Iterator[Row]:
    expected = FILE_READERS[file_ending(file.path)].expected
    problems: list[Problem] = []
    for number, line in read_lines(file):
        if not line.strip():
            continue
        location = f"{file.name}, line {number}"
        if number == 1:
            _require_json_lines(line, file, location)
        try:
            value = _parse_json(line)
        except _JsonError as error:
            hint = TRUNCATED_FILE if error.is_truncated and not line.endswith("\n") else expected
            problems.append(Problem(f"{location}: {error.message} (column {error.column})", error.excerpt, hint))
        else:
            if isinstance(value, dict):
                if not problems:
                    yield Row(value, location)
                continue
            problems.append(Problem(f"{location}: a row must be an object", line.strip()[:60], expected))
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        raise DataError(*problems)


def _require_json_lines(first: str, file: DataFile, location: str) -> None:
    """Reject a file whose first line shows that it does not have one row per line."""
    message = f"{location}: a .jsonl file has one object per line"
    beginning = first.strip()
    if beginning.startswith("[") and not _is_list_of_other_values(beginning):
        raise DataError(Problem(message, "a list", f"rename it to {file.name_with_ending('.json')}"))
    if beginning == "{" and first.endswith("\n"):
        raise DataError(Problem(message, "an object over several lines", "write each object on a single line"))


def _is_list_of_other_values(line: str) -> bool:
    """Return whether a line is a complete list of values that are not rows: renaming the file would not help."""
    try:
        value = _parse_json(line)
    except _JsonError:
        return False
    return isinstance(value, list) and not all(isinstance(item, dict) for item in value)


def _read_json(file: DataFile) -> Iterator[Row]:
    name = file.name
    expected = FILE_READERS[file_ending(file.path)].expected
    parts = []
    size = 0
    for number, line in read_lines(file, whole=True):
        parts.append(line)
        size += len(line)
        if size > MAX_JSON_GZ_BYTES and file.is_gzip():
            message = f"{name}, line {number}: a .json.gz has at most {MAX_JSON_GZ_BYTES:,} characters"
            hint = f"write one row per line to {file.name_with_ending('.jsonl')}, which is not read as a whole"
            raise DataError(Problem(message, "more", hint))
    text = "".join(parts)
    try:
        value = _parse_json(text)
    except _JsonError as error:
        if error.message.endswith("Extra data"):
            hint = f"rename it to {file.name_with_ending('.jsonl')}"
        else:
            hint = TRUNCATED_FILE if error.is_truncated else expected
        message = f"{name}, line {error.line}: {error.message} (column {error.column})"
        raise DataError(Problem(message, error.excerpt, hint)) from None
    if isinstance(value, dict):
        value = _find_rows(value, file)
    if not isinstance(value, list):
        raise DataError(Problem(f"{name}: a .json file must hold a list of objects", text.strip()[:60], expected))
    for number, item in enumerate(value, 1):
        location = f"{name}, row {number}"
        if not isinstance(item, dict):
            raise DataError(Problem(f"{location}: a row must be an object", json.dumps(item)[:60], expected))
        yield Row(item, location)


def _find_rows(value: dict[str, Any], file: DataFile) -> list[Any]:
    """Return the rows of an object at the top of a .json file: the only list in it, or the object as one row.

    Raises:
        DataError: It holds several lists of rows, or columns instead of rows.
    """
    if _is_column_oriented(list(value.values())):
        message = f"{file.name}: this .json file holds columns, not rows"
        hint = "write it as a list of rows; with pandas: to_json(FILE, orient='records')"
        raise DataError(Problem(message, ", ".join(value)[:60], hint))
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    is_row = not ROW_COLUMNS.isdisjoint(value) or any(rows and has_role(rows[0]) for rows in lists.values())
    tables = {key: rows for key, rows in lists.items() if all(isinstance(row, dict) for row in rows)}
    if not is_row and len(tables) > 1:
        message = f"{file.name}: this .json file holds several lists of rows"
        hint = f"write {next(iter(tables))} to a file of its own"
        raise DataError(Problem(message, ", ".join(tables)[:60], hint))
    has_objects = any(isinstance(item, dict) for item in value.values())
    if is_row or not lists or (has_objects and not tables):
        return [value]
    return next(iter((tables or lists).values()))


def _is_column_oriented(values: list[Any]) -> bool:
    """Return whether these are columns of equal length, as `to_json` or `to_dict` of a table writes them."""
    if len(values) < 2 or not all(isinstance(value, list | dict) and value for value in values):
        return False
    columns = [list(value.values()) if isinstance(value, dict) else value for value in values]
    if len({len(column) for column in columns}) > 1 or len({type(value) for value in values}) > 1:
        return False
    return all(isinstance(cell, str | int | float | None) for column in columns for cell in column)


def _read_csv(file: DataFile) -> Iterator[Row]:
    for _ in read_lines(file):  # rejects what is not text, with its line
        pass
    delimiter = "\t" if file_ending(file.path) == ".tsv" else ","
    with file.open() as binary, TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] = []
        start = 1
        try:
            for values in reader:
                location = f"{file.name}, line {start}"
                start = reader.line_num + 1
                if not values:  # a blank line
                    continue
                if not header:
                    header = values
                    _check_header(header, delimiter, file, location)
                elif len(values) != len(header):
                    message = f"{location}: the row and the header must have the same number of columns"
                    mark = "tabs" if delimiter == "\t" else "commas"
                    got = f"{len(values)} and {len(header)}"
                    raise DataError(Problem(message, got, f'put double quotes around text with {mark}: "..."'))
                else:
                    yield Row(dict(zip(header, values, strict=True)), location)
        except csv.Error as error:
            message = f"{file.name}, line {start}: not CSV: {error}"
            hint = 'close the quotes; write a quote inside quoted text twice: ""'
            raise DataError(Problem(message, "a row that begins here", hint)) from None


def _check_header(header: list[str], delimiter: str, file: DataFile, location: str) -> None:
    """Reject column names that occur twice, or that are separated by something other than the delimiter."""
    repeated = [column for column, number in Counter(header).items() if number > 1]
    if repeated:
        message = f"{location}: the header has a column twice"
        raise DataError(Problem(message, repeated[0][:60], "give each column its own name"))
    other = next((mark for mark in ",\t;|" if mark in header[0]), "")
    if len(header) > 1 or not other:
        return
    between = "commas" if delimiter == "," else "tabs"
    hint = f"save it with {between} between the columns"
    if {delimiter, other} == {",", "\t"}:
        hint = f"rename it to {file.name_with_ending('.tsv' if other == chr(9) else '.csv')}"
    raise DataError(Problem(f"{location}: columns must be separated by {between}", header[0][:60], hint))


def _read_parquet(file: DataFile) -> Iterator[Row]:
    from pyarrow import parquet

    with _table_errors(file, "a Parquet file"), file.open() as binary:
        yield from table_rows(parquet.ParquetFile(binary).iter_batches(batch_size=1024), file.name)


def _read_arrow(file: DataFile) -> Iterator[Row]:
    """Read Arrow's file format, or its stream format, which `datasets` writes; a local file is memory-mapped."""
    import pyarrow as arrow

    with _table_errors(file, "an Arrow file"), file.open() as binary:
        is_file_format = binary.read(6) == b"ARROW1"
        if not is_file_format and not file.is_gzip():
            # A stream that was truncated between two batches would read as a shorter one.
            binary.seek(-len(END_OF_STREAM), 2)
            if binary.read() != END_OF_STREAM:
                raise ValueError("the end of the stream is missing: the file is truncated")
        binary.seek(0)
        source = arrow.memory_map(str(file.path)) if file.downloaded is None and not file.is_gzip() else binary
        batches: Iterable[Any]
        if is_file_format:
            opened = arrow.ipc.open_file(source)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        else:
            batches = arrow.ipc.open_stream(source)
        yield from table_rows(batches, file.name)


@contextmanager
def _table_errors(file: DataFile, kind: str) -> Iterator[None]:
    """Turn the errors that pyarrow raises for a damaged file into a DataError."""
    import pyarrow as arrow

    try:
        yield
    # ValueError: text that is not UTF-8, and, with OverflowError, dates that Python can't represent.
    except (arrow.ArrowException, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        message = f"{file.name}: this can't be read as {kind}"
        raise DataError(Problem(message, first_line(error), "download or write the file again")) from None


def table_rows(batches: Iterable[Any], name: str) -> Iterator[Row]:
    """Yield the rows of Arrow record batches or tables, numbered from 1 over all of them."""
    number = 0
    for batch in batches:
        decoders = {field.name: _json_decoder(field.type) for field in batch.schema}
        for values in batch.to_pylist():
            number += 1
            for column, decode in decoders.items():
                if decode is not None and values[column] is not None:
                    values[column] = decode(values[column])
            yield Row(values, f"{name}, row {number}")


def _json_decoder(kind: Any) -> Callable[[Any], Any] | None:
    """Return the decoder of a column's JSON texts, as `datasets` writes values of mixed types; None for other types."""
    import pyarrow as arrow

    if isinstance(kind, arrow.JsonType):
        return json.loads
    if arrow.types.is_list(kind) or arrow.types.is_large_list(kind):
        if (decode_item := _json_decoder(kind.value_type)) is not None:
            return lambda values: [None if value is None else decode_item(value) for value in values]
    elif arrow.types.is_struct(kind):
        decoders = {field.name: decode for field in kind if (decode := _json_decoder(field.type)) is not None}
        if decoders:
            return lambda values: {
                name: decoders[name](value) if name in decoders and value is not None else value
                for name, value in values.items()
            }
    return None


def _read_text(file: DataFile, sample_by: str) -> Iterator[Row]:
    """Read running text: a row for each paragraph (separated by blank lines), each line, or the whole document."""
    part: list[str] = []
    begin, size = 1, 0
    for number, line in read_lines(file):
        if part and (sample_by == "line" or (sample_by == "paragraph" and not line.strip())):
            yield Row({"text": "".join(part).rstrip("\r\n")}, f"{file.name}, line {begin}")
            part = []
        if line.strip() or (part and sample_by == "document"):
            if not part:
                begin, size = number, 0
            part.append(line)
            size += len(line)
            if size > MAX_LINE_BYTES:
                message = f"{file.name}, line {begin}: a {sample_by} has at most {MAX_LINE_BYTES:,} characters"
                raise DataError(Problem(message, f"more, up to line {number}", "--set data.sample_by=line"))
    if part:
        yield Row({"text": "".join(part).rstrip("\r\n")}, f"{file.name}, line {begin}")


FILE_READERS: dict[str, FileReader] = {
    ".jsonl": FileReader(_read_json_lines, f"one row per line: {ROW_EXAMPLE}"),
    ".ndjson": FileReader(_read_json_lines, f"one row per line: {ROW_EXAMPLE}"),
    ".json": FileReader(_read_json, f"a list of rows: [{ROW_EXAMPLE}, ...]"),
    ".csv": FileReader(_read_csv, "column names separated by commas, then one row per line"),
    ".tsv": FileReader(_read_csv, "column names separated by tabs, then one row per line"),
    ".parquet": FileReader(_read_parquet, "a Parquet table"),
    ".arrow": FileReader(_read_arrow, "an Arrow table, in the file or the stream format"),
    ".txt": FileReader(_read_text, "text, with blank lines between paragraphs", running_text=True),
}
"""Ending of a file to its reader."""
