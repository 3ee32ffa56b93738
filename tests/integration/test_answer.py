"""`neft answer` on a tiny run through the command line.

Oracles: the answers of `neft eval` for the same rows, the same command uninterrupted, and `neft`'s own reader of rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neftcli.inference import answers as workflow
from tests.conftest import Result, call_neft, events, quick_arguments

Neft = Callable[..., Result]
OPTIONS = ("--max-new-tokens", "8", "--set", "evaluation.generation.batch_size=2")
ROWS: list[dict[str, Any]] = [
    {"prompt": "Name a fruit."},
    {"prompt": "What is the capital of France, in one word?", "completion": "Paris."},
    {"prompt": ""},
    {"prompt": "Zwölf?", "completion": None},
    {"prompt": "Name a metal.", "completion": "Iron."},
    {"prompt": "Name a fruit."},
]


@pytest.fixture(scope="module")
def run(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a tiny Llama with LoRA."""
    output = tmp_path_factory.mktemp("trained") / "runs"
    arguments = [*quick_arguments(tiny_folder("llama"), rows_file, output), "--lora", "--learning-rate", "5e-3"]
    result = call_neft(*arguments, "--set", "evaluation.samples=0", "--set", "training.max_steps=2")
    assert result.code == 0, result.err
    return output / "tiny-a5-s0"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_answer_writes_a_line_for_each_row_in_order(
    neft: Neft, run: Path, tiny_folder: Callable[[str], Path], questions: Path, tmp_path: Path
) -> None:
    """Rows without an answer and repeated rows too; those without a question are counted. The file is training data."""
    out = tmp_path / "answers.jsonl"
    result = neft("answer", run, "--dataset", questions, "--out", out, *OPTIONS, "--json")
    assert result.code == 0, result.err
    lines = lines_of(out)
    locations = [f"{questions.name}, line {number}" for number in (1, 2, 4, 5, 6)]
    assert [line["location"].rpartition("/")[2] for line in lines] == locations
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["prompt"] for line in lines] == [
        [{"role": "user", "content": row["prompt"]}] for row in ROWS if row["prompt"]
    ]
    assert [line.get("reference") for line in lines] == [None, "Paris.", None, "Iron.", None]
    assert {line["stop"] for line in lines} <= {"stop_token", "max_new_tokens"}
    written = events(result.out)[-1]
    assert (written["event"], written["rows"], written["earlier"]) == ("answers.written", 5, 0)
    assert written["tokens"] == sum(line["tokens"] for line in lines)
    assert written["truncated"] == sum(line["stop"] == "max_new_tokens" for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "answers.jsonl",
        "answers.jsonl.settings.json",
        "questions.jsonl",
    ]
    inspected = neft("data", "inspect", "--dataset", out, "--model", tiny_folder("llama"))
    assert inspected.code == 0, inspected.err
    assert "(prompt/completion)" in inspected.out


def test_answer_equals_an_evaluation(
    neft: Neft, run: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows that it does not leave out: a set without repeated rows."""
    monkeypatch.chdir(tmp_path)
    unique = tmp_path / "unique.jsonl"
    unique.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:5]))
    generation = ("--set", "evaluation.generation.max_new_tokens=8", "--set", "evaluation.generation.batch_size=2")
    report = events(neft("eval", run, "--no-base", "--dataset", unique, *generation, "--json").out)[-1]
    examples = lines_of(Path(report["folder"]) / "examples.jsonl")
    result = neft("answer", run, "--dataset", unique, "--out", "answers.jsonl", *OPTIONS)
    assert result.code == 0, result.err
    assert [line["completion"] for line in lines_of(tmp_path / "answers.jsonl")] == [
        example["run"]["answer"] for example in examples
    ]


@pytest.mark.parametrize("sampled", [False, True])
def test_answer_resumes_to_the_same_bytes(
    neft: Neft, run: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: bool
) -> None:
    """After a stop between two batches whose last line was cut off by a kill; and done again it does nothing."""
    options = (*OPTIONS, "--temperature", "3") if sampled else OPTIONS
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    arguments = ("answer", run, "--dataset", questions, *options, "--json", "--out")
    assert neft(*arguments, whole).code == 0
    append = workflow.AnswerFiles.append

    def stop_after_the_first_batch(files: Any, answers: Any) -> None:
        append(files, answers)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workflow.AnswerFiles, "append", stop_after_the_first_batch)
        stopped = neft(*arguments, out)
    assert stopped.code == 75
    assert "the same command resumes" in stopped.err
    assert not out.exists()
    partial = tmp_path / "answers.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 2
    partial.write_bytes(partial.read_bytes()[:-5])  # as a kill does in the middle of a write
    resumed = events(neft(*arguments, out).out)
    assert resumed[-1]["earlier"] == 1
    assert out.read_bytes() == whole.read_bytes()
    assert not partial.exists()
    assert "phase.progress" in {event["event"] for event in resumed}
    again = neft(*arguments, out)
    assert again.code == 0
    assert events(again.out)[-1]["earlier"] == 5
    assert "loading_model" not in again.out
    assert out.read_bytes() == whole.read_bytes()


def test_answer_rejects_a_file_of_other_answers(
    neft: Neft, run: Path, tiny_folder: Callable[[str], Path], questions: Path, tmp_path: Path
) -> None:
    """Other settings, rows or models, and files that it didn't write; nothing changes."""
    out, other = tmp_path / "answers.jsonl", tmp_path / "other.jsonl"
    arguments = ("answer", run, "--dataset", questions, "--out", out)
    assert neft(*arguments, *OPTIONS).code == 0
    before = out.read_bytes()
    other.write_text("mine\n")
    for typed, got in (
        ((*arguments, "--max-new-tokens", "9"), "generation.max_new_tokens 9, was 8"),
        ((*arguments, *OPTIONS, "--sample"), "generation.do_sample true, was false"),
        ((*arguments, *OPTIONS, "--max-rows", "2"), "rows.rows 2, was 5"),
        (("answer", tiny_folder("llama"), *arguments[2:], *OPTIONS), "model.name llama, was tiny-a5-s0"),
    ):
        result = neft(*typed)
        assert result.code == 2, typed
        assert got in result.err
    result = neft(*arguments[:-1], other, *OPTIONS)
    assert result.code == 2
    assert "this file was not written by neft answer" in result.err
    assert (out.read_bytes(), other.read_text()) == (before, "mine\n")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("questions.jsonl", "--out would replace the questions"),
        ("folder", "--out must be a file"),
        ("missing/answers.jsonl", "the folder does not exist"),
        ("link.jsonl", "does not write through links"),
    ],
)
def test_answer_rejects_a_bad_out(
    neft: Neft, questions: Path, tiny_folder: Callable[[str], Path], tmp_path: Path, out: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "target.jsonl")
    before = sorted(tmp_path.iterdir())
    result = neft("answer", tiny_folder("llama"), "--dataset", questions, "--out", tmp_path / out)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert sorted(tmp_path.iterdir()) == before


def test_answer_locks_its_file(neft: Neft, run: Path, questions: Path, tmp_path: Path) -> None:
    from neftcli.system.locks import hold_lock

    out = tmp_path / "answers.jsonl"
    with hold_lock(tmp_path / "answers.jsonl.lock"):
        result = neft("answer", run, "--dataset", questions, "--out", out, *OPTIONS)
    assert result.code == 2
    assert "another process is writing these answers" in result.err


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Name a fruit.", "input": "Red."},
        {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Name a fruit."}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "id": 7},
        {"text": "Once upon a time there was a fruit."},
    ],
    ids=["alpaca", "sharegpt", "messages", "text"],
)
def test_answer_reads_every_row_format(
    neft: Neft, tiny_folder: Callable[[str], Path], tmp_path: Path, row: dict[str, Any]
) -> None:
    """And a model that is not a run."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "answers.jsonl"
    arguments = ("--dataset", tmp_path / "rows.jsonl", "--out", out, "--quiet", *OPTIONS)
    result = neft("answer", tiny_folder("llama"), *arguments)
    assert result.code == 0, result.err
    assert re.fullmatch(r"finished: 1 answer by .* in .*answers\.jsonl\n(note: .*\n)?", result.out)
    [line] = lines_of(out)
    prompts = {
        "instruction": [{"role": "user", "content": "Name a fruit.\n\nRed."}],
        "conversations": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a fruit."}],
        "messages": [{"role": "user", "content": "Hi"}],
        "text": "Once upon a time",
    }
    assert line["prompt"] == prompts[next(iter(row))]
    assert line["tokens"] <= 8
