"""Any file is read, or rejected with a DataError; the readers raise nothing else.

Oracles: two laws that hypothesis tries to break. Any bytes under any ending give rows that are examples or are counted
as unusable, or a DataError with a message and a hint; and a truncated .gz, Parquet or JSON list is never read as a
shorter one.
"""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from neftcli.data.mixture import read_eval_examples, read_examples
from neftcli.data.sources import is_hub_id
from neftcli.errors import DataError, Problem
from neftcli.recipe.schema import Data
from neftcli.rows.example import UnusableRow
from neftcli.rows.formats import ROW_FORMATS, detect_format, to_example
from neftcli.rows.readers import FILE_READERS, Row
from neftcli.system.paths import exists

ENDINGS = tuple(FILE_READERS)
# tmp_path and chdir are shared by the examples of one property; each example writes the file anew.
for_each_example = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def require_rows_or_error(name: str, content: bytes, **settings_of_data: Any) -> None:
    Path(name).write_bytes(content)
    data = Data(source=name, **settings_of_data)
    for read in (read_examples, read_eval_examples):
        problems: tuple[Problem, ...] = ()
        try:
            rows_read = read(data).rows_read
        except DataError as error:
            problems, rows_read = error.problems, 0
        assert bool(problems) != bool(rows_read)
        assert all(problem.message and problem.hint for problem in problems), problems


NAMES = st.sampled_from([f"rows{ending}{packed}" for ending in ENDINGS for packed in ("", ".gz")])


@for_each_example
@given(name=NAMES, content=st.binary(max_size=200), packed=st.booleans())
@example(name="rows.jsonl", content=b"\xff\xfe", packed=False)
@example(name="rows.jsonl", content=b"\x1f\x8b", packed=True)
@example(name="rows.csv", content=b'"', packed=False)
@example(name="rows.parquet", content=b"PAR1PAR1", packed=False)
def test_read_examples_any_bytes(name: str, content: bytes, packed: bool) -> None:
    """Random bytes, plain and packed."""
    require_rows_or_error(name, gzip.compress(content) if packed else content)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.dictionaries(
        st.sampled_from(["id", "type", "function", "name", "arguments", "index"]),
        st.sampled_from(["function", "{}", '{"a": 1}', {"name": "f", "arguments": {}}, {"name": "f"}, 0, None])
        | VALUES,
        max_size=3,
    ),
    max_size=2,
)
KEYS = ["role", "content", "from", "value"]
OTHER_KEYS = ["weight", "train", "loss", "reasoning", "thinking", "tool_calls", "function_call", "name", "tool_call_id"]
ROLE_NAMES = ["user", "assistant", "system", "gpt", "human", "tool", "function_call", "observation"]
PARTS = st.lists(st.dictionaries(st.sampled_from(["type", "text", "image"]), st.just("text") | VALUES), max_size=2)
ITEMS = st.sampled_from([*ROLE_NAMES, "", "words", 0, 1, True]) | VALUES | CALLS | CALLS.map(json.dumps) | PARTS
TURN = st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, st.sampled_from(ROLE_NAMES) | ITEMS)) | st.tuples(
    st.fixed_dictionaries({"role": st.sampled_from(ROLE_NAMES), "content": st.text(max_size=3) | ITEMS}),
    st.dictionaries(st.sampled_from(OTHER_KEYS) | st.text(max_size=4), ITEMS, max_size=2),
).map(lambda parts: {**parts[1], **parts[0]})
TURNS = st.lists(st.deferred(lambda: TURN), max_size=4)  # deferred: hypothesis would write out all that it is made of
COLUMNS = ["text", "prompt", "completion", "instruction", "input", "output", "messages", "conversations", "system"]
OTHER_COLUMNS = [
    "tools",
    "functions",
    "history",
    "weight",
    "loss",
    "chosen",
    "rejected",
    "label",
    "images",
    "question",
    "answer",
]
CELLS = st.text(max_size=8) | st.deferred(lambda: VALUES) | TURNS | TURNS.map(json.dumps) | st.deferred(lambda: CALLS)
ROWS = st.dictionaries(
    st.sampled_from(COLUMNS) | st.sampled_from(OTHER_COLUMNS) | st.text(max_size=4), CELLS, max_size=5
)
FORMATS = st.sampled_from(["auto", "text", "prompt_completion", "alpaca", "messages", "sharegpt"])


@for_each_example
@given(rows=st.lists(ROWS | VALUES, max_size=4), row_format=FORMATS, mapped=st.booleans())
@example(
    rows=[{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]}],
    row_format="auto",
    mapped=False,
)
@example(rows=[{"prompt": [], "completion": []}], row_format="auto", mapped=False)
@example(rows=[{"conversations": [{}]}], row_format="auto", mapped=True)
def test_read_examples_any_rows_of_json(rows: list[Any], row_format: Any, mapped: bool) -> None:
    """Standard columns and others with values of any type, as lines and as a list, with and without data.columns."""
    columns = {"instruction": "prompt", "output": "text"} if mapped else {}
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    require_rows_or_error("rows.jsonl", lines.encode(), format=row_format, columns=columns)
    require_rows_or_error("rows.json", json.dumps(rows).encode(), format=row_format, columns=columns)


@settings(for_each_example)
@given(values=ROWS, row_format=st.sampled_from(list(ROW_FORMATS)), answers=st.booleans())
def test_to_example_any_row(values: dict[str, Any], row_format: str, answers: bool) -> None:
    """In any format, given or detected, an example has a question, and an answer if answers are required."""
    row = Row(values, "rows.jsonl, line 1")
    for chosen in (row_format, None):
        problems: tuple[Problem, ...] = ()
        found = None
        try:
            found = to_example(row, chosen or detect_format(row, {}, answers=answers), "s", answers=answers)
        except UnusableRow as error:
            problems = (Problem(str(error), "", "a row that can be used"),)
        except DataError as error:
            problems = error.problems
        assert bool(problems) != bool(found)
        assert all(problem.message and problem.hint for problem in problems), problems
        if found is None:
            continue
        assert bool(found.text) != bool(found.turns)
        assert not found.turns or any(turn.role == "user" for turn in found.turns)
        assert not found.turns or not answers or found.answer()
        assert 0 <= found.completion <= max(0, len(found.turns) - 1)
        for text in (found.tools, *(turn.tool_calls for turn in found.turns)):
            assert not text or isinstance(json.loads(text), list)


@for_each_example
@given(
    header=st.lists(st.sampled_from(COLUMNS) | st.text(max_size=4), max_size=4),
    cells=st.lists(st.lists(st.text(max_size=6), max_size=4), max_size=4),
    delimiter=st.sampled_from(",\t;|"),
)
def test_read_examples_any_table(header: list[str], cells: list[list[str]], delimiter: str) -> None:
    """Tables with random names, rows of any length and each of the usual delimiters."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([header, *cells])
    for name in ("rows.csv", "rows.tsv"):
        require_rows_or_error(name, text.getvalue().encode("utf-8", "surrogatepass"))


ROWS_OF_A_FILE = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(6)]


def written(ending: str) -> bytes:
    if ending == ".parquet":
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(ROWS_OF_A_FILE), buffer)
        return buffer.getvalue()
    if ending == ".json":
        return json.dumps(ROWS_OF_A_FILE).encode()
    if ending in (".csv", ".tsv"):
        text = io.StringIO()
        writer = csv.DictWriter(
            text, list(ROWS_OF_A_FILE[0]), delimiter="\t" if ending == ".tsv" else ",", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(ROWS_OF_A_FILE)
        return text.getvalue().encode()
    return "".join(json.dumps(row) + "\n" for row in ROWS_OF_A_FILE).encode()


@for_each_example
@given(
    ending=st.sampled_from(ENDINGS),
    place=st.integers(0, 2000),
    byte=st.integers(0, 255),
    packed=st.booleans(),
)
@example(ending=".parquet", place=265, byte=128, packed=False)  # no UTF-8 in a column's name, and in its text
@example(ending=".parquet", place=178, byte=128, packed=False)
def test_read_examples_file_with_one_byte_changed(ending: str, place: int, byte: int, packed: bool) -> None:
    """A file with one changed byte is read or rejected with a message."""
    whole = written(ending)
    content = bytearray(gzip.compress(whole, mtime=0) if packed else whole)
    content[place % len(content)] = byte
    require_rows_or_error(f"rows{ending}{'.gz' if packed else ''}", bytes(content))


@for_each_example
@given(ending=st.sampled_from(ENDINGS), length=st.integers(0, 2000), packed=st.booleans())
def test_read_examples_truncated_file(ending: str, length: int, packed: bool) -> None:
    """A truncated .gz, Parquet or JSON list is rejected, however little is missing."""
    content = gzip.compress(written(ending), mtime=0) if packed else written(ending)
    name, cut = f"rows{ending}{'.gz' if packed else ''}", content[: length % len(content)]
    require_rows_or_error(name, cut)
    if packed or ending in (".parquet", ".json"):
        with pytest.raises(DataError):
            read_examples(Data(source=name))


@for_each_example
@given(name=st.text(min_size=1, max_size=300))
@example(name="a" * 5000)
@example(name="a\0.jsonl")
@example(name="~nobody/rows")
@example(name="~0")
@example(name="\ud800.csv")
def test_read_examples_any_name(name: str) -> None:
    """A missing file is a DataError, whatever characters its name has; hub ids are left out here."""
    if is_hub_id(name) or name == "builtin" or exists(Path(name)):
        return
    with pytest.raises(DataError):
        read_examples(Data(source=name))
