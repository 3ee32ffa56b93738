"""Data that can't be used, or only in part, through the real command line.

Oracles: the whole message of each case, in __snapshots__/test_bad_data.ambr; an unchanged folder; the number of rows
written, for valid data; and the file under the name in a hint.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from neftcli.data.sources import read_rows
from tests.bad_input import Case, Content, Neft, lay, rejection, require_harmless

GOOD = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(20)]
ROW = json.dumps(GOOD[0]) + "\n"
HUGE = 100_000_000  # bytes
QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def llama(tiny_folder: Callable[[str], Path]) -> Path:
    """Return a tiny Llama, written before a test captures the output."""
    return tiny_folder("llama")


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def data(name: str, content: Content, *more: str) -> Case:
    """Return a run on one file that fails before it loads the model."""
    return source(name, *more, files={name: content})


def source(name: str, *more: str, files: dict[str, Content] | None = None) -> Case:
    return Case(("train", "--model", "smollm2-135m", "--dataset", name, *more), files or {})


def turns(*given: Any) -> str:
    return lines({"messages": list(given)})


def table(columns: dict[str, list[Any]], edit: Callable[[bytes], bytes] = bytes) -> Callable[[Path], None]:
    """Return a Parquet file, with its bytes edited."""

    def write(path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), path)
        path.write_bytes(edit(path.read_bytes()))

    return write


def huge(before: bytes, behind: bytes = b"") -> Callable[[Path], None]:
    """Write a file of 100 MB."""
    return lambda path: path.write_bytes(before + b"x" * HUGE + behind) and None


PREFERENCE = lines({"prompt": "q", "chosen": "good", "rejected": "bad"})
SEMICOLONS = "prompt;completion\nHello, friend;Hi\n"
TWO = {"prompt": ["q"] * 5, "completion": ["a"] * 5}

DATA = {
    "a malformed line": data("d/rows.jsonl", f"{ROW}{{'prompt': 'q'}}\n{ROW}"),
    "several malformed lines": data("rows.jsonl", f"nothing\n{ROW}[]\n7\n"),
    "a line without its value": data("rows.jsonl", '{"prompt": "a question of some length", "completion": \n'),
    "a pipe": Case(("train", "--dataset", "-")),
    "answers without a name that is known": data("rows.jsonl", '{"Frage": "Warum?", "Antwort": "Darum."}\n'),
    "questions alone": data("rows.jsonl", '{"prompt": "q"}\n'),
    "a truncated line": data("rows.jsonl", ROW + ROW[:30]),
    "a truncated list": data("rows.json", json.dumps(GOOD)[:-40]),
    "a key twice": data("rows.jsonl", '{"prompt": "q", "prompt": "another", "completion": "a"}\n'),
    "UTF-16": data("d/rows.jsonl", ROW.encode("utf-16")),
    "UTF-16 without a mark": data("rows.jsonl", ROW.encode("utf-16-le")),
    "UTF-32": data("rows.csv", "prompt,completion\nq,a\n".encode("utf-32")),
    "Latin-1": data("d/my rows.jsonl", (ROW + '{"prompt": "Größe?", "completion": "a"}\n').encode("latin-1")),
    "Latin-1 in a .gz": data("rows.jsonl.gz", gzip.compress(ROW.replace("q", "ö").encode("latin-1"))),
    "NUL bytes": data("rows.jsonl", ROW.replace("q", "q\0")),
    "an empty file": data("rows.jsonl", ""),
    "blank lines": data("rows.jsonl", "\n\n"),
    "only a header": data("rows.csv", "prompt,completion\n"),
    "an empty list": data("rows.json", "[]"),
    "an empty folder": source("rows", files={"rows": None}),
    "a folder without data": source("rows", files={"rows/a.doc": "", "rows/b.pdf": ""}),
    "a folder with one bad file": source("rows", files={"rows/a.jsonl": ROW, "rows/b.jsonl": "{"}),
    "a folder of mixed layouts": source("rows", files={"rows/a.jsonl": ROW, "rows/b.jsonl": lines({"text": "words"})}),
    "a folder with preference data": source(
        "rows", files={"rows/train_gen.jsonl": PREFERENCE, "rows/train_sft.jsonl": ROW, "rows/test_sft.jsonl": ROW}
    ),
    "a folder of preference data": source("rows", files={"rows/a.jsonl": PREFERENCE, "rows/b.jsonl": PREFERENCE}),
    "mixed schemas": data("rows.jsonl", ROW + lines({"instruction": "q", "output": "a"})),
    "a number for a text": data("rows.jsonl", ROW + lines({"prompt": "q", "completion": 5})),
    "a list for a text": data("rows.jsonl", lines({"prompt": ["q"], "completion": "a"})),
    "not a number": data("rows.jsonl", '{"prompt": NaN, "completion": "a"}\n'),
    "nothing but nulls": data("rows.jsonl", lines({"prompt": None, "completion": None})),
    "empty completions": data(
        "rows.jsonl", lines({"prompt": "q", "completion": " "}, {"prompt": "r", "completion": ""})
    ),
    "half a character": data("rows.jsonl", '{"prompt": "\\ud83d", "completion": "a"}\n'),
    "a number of thousands of digits": data("rows.jsonl", '{"prompt": ' + "1" * 5000 + "}\n"),
    "lists in lists": data("rows.json", "[" * 100_000),
    "wrong columns": data("rows.jsonl", lines({"question": "q", "answer": "a"})),
    "columns that act on a terminal": data("rows.jsonl", lines({"\x1b[2Jq": "\x1b[2J", "\x9ba\u202e": ""})),
    "a column in capitals": data("rows.jsonl", lines({"Prompt": "q", "completion": "a"})),
    "thousands of columns": data("rows.jsonl", lines({f"column {number}": 0 for number in range(5000)})),
    "a column name of 1 MB": data("rows.jsonl", lines({"x" * 1_000_000: 0})),
    "a layout that it has not": data("rows.jsonl", ROW, "--format", "alpaca"),
    "a column that is not there": data(
        "rows.jsonl", ROW, "--set", "data.columns={prompt: promt, completion: completion}"
    ),
    "a standard column misspelt": data("rows.jsonl", ROW, "--set", "data.columns={prompt: prompt, inptu: completion}"),
    "turns as a text": data("rows.jsonl", lines({"messages": "hello"})),
    "a turn without a role": data("rows.jsonl", turns({"content": "q"})),
    "a turn of an unknown role": data("rows.jsonl", turns({"role": "robot", "content": "q"})),
    "a turn with an image": data(
        "rows.jsonl",
        turns(
            {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image_url", "image_url": "x.png"}]}
        ),
    ),
    "half a weight": data("rows.jsonl", turns(QUESTION, ANSWER | {"weight": 0.5})),
    "a weight without a value": data("rows.jsonl", turns(QUESTION, ANSWER | {"weight": ""})),
    "an answer to learn that nothing asked": data("rows.jsonl", turns(ANSWER | {"weight": 1}, QUESTION, ANSWER)),
    "a refusal": data("rows.jsonl", turns(QUESTION, ANSWER | {"content": None, "refusal": "No."})),
    "a tool result that is an object": data(
        "rows.jsonl", turns(QUESTION, ANSWER, {"role": "tool", "content": {"x": 2}}, ANSWER)
    ),
    "a question to learn": data("rows.jsonl", turns(QUESTION | {"train": True}, ANSWER)),
    "marks that contradict": data("rows.jsonl", turns(QUESTION, ANSWER | {"weight": 0, "train": True})),
    "a tool call that is no JSON": data(
        "rows.jsonl", turns(QUESTION, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": "{place"}}]})
    ),
    "tools that are no schemas": data("rows.jsonl", lines({"messages": [QUESTION, ANSWER], "tools": ["hammer"]})),
    "two system turns": data(
        "rows.jsonl", lines({"messages": [{"role": "system", "content": "s"}, QUESTION, ANSWER], "system": "t"})
    ),
    "preference data": data("rows.jsonl", PREFERENCE),
    "preference data of ShareGPT": data(
        "rows.jsonl",
        lines(
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            }
        ),
    ),
    "preference data further down": data("rows.jsonl", lines(GOOD[0], GOOD[1] | {"chosen": "good", "rejected": "bad"})),
    "answers that are judged": data("rows.jsonl", lines(GOOD[0] | {"label": True})),
    "answers that are judged in words": data("rows.jsonl", lines(GOOD[0] | {"label": "bad"})),
    "answers that are judged under another name": data("rows.jsonl", lines(GOOD[0] | {"desirable": 0})),
    "two answers under other names": data("rows.jsonl", lines({"prompt": "q", "win": "good", "lose": "bad"})),
    "ranked answers": data("rows.jsonl", lines({"prompt": "q", "responses": ["a", "b"], "scores": [2, 1]})),
    "images": data("rows.jsonl", lines(GOOD[0] | {"images": ["a.png"]})),
    "the place of an image": data("rows.jsonl", lines({"prompt": "<image>\nWhat is it?", "completion": "A cat."})),
    "columns by other names": data("rows.jsonl", lines({"instruction": "q", "context": "c", "response": "a"})),
    "a conversation by another name": data("rows.jsonl", lines({"dialog": [QUESTION, ANSWER]})),
    "nested answers": data("rows.jsonl", lines({"question": "q", "answers": [{"text": "a"}]})),
    "nested answers that are mapped": data(
        "rows.jsonl",
        lines({"question": "q", "answers": [{"text": "a"}]}),
        "--set",
        "data.columns={prompt: question, completion: answers}",
    ),
    "conversations in a row": data("rows.jsonl", lines({"messages": [[QUESTION, ANSWER], [QUESTION, ANSWER]]})),
    "rows in objects": data("d/rows.json", json.dumps({"meta": {"v": 1}, "data": {"train": GOOD, "test": GOOD}})),
    "one conversation": data("rows.json", json.dumps([QUESTION, ANSWER])),
    "tool calls as answers": data(
        "rows.jsonl", lines({"query": "q", "tools": "[]", "answers": '[{"name": "f", "arguments": {}}]'})
    ),
    "a turn of nothing": data("rows.jsonl", turns({"role": "user", "content": None})),
    "only questions": data("rows.jsonl", turns({"role": "user", "content": "q"})),
    "a gz that is no gz": data("d/rows.jsonl.gz", ROW),
    "a truncated gz": data("rows.jsonl.gz", gzip.compress(lines(*GOOD).encode(), mtime=0)[:-9]),
    "a gz in a gz": data("rows.jsonl.gz", gzip.compress(gzip.compress(ROW.encode()))),
    "a gz that is not named so": data("rows.jsonl", gzip.compress(ROW.encode())),
    "a zip that is not named so": data("rows.jsonl", b"PK\3\4\x14\0"),
    "an ending that is unknown": data("rows.zip", b"PK\3\4"),
    "a Parquet that is none": data("rows.parquet", ROW),
    "a truncated Parquet": data("rows.parquet", table(TWO, lambda content: content[:-20])),
    "a Parquet that is not named so": data("rows.jsonl", table(TWO)),
    "a Parquet of bytes": data("rows.parquet", table({"prompt": [b"q"], "completion": [b"a"]})),
    "a Parquet of numbers": data("rows.parquet", table({"prompt": ["q"], "completion": [1]})),
    "a CSV with semicolons": data("d/rows.csv", SEMICOLONS),
    "a packed CSV with semicolons": data("rows.csv.gz", gzip.compress(SEMICOLONS.encode())),
    "a CSV with tabs": data("rows.csv", SEMICOLONS.replace(";", "\t")),
    "a TSV with commas": data("rows.tsv", "prompt,completion\nq,a\n"),
    "a comma without quotes": data("rows.csv", "prompt,completion\nHello, friend,Hi\n"),
    "a quote that is open": data("rows.csv", 'prompt,completion\nq,"a\nr,b\n'),
    "a header that names a column twice": data("rows.csv", "prompt,prompt\nq,a\n"),
    "a number in a .json": data("rows.json", "7"),
    "lines in a .json": data("d/rows.json", lines(*GOOD)),
    "a list in a .jsonl": data("d/rows.jsonl", json.dumps(GOOD)),
    "lists in a .jsonl": data("rows.jsonl", '["q", "a"]\n["r", "b"]\n'),
    "an object over several lines": data("rows.jsonl", json.dumps(GOOD[0], indent=1)),
    "a name misspelt": source("data/trian.jsonl", files={"data/train.jsonl": ROW}),
    "a folder misspelt": source("my/dta/train.jsonl", files={"my/data/train.jsonl": ROW}),
    "an ending misspelt": source("data/train.json", files={"data/train.jsonl": ROW}),
    "a folder like a hub id": source("data/rwos", files={"data/rows/a.jsonl": ROW}),
    "the built-in set misspelt": source("builtn"),
    "nothing of this name": source("nothing.jsonl"),
    "a name with a NUL": source("a\0.jsonl"),
    "a name that acts on a terminal": source("\x1b[2J.jsonl"),
    "a name in no encoding": source("a\udcff.jsonl"),
    "a name too long": source("a" * 300 + ".jsonl"),
    "the home of nobody": source("~0/rows.jsonl"),
    "a split of the built-in set": source("builtin", "--set", "data.split=test"),
    "a split of a file": data("rows.jsonl", ROW, "--set", "data.split=test"),
    "a held-out split of a file": data("rows.jsonl", ROW, "--set", "data.held_out_split=test"),
    "held-out rows that are not there": data("rows.jsonl", ROW, "--held-out", "lost.jsonl"),
    "held-out rows, and none of them": data("rows.jsonl", ROW, "--held-out", "h.jsonl", "--held-out-rows", "0"),
    "answers of a plain text": data("rows.jsonl", lines({"text": "words"}), "--set", "data.loss_on=all"),
    "held-out rows of another kind": source(
        "rows.jsonl", "--held-out", "h.jsonl", files={"rows.jsonl": ROW, "h.jsonl": lines({"text": "words"})}
    ),
    "held-out rows that are all rows": data("rows.jsonl", ROW, "--held-out", "rows.jsonl"),
    "a row of 100 MB": data("rows.jsonl", huge(b'{"prompt": "', b'", "completion": "a"}\n')),
    "a line of 100 MB": data("rows.jsonl", huge(b"")),
    "a cell of 100 MB": data("rows.csv", huge(b"prompt,completion\n")),
    "a truncated list of 100 MB": data("rows.json", huge(b'[{"prompt": "q", "completion": "')),
}
SLOW = ("a row of 100 MB", "a cell of 100 MB")


@pytest.mark.parametrize("name", [name for name in DATA if name not in SLOW])
def test_train_rejects_data(neft: Neft, snapshot: SnapshotAssertion, name: str) -> None:
    assert rejection(neft, DATA[name]) == snapshot


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_train_rejects_huge_data(neft: Neft, snapshot: SnapshotAssertion, name: str) -> None:
    assert rejection(neft, DATA[name]) == snapshot


RENAMED = {
    "a gz that is no gz": "rows.jsonl",
    "a gz that is not named so": "rows.jsonl.gz",
    "a Parquet that is not named so": "rows.parquet",
    "a CSV with tabs": "rows.tsv",
    "a TSV with commas": "rows.csv",
    "lines in a .json": "rows.jsonl",
    "a list in a .jsonl": "rows.json",
}


@pytest.mark.parametrize("case", RENAMED)
def test_train_hint_to_rename_a_file(neft: Neft, case: str) -> None:
    """A file with the name in the hint is read, with two texts in each row."""
    lay(DATA[case].files)
    name = rejection(neft, DATA[case]).split("  hint     rename it to ")[1].strip()
    assert name == RENAMED[case]
    [path] = DATA[case].files
    renamed = Path(path).rename(Path(path).with_name(name))
    rows = list(read_rows(str(renamed)))
    assert rows
    assert all(row.values.keys() == {"prompt", "completion"} and all(row.values.values()) for row in rows)


# Legitimate, with the right count


def inspected(neft: Neft, tiny: Path, content: Content, *more: str, name: str = "rows.jsonl") -> list[str]:
    """Return the output of `neft data inspect`, without its phases and the row that it shows."""
    lay({name: content})
    result = neft("data", "inspect", "--model", tiny, "--dataset", name, "--rows", "1", *more)
    assert result.code == 0, result.err
    require_harmless(result)
    prefixes = ("data: rows", "data: tok", "note: ")
    return [line for line in result.out.splitlines() if line.startswith(prefixes)]


ALL = "data: rows.jsonl (prompt/completion) · 20 rows: 16 for training, 4 held out"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\ufeff" + lines(*GOOD), [ALL]),
        (lines(*GOOD).replace("\n", "\r\n"), [ALL]),
        (lines(*GOOD).replace("\n", "\n\n"), [ALL]),
        (lines(*GOOD).rstrip("\n"), [ALL]),
        (
            lines(*GOOD, *GOOD),
            [
                ALL.replace("20 rows", "40 rows").replace("16 for", "32 for").replace("4 held", "8 held"),
                "note: 16 rows repeat an earlier row, prompt and answer; they are kept",
            ],
        ),
        (
            lines(*GOOD, {"prompt": "q", "completion": ""}, {"prompt": "", "completion": "a"}),
            [
                ALL.replace("20 rows", "22 rows"),
                "note: 1 row (rows.jsonl, line 21) left out: an answer is empty",
                "note: 1 row (rows.jsonl, line 22) left out: it has no question",
            ],
        ),
        (
            lines(*GOOD, {"prompt": "x" * 3000, "completion": "a"}),
            [
                ALL.replace("20 rows", "21 rows"),
                "note: 1 row (rows.jsonl, line 21) left out: no token with loss within data.max_length 1024",
            ],
        ),
        (
            lambda path: (
                path.write_text(lines(*GOOD) + '{"prompt": "' + "x" * HUGE + '", "completion": "a"}\n') and None
            ),
            [
                ALL.replace("20 rows", "21 rows"),
                "note: 1 row (rows.jsonl, line 21) left out: its text is longer than 10,000,000 characters",
            ],
        ),
    ],
    ids=["BOM", "CRLF", "blank lines", "no last line break", "duplicates", "empty texts", "too long", "100 MB"],
)
def test_data_inspect_counts_rows(neft: Neft, llama: Path, content: Content, expected: list[str]) -> None:
    assert inspected(neft, llama, content) == expected


def test_data_inspect_notes_unread_columns(neft: Neft, llama: Path) -> None:
    """Columns and keys of any row, with the number of rows; and dropped parts of conversations."""
    chat = [QUESTION | {"emotion": "calm"}, ANSWER | {"emotion": "glad"}, {"role": "tool", "content": "x"}]
    rows = [{"messages": [QUESTION | {"content": f"q{number}"}, ANSWER]} for number in range(19)]
    content = lines(*rows, {"messages": chat, "score": 1, "parallel_tool_calls": False, "id": None})
    assert inspected(neft, llama, content)[-3:] == [
        "note: columns that neft does not read: score (1 row, first rows.jsonl, line 20), "
        "parallel_tool_calls (1 row, first rows.jsonl, line 20)",
        "note: keys of turns that neft does not read: emotion (1 row, first rows.jsonl, line 20)",
        "note: left out of conversations: turns after the last answer (1 row, first rows.jsonl, line 20)",
    ]


def test_data_inspect_notes_special_tokens(neft: Neft, llama: Path) -> None:
    special = lines(*GOOD, {"prompt": "say </s> twice", "completion": "</s></s>, that is"})
    assert inspected(neft, llama, special)[-1] == (
        "note: 1 row (rows.jsonl, line 21) holds a special token as text: tokenized as ordinary characters"
    )


def test_data_inspect_rejects_rows_without_loss(neft: Neft, llama: Path) -> None:
    """Every label is masked; other trainers report a loss of 0.0."""
    lay({"rows.jsonl": lines(*({"prompt": "x" * 3000, "completion": "a"} for _ in range(9)))})
    result = neft("data", "inspect", "--model", llama, "--dataset", "rows.jsonl")
    assert (result.code, result.err) == (
        2,
        "rows.jsonl: no token would carry loss, so there is nothing to learn\n"
        "  got      9 rows whose prompt alone fills data.max_length 1024\n"
        "  hint     --max-length 4096\n"
        "1 error; nothing was started.\n",
    )
