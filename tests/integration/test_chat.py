"""`neft chat` on tiny models, through pipes and on a terminal.

Oracles: `generate_answers` for the same prompt, transformers' own templates, and chats with one model alone.
"""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from neftcli.evaluation.generation import generate_answers
from neftcli.evaluation.targets import base_model_target, resolve_target
from neftcli.recipe.schema import Generation
from tests.conftest import Result, call_neft, events, quick_arguments
from tests.tiny import save_tiny

Neft = Callable[..., Result]
SETTINGS = Generation(max_new_tokens=8, repetition_penalty=1.0)
OPTIONS = ("--max-new-tokens", "8", "--repetition-penalty", "1")
QUESTIONS = "Name a fruit.\nZwölf?\n"
WAIT = 180.0
"""Seconds in which a process must do what a test waits for."""
UNIGNORED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets commands with & ignore it
from neftcli.cli.main import main
sys.argv[0] = "neft"
main()
"""


@pytest.fixture(scope="module")
def runs(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs of a tiny Llama: all weights, LoRA, and plain text."""
    output = tmp_path_factory.mktemp("trained") / "runs"
    text = output.parent / "text.jsonl"
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    text.write_text("".join(json.dumps({"text": row["prompt"]}) + "\n" for row in rows))
    few = ("--set", "evaluation.samples=0", "--learning-rate", "5e-3", "--set", "training.max_steps=2")
    for name, extra in (
        ("full", ()),
        ("lora", ("--lora", "--set", "data.system_prompt=Be brief.")),
        ("text", ("--dataset", str(text))),
    ):
        arguments = [*quick_arguments(tiny_folder("llama"), rows_file, output), *few, "--set", f"name={name}", *extra]
        result = call_neft(*arguments)
        assert result.code == 0, result.err
    return output


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.fixture
def ask(neft: Neft, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that pipes text into `neft chat`."""

    def run(text: str | bytes, *arguments: object) -> Result:
        content = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return neft("chat", *arguments)

    return run


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that types text into `neft chat` on a terminal, and returns the screen."""

    def run(typed: str, *arguments: object, width: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        screen = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", Terminal(typed))
            patch.setattr(sys, "stdout", screen)
            patch.setattr(sys, "argv", ["neft", "chat", *map(str, arguments)])
            from neftcli.cli import main

            with pytest.raises(SystemExit) as end:
                main.main()
        assert not end.value.code
        return screen.getvalue()

    return run


def expected_answer(run: Path, *turns: tuple[str, str], base: bool = False) -> str:
    """Return the answer that an evaluation would generate after these turns, by transformers' rendering of them."""
    target = resolve_target(str(run), "run", ())
    if base:
        found = base_model_target(target)
        assert found is not None
        target = found
    chat = target.load_chat_format("messages", type("Nobody", (), {"notify": lambda self, event: None})())
    messages = [{"role": role, "content": content} for role, content in turns]
    ids = chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    model = target.load(target.compute_config())
    return generate_answers(model, chat, [ids], SETTINGS)[0].text


def answers_of(result: Result) -> list[dict[str, Any]]:
    assert result.code == 0, result.err
    return [event for event in events(result.out) if event["event"] == "chat.answer"]


# Pipes


def test_chat_pipe_equals_an_evaluation(ask: Callable[..., Result], runs: Path) -> None:
    """With the history of the first turn in the second one; as text, and as events whose parts join to the answers."""
    run = runs / "full-a5-s0"
    first = expected_answer(run, ("user", "Name a fruit."))
    assert first
    second = expected_answer(run, ("user", "Name a fruit."), ("assistant", first), ("user", "Zwölf?"))
    result = ask(QUESTIONS, run, *OPTIONS)
    assert (result.code, result.err) == (0, "")
    as_events = ask(QUESTIONS, run, *OPTIONS, "--json")
    finished = answers_of(as_events)
    assert [event["answer"] for event in finished] == [first, second]
    assert [event["question"] for event in finished] == ["Name a fruit.", "Zwölf?"]
    parts = [event["text"] for event in events(as_events.out) if event["event"] == "chat.text"]
    assert "".join(parts) == first + second
    assert {event["stop"] for event in finished} <= {"stop_token", "max_new_tokens"}
    assert all(event["tokens"] <= 8 for event in finished)
    assert "chat.started" in {event["event"] for event in events(as_events.out)}


@pytest.mark.parametrize("name", ["full-a5-s0", "lora-a5-s0"])
def test_chat_against_base_equals_each_alone(
    ask: Callable[..., Result], runs: Path, tiny_folder: Callable[[str], Path], name: str
) -> None:
    """Each model has its own history; the base model of an adapter is the model without it."""
    run = runs / name
    both = answers_of(ask(QUESTIONS, run, "--against", "base", *OPTIONS, "--json"))
    alone = answers_of(ask(QUESTIONS, run, *OPTIONS, "--json"))
    system = [("system", "Be brief.")] if name == "lora-a5-s0" else []
    first = expected_answer(run, *system, ("user", "Name a fruit."), base=True)
    assert [event["model"] for event in both] == [0, 1, 0, 1]
    assert [event["answer"] for event in both[::2]] == [event["answer"] for event in alone]
    assert [event["tokens"] for event in both[::2]] == [event["tokens"] for event in alone]
    assert both[1]["answer"] == first
    assert both[0]["prompt_tokens"] == both[1]["prompt_tokens"]


def test_chat_sampling_depends_on_the_seed(ask: Callable[..., Result], runs: Path) -> None:
    """--temperature samples without a second flag."""
    run = runs / "full-a5-s0"

    def sample(*options: object) -> list[str]:
        result = ask(QUESTIONS, run, *OPTIONS, "--temperature", "3", "--json", *options)
        return [event["answer"] for event in answers_of(result)]

    assert sample("--seed", 1) == sample("--seed", 1) != sample("--seed", 2)
    assert sample() == sample("--seed", 0)


def test_chat_plain_text_continues_the_text(ask: Callable[..., Result], runs: Path) -> None:
    """Each line anew, without a template. Oracle: transformers."""
    run = runs / "text-a5-s0"
    assert json.loads((run / "run.json").read_text())["row_format"] == "text"
    answers = answers_of(ask("Which day\nIs 7 odd\n", run, *OPTIONS, "--json"))
    model = AutoModelForCausalLM.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    for answer in answers:
        inputs = tokenizer(answer["question"], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)[0]
        new = tokens[inputs["input_ids"].shape[1] :]
        assert answer["answer"] == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_chat_pipe_does_not_run_commands(ask: Callable[..., Result], runs: Path, tmp_path: Path) -> None:
    """Lines of a pipe are data: one that looks like a command writes no file."""
    [answer] = answers_of(ask(f"/save {tmp_path}/x.jsonl\n\n", runs / "full-a5-s0", *OPTIONS, "--json"))
    assert answer["question"].startswith("/save")
    assert list(tmp_path.iterdir()) == []


def test_chat_context_that_is_full(ask: Callable[..., Result], runs: Path) -> None:
    """The oldest turns are left out with a notice; a question that alone is too long is an error."""
    run = runs / "full-a5-s0"
    result = ask(f"{'a' * 500}\nb\n{'c' * 400}\n", run, *OPTIONS, "--json")
    dropped = [event["dropped_turns"] for event in answers_of(result)]
    assert dropped[0] == 0
    assert dropped[-1] > 0
    [notice] = [event["message"] for event in events(result.out) if event["event"] == "notice"]
    assert "exceeds the context of full-a5-s0" in notice
    too_long = ask("a" * 2000, run, *OPTIONS)
    assert too_long.code == 2
    assert "the question is too long for the model's context" in too_long.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-run"], "no such run or model"),
        (["{full}", "--against", "no-such-run"], "no such run or model"),
        (["{full}", "--against", "{full}"], "a model can't be compared with itself"),
        (["{base}", "--against", "base"], "llama is not a run, so it has no base model"),
        (["{full}", "--chat-template", "chatml"], "a run is used as it was trained"),
        (["{full}", "--set", "data.max_length=9"], "this command does not use this option"),
        (["{full}", "--temperature", "0"], "evaluation.generation.temperature must be"),
        (["{full}", "--max-new-tokens", "4000"], "max_new_tokens must leave positions for a prompt"),
    ],
)
def test_chat_rejects_bad_input(
    ask: Callable[..., Result],
    runs: Path,
    tiny_folder: Callable[[str], Path],
    arguments: list[str],
    message: str,
) -> None:
    names = {"full": runs / "full-a5-s0", "base": tiny_folder("llama")}
    result = ask("Hi\n", *(argument.format(**names) for argument in arguments))
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_chat_input_that_is_not_utf8(ask: Callable[..., Result], runs: Path) -> None:
    result = ask(b"\xff\nHi\n", runs / "full-a5-s0", *OPTIONS)
    assert result.code == 2
    assert "standard input, line 1: questions must be UTF-8" in result.err
    assert "nothing was started" in result.err


def test_chat_later_input_that_is_not_utf8(ask: Callable[..., Result], runs: Path) -> None:
    result = ask(b"Hi\n\xff\n", runs / "full-a5-s0", *OPTIONS)
    assert result.code == 1
    assert "standard input, line 2: questions must be UTF-8" in result.err
    assert "nothing was started" not in result.err


# A terminal


def test_chat_terminal_commands(talk: Callable[..., str], runs: Path, tmp_path: Path) -> None:
    """Each command once; the saved file is one row for each /save, and is what `neft train` reads."""
    run, file = runs / "full-a5-s0", tmp_path / "chats.jsonl"
    typed = "\n".join(
        [
            *("/system Be brief.", "Name a fruit.", "/retry", f"/save {file}", "/reset", "/retry", "/save x.jsonl"),
            *("/sytem", "/help", "two \\", "lines", "//etc", f"/save {file}", "/exit", "never asked"),
        ]
    )
    screen = talk(typed, run, *OPTIONS)
    system = ("system", "Be brief.")
    first = expected_answer(run, system, ("user", "Name a fruit."))
    rows = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    assert [(turn["role"], turn["content"]) for turn in rows[0]] == [
        system,
        ("user", "Name a fruit."),
        ("assistant", first),
    ]
    assert [turn["content"] for turn in rows[1] if turn["role"] == "user"] == ["two \nlines", "/etc"]
    for text in (
        "full-a5-s0 · alpha 5",
        "system turn set",
        "the same answer: decoding is greedy",
        "appended to",
        "new conversation",
        "there is no question to answer again",
        "there is no answer to save yet",
        "there is no such command",
        "did you mean /system?",
        "/retry         answer the last question again",
    ):
        assert text in screen.replace("\n", " ") or text in screen, text
    assert "never asked" not in screen
    result = call_neft("data", "inspect", "--dataset", file, "--model", run / "model", "--json")
    assert result.code == 0, result.err


@pytest.mark.parametrize("width", [80, 140])
def test_chat_terminal_against_base(talk: Callable[..., str], runs: Path, width: int) -> None:
    """One after the other on a narrow terminal, side by side on a wide one, each with its name and length."""
    screen = talk("Name a fruit.\n", runs / "full-a5-s0", "--against", "base", *OPTIONS, width=width)
    lines = screen.splitlines()
    names = [line for line in lines[5:] if "full-a5-s0 · alpha 5" in line]
    assert names
    assert ("base (llama)" in names[-1]) == (width == 140)
    assert screen.count("tokens") >= 2


class Process:
    """`neft chat` on a pseudo-terminal; each wait ends after WAIT seconds, and the process with the block."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "neftcli", "chat", *arguments]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "300"}  # no message is wrapped
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True, close_fds=True
        )
        os.close(slave)
        self.shown = ""

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait(WAIT)
        os.close(self.master)

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self.master, text.encode())

    def wait_for(self, text: str, after: int = 0) -> None:
        """Read the screen until it shows a text, `after` characters from its beginning."""
        self._read_until(lambda: text in self.shown[after:], f"waited for {text!r}")

    def wait_for_prompt(self, text: str) -> None:
        """Wait until keys are read after a text. Python handles a Ctrl-C in the instant before with the next key."""
        self.wait_for("> ", after=self.shown.index(text))
        time.sleep(0.5)

    def wait_for_answer(self) -> None:
        """Wait until an answer has begun: something is shown beyond the line break and readline's own sequences."""
        before = len(self.shown) + len("\x1b[?2004l\r")
        self._read_until(lambda: len(self.shown) > before + 5, "waited for an answer")
        assert "(no text)" not in self.shown, "the answer ended before it could be stopped"

    def _read_until(self, is_reached: Callable[[], bool], purpose: str) -> None:
        end = time.monotonic() + WAIT
        while not is_reached():
            assert time.monotonic() < end, f"{purpose}: {self.shown[-500:]}"
            assert self._read(), f"{purpose}, but the process has ended: {self.shown[-500:]}"

    def _read(self) -> bool:
        """Read what is there, and return whether the process may write more."""
        if select.select([self.master], [], [], 1.0)[0]:
            try:
                part = os.read(self.master, 65536)
            except OSError:  # the process has ended
                return False
            self.shown += part.decode(errors="replace")
            return bool(part)
        return self.process.poll() is None

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Read the screen to its end, and return the exit code."""
        end = time.monotonic() + WAIT
        while self._read():
            assert time.monotonic() < end, f"waited for the end of the process: {self.shown[-500:]}"
        return self.process.wait(WAIT)


@pytest.fixture
def endless_model(tmp_path: Path) -> Path:
    """Return a tiny Llama whose greedy answers never stop: the stop token's logit is 0, and some other one's above."""
    folder = tmp_path / "endless"
    save_tiny(folder, "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] = 0
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_chat_ctrl_c_stops_an_answer_and_twice_leaves(endless_model: Path, tmp_path: Path) -> None:
    """What was written stays in the history. A second Ctrl-C at the prompt leaves; so does Ctrl-D."""
    file = tmp_path / "chats.jsonl"
    with Process(str(endless_model), "--max-new-tokens", "800", "--repetition-penalty", "1.5") as process:
        process.wait_for("Ctrl-D leaves")
        process.wait_for("> ", after=process.shown.index("Ctrl-D leaves"))
        process.type("Name a fruit.\r")
        process.wait_for("Name a fruit.")
        process.wait_for("\n", after=process.shown.index("Name a fruit."))
        process.wait_for_answer()
        process.interrupt()
        process.wait_for("stopped after")
        process.type(f"/save {file}\r")
        process.wait_for("no stop token")
        process.wait_for_prompt("no stop token")
        process.interrupt()
        process.wait_for("Ctrl-C again leaves")
        process.wait_for_prompt("Ctrl-C again leaves")
        process.interrupt()
        assert process.end() == 0
    [row] = [json.loads(line) for line in file.read_text().splitlines()]
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    assert row["messages"][1]["content"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_chat_signal_while_reading_a_pipe(runs: Path, name: str) -> None:
    command = [sys.executable, "-c", UNIGNORED, "chat", str(runs / "full-a5-s0"), *OPTIONS]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        timer = Timer(WAIT, process.kill)  # which ends the wait for a line, and fails the test by the exit code
        timer.start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Name a fruit.\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate()
        timer.cancel()
    assert process.returncode == 130, errors
    assert b"stopped by" in errors


def test_settings_of_the_oracle_are_those_of_the_options() -> None:
    assert replace(Generation(), max_new_tokens=8, repetition_penalty=1.0) == SETTINGS
