"""Limits of the readers: a file that unpacks to a large one is rejected with little memory.

Oracle: the peak memory of Python objects (tracemalloc), far below the unpacked size.
"""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from pathlib import Path

import pytest

from neftcli.data.sources import read_rows
from neftcli.errors import DataError
from neftcli.rows import data_file, readers

MIB = 2**20


@pytest.mark.parametrize(
    ("name", "piece", "message"),
    [
        ("line.jsonl.gz", b"a" * MIB, "line.jsonl.gz, line 1: a line has at most 1,048,576 bytes"),
        ("line.csv.gz", b"a" * MIB, "line.csv.gz, line 1: a line has at most 1,048,576 bytes"),
        (
            "field.csv.gz",
            b'"' + (b"a" * 1023 + b"\n") * 1024,
            "field.csv.gz, line 1: not CSV: field larger than field limit",
        ),
        ("all.json.gz", (b"[" + b"1," * 511 + b"\n") * 1024, "a .json.gz has at most 2,097,152 characters"),
        ("line.json.gz", b"a" * MIB, "line.json.gz, line 1: a line has at most 2,097,152 bytes"),
        (
            "all.txt.gz",
            (b"a b " * 255 + b"ab\n") * 1024,
            "all.txt.gz, line 1: a paragraph has at most 1,048,576 characters",
        ),
    ],
)
def test_read_file_of_a_bomb(
    name: str, piece: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file unpacks to 24 MiB; the limits are smaller than the real ones."""
    for module in (data_file, readers):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", MIB)
        monkeypatch.setattr(module, "MAX_JSON_GZ_BYTES", 2 * MIB)
    before = readers.csv.field_size_limit(MIB)
    with gzip.open(tmp_path / name, "wb", 9) as file:
        for _ in range(24):
            file.write(piece)
            piece = piece.replace(b'"', b"")
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            list(read_rows(str(tmp_path / name)))
        assert tracemalloc.get_traced_memory()[1] < 20 * MIB
    finally:
        tracemalloc.stop()
        readers.csv.field_size_limit(before)
    assert message in str(caught.value)
    assert (tmp_path / name).stat().st_size < MIB


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
def test_read_file_of_json_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minified .json is one line, which may be longer than a line of other files."""
    monkeypatch.setattr(data_file, "MAX_LINE_BYTES", MIB)
    rows = [{"text": "a" * 700_000}, {"text": "b" * 700_000}]
    content = json.dumps(rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [row.values for row in read_rows(str(tmp_path / name))] == rows


def test_read_file_of_300_000_columns(tmp_path: Path) -> None:
    """The time is linear in the number of columns."""
    names = [f"c{number}" for number in range(300_000)]
    file = tmp_path / "wide.csv"
    file.write_text(",".join(names) + "\n" + ",".join(["1"] * len(names)) + "\n")
    start = time.monotonic()
    [row] = read_rows(str(file))
    assert (len(row.values), time.monotonic() - start < 20) == (len(names), True)
