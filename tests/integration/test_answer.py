"""`neft answer` on a tiny run through the command line.

Oracles: the answers of `neft eval` for the same rows, the same command uninterrupted, and `neft`'s own reader of rows.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from neftcli.inference import answers as workflow
from neftcli.inference import setup
from neftcli.inference.chat import ChatRequest, open_chat
from neftcli.recipe.yaml_file import Setting
from neftcli.system import hub
from tests.conftest import Result, call_neft, events, neft_process, quick_arguments
from tests.tiny import save_tiny

Neft = Callable[..., Result]


class Silent:
    """An observer that shows nothing."""

    def notify(self, event: object) -> None:
        """Do nothing."""


OPTIONS = ("--max-new-tokens", "8", "--set", "evaluation.generation.batch_size=2")
WAIT = 180.0
"""Seconds in which a process must have written its first answers."""
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
    """Other settings, rows or models; nothing changes."""
    out = tmp_path / "answers.jsonl"
    arguments = ("answer", run, "--dataset", questions, "--out", out)
    assert neft(*arguments, *OPTIONS).code == 0
    before = out.read_bytes()
    for typed, got in (
        ((*arguments, "--max-new-tokens", "9"), "generation.max_new_tokens 9, was 8"),
        ((*arguments, *OPTIONS, "--sample"), "generation.do_sample true, was false"),
        ((*arguments, *OPTIONS, "--max-rows", "2"), "rows.rows 2, was 5"),
        (("answer", tiny_folder("llama"), *arguments[2:], *OPTIONS), "model.name llama, was tiny-a5-s0"),
    ):
        result = neft(*typed)
        assert result.code == 2, typed
        assert got in result.err
        own = [line for line in result.err.splitlines() if "to start again" in line]
        assert own == [f"  hint     --out FILE for a new file, or rm {out} {out}.settings.json    to start again"]
    assert out.read_bytes() == before


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.partial", "mine.jsonl.settings.json"])
def test_answer_does_not_suggest_to_remove_foreign_files(
    neft: Neft, tiny_folder: Callable[[str], Path], questions: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text('{"mine": 1}\n')
    before = sorted(tmp_path.iterdir())
    arguments = ("--dataset", questions, "--out", tmp_path / "mine.jsonl", *OPTIONS)
    result = neft("answer", tiny_folder("llama"), *arguments)
    assert result.code == 2
    assert f"{tmp_path / name}: this file was not written by neft answer" in result.err
    assert "--out FILE    for a new file" in result.err
    assert "rm " not in result.err
    assert (sorted(tmp_path.iterdir()), (tmp_path / name).read_text()) == (before, '{"mine": 1}\n')


def test_answer_hint_quotes_names_for_the_shell(
    neft: Neft, tiny_folder: Callable[[str], Path], questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "my answers.jsonl"
    arguments = ("answer", tiny_folder("llama"), "--dataset", questions, "--out", out, *OPTIONS)
    assert neft(*arguments).code == 0
    out.rename(f"{out}.partial")
    result = neft(*arguments, "--sample")
    assert f"rm '{out}.settings.json' '{out}.partial'    to start again" in result.err


def test_answer_finished_command_changes_nothing(
    neft: Neft, tiny_folder: Callable[[str], Path], questions: Path, tmp_path: Path
) -> None:
    """Edited answers stay; what is no answer to each row any more is rejected with its line."""
    out = tmp_path / "answers.jsonl"
    arguments = ("answer", tiny_folder("llama"), "--dataset", questions, "--out", out, *OPTIONS)
    assert neft(*arguments).code == 0
    rows = lines_of(out)

    def again(*edited: object) -> Result:
        out.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in edited))
        before = out.read_bytes()
        result = neft(*arguments)
        assert out.read_bytes() == before
        return result

    assert again({**rows[0], "completion": "Edited."}, *rows[1:], "").code == 0
    for edited, got in (
        ((*rows[:2], {**rows[2], "index": 9}, *rows[3:]), "line 3: this file was changed: .*index 9 for 5 rows"),
        ((*rows[:4], rows[3]), "line 5: this file was changed: .*index 3 a second time"),
        (rows[:4], "line 4: this file was changed: .*the file ends after 4 of 5 rows"),
        ((rows[0], "no JSON", *rows[2:]), "line 2: this file was changed: .*no JSON object with"),
    ):
        result = again(*edited)
        assert result.code == 2
        assert re.search(got, " ".join(result.err.split())), result.err
        assert "--out FILE for a new file, or rm " in result.err


def test_answer_finishes_after_a_kill_behind_the_last_answer(
    neft: Neft, tiny_folder: Callable[[str], Path], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer is missing, so no model is loaded."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    arguments = ("answer", tiny_folder("llama"), "--dataset", questions, *OPTIONS, "--json", "--out")
    assert neft(*arguments, whole).code == 0

    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workflow.AnswerFiles, "finish", stop)
        assert neft(*arguments, out).code == 75
    assert not out.exists()
    result = neft(*arguments, out)
    assert result.code == 0
    assert "loading_model" not in result.out
    assert out.read_bytes() == whole.read_bytes()
    assert not Path(f"{out}.partial").exists()


def test_answer_stopped_before_the_first_answer(
    neft: Neft, tiny_folder: Callable[[str], Path], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message does not name a file that does not exist."""

    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow.AnswerFiles, "append", stop)
    out = tmp_path / "answers.jsonl"
    result = neft("answer", tiny_folder("llama"), "--dataset", questions, "--out", out, *OPTIONS)
    assert result.code == 75
    assert "stopped; there are no answers yet" in result.err
    assert ".partial" not in result.err


def test_answer_without_a_network_says_so_once(neft: Neft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and rows of the hub; not that HF_HUB_OFFLINE is set, which neft did itself."""
    for name in hub.OFFLINE_VARIABLES:
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(hub, "explain_unreachable", lambda _address: "no network")
    monkeypatch.setattr(setup, "validate_model", lambda *_arguments, **_options: None)
    result = neft("answer", "org/model", "--dataset", "org/rows", "--out", tmp_path / "answers.jsonl", "--json")
    assert result.code != 0
    notices = [event["message"] for event in events(result.out) if event["event"] == "notice"]
    assert notices == [hub.UNREACHABLE.format("no network")]


def test_answer_completion_has_the_think_marker_of_the_prompt(neft: Neft, tmp_path: Path) -> None:
    """As `/save` of neft chat has it, so that the rows are training data."""
    folder = tmp_path / "thinking"
    save_tiny(folder, "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: <think>\\n' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Name a fruit."}\n')
    options = ("--max-new-tokens", "8", "--repetition-penalty", "1")
    result = neft("answer", folder, "--dataset", tmp_path / "rows.jsonl", "--out", tmp_path / "a.jsonl", *options)
    assert result.code == 0, result.err
    [line] = lines_of(tmp_path / "a.jsonl")
    generation = {"max_new_tokens": 8, "repetition_penalty": 1.0}
    overrides = {
        f"evaluation.generation.{name}": Setting(value, "test", str(value)) for name, value in generation.items()
    }
    request = ChatRequest(str(folder), None, (overrides,))
    with open_chat(request, Silent()) as chat:
        chat.ask("Name a fruit.")
        [(_, kept)] = chat.models[0].conversation.exchanges
    assert kept.startswith("<think>\n")
    assert line["completion"] == kept


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("questions.jsonl", "--out would replace the questions"),
        ("folder", "--out must be a file"),
        ("missing/answers.jsonl", "the folder does not exist"),
        ("link.jsonl", "does not write through links"),
        ("b" * 240, "File name too long"),
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


def test_answer_rejects_a_file_inside_a_run(neft: Neft, run: Path, questions: Path) -> None:
    before = sorted((run / "model").iterdir())
    result = neft("answer", run, "--dataset", questions, "--out", run / "model" / "answers.jsonl")
    assert result.code == 2
    assert f"is inside the run {run.name}" in result.err
    assert sorted((run / "model").iterdir()) == before


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux alone has /proc")
def test_answer_into_a_folder_without_new_files(neft: Neft, run: Path, questions: Path) -> None:
    result = neft("answer", run, "--dataset", questions, "--out", "/proc/self/mem", *OPTIONS)
    assert result.code == 2
    assert "/proc/self/mem can't be written" in result.err


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


# The real SmolLM2-135M


@pytest.mark.slow
def test_answer_and_chat_of_smollm2_are_the_same_and_make_sense(
    neft: Neft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows, each the first question of its own conversation."""
    asked = ["What is the capital of France?", "What is the chemical symbol of water?"]
    file, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in asked))
    options = ("--max-new-tokens", "24")
    one = ("--set", "evaluation.generation.batch_size=1")
    result = neft("answer", "smollm2-135m", "--dataset", file, "--out", out, *options, *one)
    assert result.code == 0, result.err
    answers = [line["completion"] for line in lines_of(out)]
    assert "Paris" in answers[0]
    assert "H2O" in answers[1].replace("₂", "2")
    for question, answer in zip(asked, answers, strict=True):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(question.encode())))
        chat = neft("chat", "smollm2-135m", *options, "--json")
        assert chat.code == 0, chat.err
        assert events(chat.out)[-1]["answer"] == answer


@pytest.mark.slow
def test_answer_killed_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """`kill -9` after the first answers of the real SmolLM2-135M. Oracle: the uninterrupted command."""
    file, whole, out = (tmp_path / name for name in ("questions.jsonl", "whole.jsonl", "answers.jsonl"))
    rows = [{"prompt": f"Write a sentence about the number {number}."} for number in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--max-new-tokens", "24", "--set", "evaluation.generation.batch_size=1")
    arguments = [*("answer", "smollm2-135m", "--dataset", str(file)), *options, "--json", "--out"]
    assert neft_process(*arguments, whole).code == 0
    partial = Path(f"{out}.partial")
    command = [sys.executable, "-m", "neftcli", *arguments, str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + WAIT
        while not partial.exists() or b"\n" not in partial.read_bytes():
            if process.poll() is not None or time.monotonic() > end:
                break
            time.sleep(0.01)
        process.kill()
    assert not out.exists()
    assert partial.read_bytes().count(b"\n") in range(1, 5)
    resumed = neft_process(*arguments, out)
    assert resumed.code == 0, resumed.err
    assert events(resumed.out)[-1]["earlier"] in range(1, 5)
    assert out.read_bytes() == whole.read_bytes()
    assert not partial.exists()
