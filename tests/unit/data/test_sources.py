"""Reading rows from every kind of file, and the error if a file can't be read.

Oracles: the rows that were written (by the standard library's json and csv, and by pyarrow), the line of a marker,
found by counting line breaks in the text, and the exact message for every kind of damage.
"""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from neftcli.data import sources
from neftcli.data.sources import is_hub_id, read_rows
from neftcli.errors import DataError
from neftcli.rows.readers import FILE_READERS

ROWS = [
    {"prompt": "What is 2 + 2?", "completion": "4"},
    {"prompt": "Two lines,\nplease", "completion": 'said "yes", then\tleft'},
    {"prompt": "Größe von 🦜?", "completion": "こんにちは"},
]
BUILTIN = Path(sources.__file__).parent / "builtin"

# tmp_path and chdir are shared by the examples of one property; each example writes the file anew.
for_each_example = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def as_json(rows: list[dict[str, str]]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def as_wrapped_json(rows: list[dict[str, str]]) -> bytes:
    return json.dumps({"version": "1", "data": rows}).encode()


def as_json_lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_tsv(rows: list[dict[str, str]]) -> bytes:
    return as_csv(rows, "\t")


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def read(name: str, split: str = "train") -> list[tuple[dict[str, object], str]]:
    return [(row.values, row.location) for row in read_rows(name, split)]


def values(name: str) -> list[dict[str, object]]:
    return [found for found, _ in read(name)]


def error_message(name: str, content: bytes | None = None, split: str = "train") -> str:
    """Return the error for a file with this content, or for a source of this name."""
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        read(name, split)
    return str(raised.value)


# Every kind of file


KINDS: list[tuple[str, Callable[[list[dict[str, str]]], bytes], list[str]]] = [
    ("rows.json", as_json, ["row 1", "row 2", "row 3"]),
    ("wrapped.json", as_wrapped_json, ["row 1", "row 2", "row 3"]),
    ("rows.jsonl", as_json_lines, ["line 1", "line 2", "line 3"]),
    ("rows.ndjson", as_json_lines, ["line 1", "line 2", "line 3"]),
    ("ROWS.JSONL", as_json_lines, ["line 1", "line 2", "line 3"]),
    ("rows.csv", as_csv, ["line 2", "line 3", "line 5"]),
    ("rows.tsv", as_tsv, ["line 2", "line 3", "line 5"]),
    ("rows.parquet", as_parquet, ["row 1", "row 2", "row 3"]),
]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("name", "write", "places"), KINDS, ids=[kind[0] for kind in KINDS])
def test_read_rows_every_kind_of_file(
    name: str, write: Callable[[list[dict[str, str]]], bytes], places: list[str], packed: bool
) -> None:
    """The rows that were written are read in order, plain and packed, with their locations."""
    name = f"{name}.gz" if packed else name
    Path(name).write_bytes(gzip.compress(write(ROWS)) if packed else write(ROWS))
    assert read(name) == list(zip(ROWS, [f"{name}, {place}" for place in places], strict=True))


@pytest.mark.parametrize("write", [as_json, as_wrapped_json, as_json_lines, as_csv, as_tsv])
def test_read_rows_byte_order_mark(write: Callable[[list[dict[str, str]]], bytes]) -> None:
    """A UTF-8 file with the mark that Windows writes is read like one without it."""
    name = {as_csv: "rows.csv", as_tsv: "rows.tsv", as_json_lines: "rows.jsonl"}.get(write, "rows.json")
    Path(name).write_bytes(b"\xef\xbb\xbf" + write(ROWS))
    assert values(name) == ROWS


@pytest.mark.parametrize("write", [as_json, as_json_lines, as_csv, as_tsv])
def test_read_rows_windows_line_ends(write: Callable[[list[dict[str, str]]], bytes]) -> None:
    """CRLF counts as one line end, in the values and in line numbers."""
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    name = {as_csv: "rows.csv", as_tsv: "rows.tsv", as_json_lines: "rows.jsonl"}.get(write, "rows.json")
    Path(name).write_bytes(write(rows))
    expected = read(name)
    Path(name).write_bytes(write(rows).replace(b"\n", b"\r\n"))
    assert read(name) == expected
    assert values(name) == rows


def test_read_rows_parquet_lists_of_turns() -> None:
    """Nested columns come back as the lists and dicts they were."""
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), "chat.parquet")
    assert values("chat.parquet") == rows


def test_read_rows_parquet_row_numbers_over_batches() -> None:
    """In a file longer than one batch, rows are numbered from 1 to the end."""
    rows = [{"text": str(number)} for number in range(2500)]
    Path("rows.parquet").write_bytes(as_parquet(rows))
    found = read("rows.parquet")
    assert [row for row, _ in found] == rows
    assert found[-1][1] == "rows.parquet, row 2500"


cells = st.text(alphabet='ab,"\n\té ', max_size=8)


@for_each_example
@given(texts=st.lists(cells, min_size=1, max_size=8), blanks=st.lists(st.integers(0, 2), min_size=9, max_size=9))
def test_read_rows_csv_line_numbers(texts: list[str], blanks: list[int]) -> None:
    """Quoted line breaks and blank lines before a row are counted as an editor counts them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    text.write("\n" * blanks[0])
    writer.writerow(["marker", "text"])
    for number, (cell, blank) in enumerate(zip(texts, blanks[1:], strict=False)):
        text.write("\n" * blank)
        writer.writerow([f"<{number}>", cell])
    written = text.getvalue()
    Path("rows.csv").write_text(written, encoding="utf-8")
    expected = []
    for number, cell in enumerate(texts):
        line = written[: written.index(f"<{number}>")].count("\n") + 1
        expected.append(({"marker": f"<{number}>", "text": cell}, f"rows.csv, line {line}"))
    assert read("rows.csv") == expected


@for_each_example
@given(blanks=st.lists(st.sampled_from(["", "\n", "  \n", "\r\n\n"]), min_size=1, max_size=8))
def test_read_rows_jsonl_line_numbers(blanks: list[str]) -> None:
    """Blank lines hold no row and are counted."""
    written = "".join(f'{blank}{{"text": "<{number}>"}}\n' for number, blank in enumerate(blanks))
    Path("rows.jsonl").write_bytes(written.encode())
    lines = [written[: written.index(f"<{number}>")].count("\n") + 1 for number in range(len(blanks))]
    assert [location for _, location in read("rows.jsonl")] == [f"rows.jsonl, line {line}" for line in lines]


def test_read_rows_folder() -> None:
    """Files of every known kind are read, sorted by name; other files and subfolders are skipped."""
    folder = Path("data")
    (folder / "deeper.json").mkdir(parents=True)
    (folder / "b.jsonl").write_text('{"text": "b"}\n', encoding="utf-8")
    (folder / "a.csv").write_text("text\na\n", encoding="utf-8")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "c"}\n'))
    (folder / "README.md").write_text("no data", encoding="utf-8")
    expected = [
        ({"text": "a"}, "data/a.csv, line 2"),
        ({"text": "b"}, "data/b.jsonl, line 1"),
        ({"text": "c"}, "data/c.jsonl.gz, line 1"),
    ]
    assert read("data") == read("data/") == read("./data") == expected


def test_read_rows_folder_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~/rows` has one slash like a hub id, but is a path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("rows").mkdir()
    Path("rows/a.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    assert values("~/rows") == [{"text": "a"}]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_read_rows_builtin(split: str) -> None:
    """Each line of the shipped file is a row, with its line."""
    lines = (BUILTIN / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [(json.loads(line), f"built-in {split}, line {number}") for number, line in enumerate(lines, 1)]
    assert read("builtin", split) == expected


@pytest.mark.parametrize(
    ("source", "hub"),
    [
        ("imdb", True),
        ("tatsu-lab/alpaca", True),
        ("owner/name-v1.5", True),
        ("builtin", False),
        ("rows.jsonl", False),
        ("data/rows.jsonl", False),
        ("data/rows.csv.gz", False),
        ("a/b/c", False),
        ("./rows", False),
        ("../rows", False),
        ("~/rows", False),
        ("/rows", False),
        ("rows/", False),
        ("here/rows", False),
    ],
)
def test_is_hub_id(source: str, hub: bool) -> None:
    """A hub id is owner/name; a known ending, a leading dot, slash or tilde, and an existing path mean a path."""
    Path("here/rows").mkdir(parents=True)
    assert is_hub_id(source) == hub


# Errors


GOOD = b'{"text": "a"}\n'
BAD_LINES = b"".join(GOOD + b"{" + str(number).encode() + b"}\n" for number in range(7))
TRUNCATED = GOOD + b'{"prompt": "What is the capital of France?", "completion": "The capi'

TEXT_FILES = {
    "empty": (
        "rows.jsonl",
        b"",
        "rows.jsonl: the file is empty\n"
        "  got      0 bytes\n"
        '  hint     one row per line: {"prompt": "...", "completion": "..."}',
    ),
    "empty json": (
        "rows.json",
        b"",
        "rows.json: the file is empty\n"
        "  got      0 bytes\n"
        '  hint     a list of rows: [{"prompt": "...", "completion": "..."}, ...]',
    ),
    "empty csv": (
        "rows.csv",
        b"",
        "rows.csv: the file is empty\n  got      0 bytes\n"
        "  hint     column names separated by commas, then one row per line",
    ),
    "only blank lines": (
        "rows.jsonl",
        b"\n  \n\n",
        "rows.jsonl: the file has no rows\n"
        "  got      5 bytes\n"
        '  hint     one row per line: {"prompt": "...", "completion": "..."}',
    ),
    "only blank csv lines": (
        "rows.csv",
        b"\n\n",
        "rows.csv: the file has no rows\n  got      2 bytes\n"
        "  hint     column names separated by commas, then one row per line",
    ),
    "only a header": (
        "rows.csv",
        b"text\n",
        "rows.csv: the file has no rows\n  got      5 bytes\n"
        "  hint     column names separated by commas, then one row per line",
    ),
    "an empty list": (
        "rows.json",
        b"[]",
        "rows.json: the file has no rows\n"
        "  got      2 bytes\n"
        '  hint     a list of rows: [{"prompt": "...", "completion": "..."}, ...]',
    ),
    "a malformed line": (
        "rows.jsonl",
        GOOD * 16 + b"{'text': 'a'}\n",
        "rows.jsonl, line 17: not JSON: Expecting property name enclosed in double quotes (column 2)\n"
        "  got      {'text': 'a'}\n"
        '  hint     one row per line: {"prompt": "...", "completion": "..."}',
    ),
    "a truncated last line": (
        "rows.jsonl",
        TRUNCATED,
        "rows.jsonl, line 2: not JSON: Unterminated string starting at (column 60)\n"
        '  got      ...al of France?", "completion": "The capi\n'
        "  hint     the file ends within a row: download or write it again",
    ),
    "a list in a .jsonl": (
        "rows.jsonl",
        as_json(ROWS),
        "rows.jsonl, line 1: a .jsonl file has one object per line\n"
        "  got      a list\n"
        "  hint     rename it to rows.json",
    ),
    "a list on one line of a .jsonl": (
        "rows.v2.jsonl",
        b'[{"text": "a"}]',
        "rows.v2.jsonl, line 1: a .jsonl file has one object per line\n"
        "  got      a list\n"
        "  hint     rename it to rows.v2.json",
    ),
    "jsonl in a .json": (
        "rows.json",
        GOOD * 2,
        "rows.json, line 2: not JSON: Extra data (column 1)\n"
        '  got      {"text": "a"} {"text": "a"}\n'
        "  hint     rename it to rows.jsonl",
    ),
    "malformed json": (
        "rows.json",
        b'[{"text": "a"},\n {"text": b}]',
        "rows.json, line 2: not JSON: Expecting value (column 11)\n"
        '  got      [{"text": "a"},  {"text": b}]\n'
        '  hint     a list of rows: [{"prompt": "...", "completion": "..."}, ...]',
    ),
    "a number": (
        "rows.json",
        b"7",
        "rows.json: a .json file must hold a list of objects\n"
        "  got      7\n"
        '  hint     a list of rows: [{"prompt": "...", "completion": "..."}, ...]',
    ),
    "two lists": (
        "rows.json",
        b'{"train": [], "test": []}',
        "rows.json: this .json file holds several lists of rows\n"
        "  got      train, test\n"
        "  hint     write train to a file of its own",
    ),
    "columns": (
        "rows.json",
        b'{"prompt": ["q", "r"], "completion": ["a", "b"]}',
        "rows.json: this .json file holds columns, not rows\n"
        "  got      prompt, completion\n"
        "  hint     write it as a list of rows; with pandas: to_json(FILE, orient='records')",
    ),
    "a web page": (
        "rows.jsonl",
        b"<!DOCTYPE html>\n<html>",
        "rows.jsonl: this is a web page, not a file of rows\n"
        "  got      <!DOCTYPE html>\n"
        "  hint     download the file itself, with its raw or download link",
    ),
    "a row that is a string": (
        "rows.jsonl",
        GOOD + b'"text"\n',
        "rows.jsonl, line 2: a row must be an object\n"
        '  got      "text"\n'
        '  hint     one row per line: {"prompt": "...", "completion": "..."}',
    ),
    "a row that is a list, later": (
        "rows.jsonl",
        GOOD + b'["text"]\n',
        "rows.jsonl, line 2: a row must be an object\n"
        '  got      ["text"]\n'
        '  hint     one row per line: {"prompt": "...", "completion": "..."}',
    ),
    "a row of a list that is a number": (
        "rows.json",
        b'[{"text": "a"}, 7]',
        "rows.json, row 2: a row must be an object\n"
        "  got      7\n"
        '  hint     a list of rows: [{"prompt": "...", "completion": "..."}, ...]',
    ),
    "UTF-16": (
        "rows.jsonl",
        GOOD.decode().encode("utf-16"),
        "rows.jsonl, line 1: text must be UTF-8\n  got      UTF-16\n  hint     save the file as UTF-8",
    ),
    "big-endian UTF-16": (
        "rows.csv",
        b"\xfe\xff" + "text\na\n".encode("utf-16-be"),
        "rows.csv, line 1: text must be UTF-8\n  got      UTF-16\n  hint     save the file as UTF-8",
    ),
    "Latin-1": (
        "rows.jsonl",
        GOOD + '{"text": "Größe"}\n'.encode("latin-1"),
        "rows.jsonl, line 2: text must be UTF-8\n  got      byte 0xf6 at column 13\n  hint     save the file as UTF-8",
    ),
    "Latin-1 in a .json": (
        "rows.json",
        '[\n{"text": "é"}]'.encode("latin-1"),
        "rows.json, line 2: text must be UTF-8\n  got      byte 0xe9 at column 11\n  hint     save the file as UTF-8",
    ),
    "Latin-1 in a .csv": (
        "rows.csv",
        "text\na\né\n".encode("latin-1"),
        "rows.csv, line 3: text must be UTF-8\n  got      byte 0xe9 at column 1\n  hint     save the file as UTF-8",
    ),
    "NUL bytes": (
        "rows.jsonl",
        GOOD + b'{"text": "a\0b"}\n',
        "rows.jsonl, line 2: text must not contain NUL bytes\n"
        '  got      \'{"text": "a\\x00b"}\\n\'\n'
        "  hint     remove the NUL bytes",
    ),
    "too few columns": (
        "rows.csv",
        b'a,b,c\n1,2,3\n"4\n4",5\n',
        "rows.csv, line 3: the row and the header must have the same number of columns\n"
        "  got      2 and 3\n"
        '  hint     put double quotes around text with commas: "..."',
    ),
    "too many columns": (
        "rows.tsv",
        b"a\tb\n1\t2\n3\t4\t5\t6\n",
        "rows.tsv, line 3: the row and the header must have the same number of columns\n"
        "  got      4 and 2\n"
        '  hint     put double quotes around text with tabs: "..."',
    ),
    "a quote that is not closed": (
        "rows.csv",
        b'a,b\n1,2\n3,"4\n5,6\n7,8\n',
        "rows.csv, line 3: not CSV: unexpected end of data\n"
        "  got      a row that begins here\n"
        '  hint     close the quotes; write a quote inside quoted text twice: ""',
    ),
    "text behind a quote": (
        "rows.csv",
        b'a,b\n1,"2"x\n',
        "rows.csv, line 2: not CSV: ',' expected after '\"'\n"
        "  got      a row that begins here\n"
        '  hint     close the quotes; write a quote inside quoted text twice: ""',
    ),
    "a column twice": (
        "rows.csv",
        b"text,label,text\na,1,b\n",
        "rows.csv, line 1: the header has a column twice\n  got      text\n  hint     give each column its own name",
    ),
    "an integer of thousands of digits": (
        "rows.jsonl",
        GOOD + b'{"text": ' + b"1" * 5000 + b"}\n",
        "rows.jsonl, line 2: not JSON: nested too deeply, or a number with thousands of digits (column 1)\n"
        '  got      {"text": 111111111111111111111...\n'
        '  hint     one row per line: {"prompt": "...", "completion": "..."}',
    ),
    "lists in lists in lists": (
        "rows.json",
        b"[" * 100_000,
        "rows.json, line 1: not JSON: nested too deeply, or a number with thousands of digits (column 1)\n"
        "  got      [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[...\n"
        '  hint     a list of rows: [{"prompt": "...", "completion": "..."}, ...]',
    ),
}


@pytest.mark.parametrize("case", TEXT_FILES)
def test_read_rows_error(case: str) -> None:
    """The message has the file, the line and the problem."""
    name, content, message = TEXT_FILES[case]
    assert error_message(name, content) == message


def test_read_rows_reports_malformed_lines_together() -> None:
    """All wrong lines of a file are reported together, including those that hold no object."""
    message = error_message("rows.jsonl", b"{1}\n" + GOOD + b"[]\n" + GOOD + b"null\n")
    assert message == (
        "rows.jsonl, line 1: not JSON: Expecting property name enclosed in double quotes (column 2)\n"
        "  got      {1}\n"
        '  hint     one row per line: {"prompt": "...", "completion": "..."}\n'
        "rows.jsonl, line 3: a row must be an object\n"
        "  got      []\n"
        '  hint     one row per line: {"prompt": "...", "completion": "..."}\n'
        "rows.jsonl, line 5: a row must be an object\n"
        "  got      null\n"
        '  hint     one row per line: {"prompt": "...", "completion": "..."}'
    )


def test_read_rows_reports_at_most_five_malformed_lines() -> None:
    """Of seven wrong lines the first five are reported."""
    message = error_message("rows.jsonl", BAD_LINES)
    assert [line.split(":")[0] for line in message.splitlines() if not line.startswith(" ")] == [
        f"rows.jsonl, line {number}" for number in (2, 4, 6, 8, 10)
    ]


def test_read_rows_stops_at_a_malformed_line() -> None:
    """Only rows before the malformed line are read."""
    Path("rows.jsonl").write_bytes(GOOD + b"{\n" + GOOD)
    rows = read_rows("rows.jsonl")
    assert next(rows).location == "rows.jsonl, line 1"
    with pytest.raises(DataError):
        next(rows)


# Packed files


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def test_read_rows_gz_that_is_not_gzip() -> None:
    """A plain file that was named .gz."""
    assert error_message("rows.jsonl.gz", GOOD) == (
        "rows.jsonl.gz: this .gz can't be unpacked\n"
        "  got      Not a gzipped file (b'{\"') (after line 0)\n"
        "  hint     rename it to rows.jsonl"
    )


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_read_rows_truncated_gz(ending: str) -> None:
    """A truncated .gz is rejected, whatever it contains, and not read as a shorter file."""
    writers = {".jsonl": as_json_lines, ".json": as_json, ".csv": as_csv, ".parquet": as_parquet}
    content = packed(writers[ending](ROWS * 50))
    message = error_message(f"rows{ending}.gz", content[:-9])
    first = "this can't be read as a Parquet file" if ending == ".parquet" else "this .gz can't be unpacked"
    assert message.splitlines()[0] == f"rows{ending}.gz: {first}"
    assert message.splitlines()[1].startswith("  got      Compressed file ended before the end-of-stream marker")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_read_rows_gz_with_a_flipped_byte(ending: str) -> None:
    """The checksum of the packed bytes is compared."""
    content = bytearray(packed((as_parquet if ending == ".parquet" else as_json_lines)(ROWS)))
    content[-6] ^= 1  # in the CRC
    message = error_message(f"rows{ending}.gz", bytes(content))
    assert "got      CRC check failed" in message


def test_read_rows_hint_names_the_packed_file() -> None:
    """A .gz keeps its ending when it is renamed."""
    assert error_message("rows.jsonl.gz", packed('{"text": "é"}'.encode("latin-1"))).splitlines()[-1] == (
        "  hint     save the file as UTF-8"
    )
    assert error_message("rows.json.gz", packed(GOOD * 2)).splitlines()[-1] == "  hint     rename it to rows.jsonl.gz"
    assert error_message("rows.jsonl.gz", packed(b"[\n]")).splitlines()[-1] == "  hint     rename it to rows.json.gz"


# Parquet


def test_read_rows_damaged_parquet() -> None:
    """A file that isn't Parquet, a truncated one, and one damaged in the middle."""
    whole = as_parquet(ROWS)
    damaged = whole[:10] + b"\xff" * 30 + whole[40:]
    for content in (b"PAR1", whole[:-30], damaged):
        first, second, third = error_message("rows.parquet", content).splitlines()
        assert first == "rows.parquet: this can't be read as a Parquet file"
        assert second.startswith("  got      ")
        assert third == "  hint     download or write the file again"


# Names


def test_read_rows_missing_file_suggestion() -> None:
    """For a misspelt name the error suggests the existing file."""
    Path("data").mkdir()
    Path("data/train.jsonl").write_bytes(GOOD)
    assert error_message("data/trian.jsonl") == (
        "data: no such file or folder\n"
        "  got      data/trian.jsonl\n"
        "  did you mean data/train.jsonl?\n"
        "  hint     use a file, a folder, a hub id (owner/name), or builtin"
    )


@pytest.mark.parametrize("name", ["rows.jsonl", "./rows", "no/such/folder"])
def test_read_rows_missing_file(name: str) -> None:
    """Nothing is suggested if no name is similar; a path is never looked up on the hub."""
    assert error_message(name) == (
        f"data: no such file or folder\n  got      {Path(name)}\n"
        "  hint     use a file, a folder, a hub id (owner/name), or builtin"
    )


def test_read_rows_unknown_ending() -> None:
    """The ending determines the reader; the hint lists the known ones."""
    message = "unknown file extension"
    known = "one of .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, .txt"
    assert error_message("rows.zip", GOOD) == f"rows.zip: {message}\n  got      rows.zip\n  hint     {known}"
    assert error_message("rows.zip.gz", GOOD) == f"rows.zip.gz: {message}\n  got      rows.zip.gz\n  hint     {known}"
    assert error_message("rows.md", GOOD) == f"rows.md: {message}\n  got      rows.md\n  hint     rename it to rows.txt"


def test_read_rows_folder_without_data_files() -> None:
    """An empty folder, and one with other files, the first of which are listed."""
    Path("data").mkdir()
    message = "data: this folder has no data files\n  got      {}\n  hint     one of {}"
    endings = ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, .txt"
    assert error_message("data") == message.format("nothing", endings)
    for name in "gfedcba":
        Path("data", f"{name}.pdf").touch()
    assert error_message("data") == message.format("a.pdf, b.pdf, c.pdf, d.pdf, e.pdf", endings)


def test_read_rows_unknown_split_of_builtin() -> None:
    """The built-in set has two splits."""
    assert error_message("builtin", split="test") == (
        "data.split: the built-in data has no such split\n  got      test\n  hint     train or held_out"
    )


def test_read_rows_unreachable_hub(tmp_path: Path) -> None:
    """Offline and not in the cache; in a separate process, since datasets reads its settings only once."""
    program = """
from neftcli.data.sources import read_rows
from neftcli.errors import DataError
try:
    list(read_rows("alpaca"))
except DataError as error:
    print(error)
"""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(sources.__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    first, second, third = done.stdout.splitlines()
    assert first == (
        "data.source: the data set tatsu-lab/alpaca can't be downloaded from the hub, and is not in the local cache"
    )
    assert second.startswith("  got      ")
    assert third.startswith(
        "  hint     connect once (`hf auth login` for a private data set), or download it elsewhere: "
    )
    assert third.endswith(
        ": hf download tatsu-lab/alpaca --repo-type dataset --local-dir FOLDER; then --dataset FOLDER"
    )


def test_file_readers_are_documented() -> None:
    """A line of the table in docs/sources.md for each entry of the registry."""
    docs = (Path(__file__).parents[3] / "docs" / "sources.md").read_text(encoding="utf-8")
    for ending, reader in FILE_READERS.items():
        assert f"| `{ending}` | {reader.expected} |" in docs
