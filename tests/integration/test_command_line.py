"""The command line: imported modules, errors, output and exit codes.

Oracles: the interpreter's own list of modules, and exact messages.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from neftcli.errors import INTERNAL_MESSAGE
from tests.conftest import Result, events, neft_process

Neft = Callable[..., Result]
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "pyarrow"}
NEEDLESS = HEAVY | {"pydantic", "rich.console", "ruamel.yaml"}
"""What help doesn't need."""


QUICK_COMMANDS = {
    "--help": 0,
    "eval no-such-run": 2,
    "chat no-such-run": 2,
    "answer no-such-run --dataset bad.jsonl --out out.jsonl": 2,
    "sweep-alpha --alphas -1": 2,
    "eval smollm2-135m --dataset bad.jsonl": 2,
    "eval smollm2-135m --judge http://127.0.0.1:1": 2,
    "recipes": 0,
    "models": 0,
    "runs": 0,
    "runs show no-such-run": 2,
    "--version": 0,
    "train --alpha -1": 2,
    "train --dataset missing.jsonl": 2,
    "train --model no-such-alias": 2,
    "train --dataset bad.jsonl": 2,
}
HELP = ["--help", "-h", "train --help", "eval -h", "chat -h", "answer -h", "recipes --help", "runs --help", "doctor -h"]


def loaded_by(commands: Iterable[str], folder: Path) -> list[tuple[str, int, set[str]]]:
    """Run commands one after the other in one new process; return their exit codes and the modules loaded so far."""
    script = """
import json, sys
from neftcli.cli.main import main
for command in sys.argv[1:]:
    sys.argv, code = ["neft", *command.split()], 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    print("LOADED", json.dumps([command, code, list(sys.modules)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *commands], capture_output=True, text=True, cwd=folder, check=True
    )
    lines = [json.loads(line[len("LOADED ") :]) for line in done.stdout.splitlines() if line.startswith("LOADED ")]
    return [(command, code, set(modules)) for command, code, modules in lines]


def test_main_quick_commands_load_no_heavy_library(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    results = loaded_by(QUICK_COMMANDS, tmp_path)
    assert {command: code for command, code, _ in results} == QUICK_COMMANDS
    assert [(command, modules & HEAVY) for command, _, modules in results if modules & HEAVY] == []


def test_help_loads_only_what_it_shows(tmp_path: Path) -> None:
    """Help loads neither pydantic nor rich nor ruamel; `benchmarks/startup.py` has the times."""
    results = loaded_by(HELP, tmp_path)
    assert [code for _, code, _ in results] == [0] * len(HELP)
    assert [(command, modules & NEEDLESS) for command, _, modules in results if modules & NEEDLESS] == []


def test_models_prints_what_transformers_loads(neft: Neft, tiny_folder: Callable[[str], Path]) -> None:
    assert neft("models", "opt-350m").out == "facebook/opt-350m\n"
    assert neft("models", tiny_folder("llama")).out == f"{tiny_folder('llama')}\n"
    assert neft("models", "opt-35m").code == 2


def test_usage_error_is_the_base_of_typers_errors() -> None:
    """Typer doesn't export its errors; this fails if a newer version moves them."""
    from neftcli.cli.main import UsageError, app

    for arguments, kind in ((["train", "--zzz"], "NoSuchOption"), (["nope"], "UsageError"), ([], "NoArgsIsHelpError")):
        with pytest.raises(UsageError) as caught:
            app(args=arguments, prog_name="neft", standalone_mode=False)
        assert type(caught.value).__name__ == kind


def test_main_groups_alone_show_their_help(neft: Neft) -> None:
    for arguments in ([], ["data"]):
        result = neft(*arguments)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("Usage: neft")
        assert "problem" not in result.err


def test_train_reports_all_bad_flags_at_once(neft: Neft) -> None:
    result = neft("train", "--alpha", "five", "--seed", "-1", "--set", "trainig.max_steps=2", "--set", "nonsense")
    assert result.code == 2
    assert result.out == ""
    assert result.err == (
        "--set takes key=value\n"
        "  got      nonsense\n"
        "  hint     --set training.learning_rate=1e-4\n"
        "1 error; nothing was started.\n"
    )
    result = neft("train", "--alpha", "five", "--seed", "-1", "--set", "trainig.max_steps=2")
    assert result.err == (
        "--set trainig.max_steps: trainig.max_steps is not an option\n"
        "  got      trainig.max_steps=2\n"
        "  did you mean training.max_steps?\n"
        "  hint     neft recipes show quickstart --all    to see every option with its default\n"
        "--alpha: neftune.alpha must be a finite number, 0 or more\n"
        "  got      --alpha five\n"
        "  hint     --alpha 5    the default\n"
        "--seed: training.seed must be a whole number, 0 or more, below 4,294,967,296\n"
        "  got      --seed -1\n"
        "  hint     --seed 0    the default\n"
        "3 errors; nothing was started.\n"
    )


@pytest.mark.parametrize("alpha", ["-5", "nan", ".nan", "inf", ".inf", "five", "true", "[5]"])
def test_train_rejects_an_alpha_that_is_not_a_number(neft: Neft, alpha: str) -> None:
    result = neft("train", "--alpha", alpha)
    assert result.code == 2
    assert "neftune.alpha must be a finite number, 0 or more" in result.err


@pytest.mark.parametrize(
    ("flag", "message", "code"),
    [("--alpha=five", "--alpha: neftune.alpha", "recipe"), ("--alfa=5", "neft train: ", "usage")],
)
def test_train_json_error_event(neft: Neft, flag: str, message: str, code: str) -> None:
    """The event has the parts of the message on stderr, for usage errors as well."""
    result = neft("train", flag, "--json")
    [event] = events(result.out)
    assert (event["event"], event["schema_version"], event["exit_code"], result.code) == ("error", 1, 2, 2)
    [problem] = event["problems"]
    assert problem["message"].startswith(message)
    assert problem["code"] == code
    assert result.err.startswith(problem["message"])
    assert problem["hint"] in result.err


def test_train_with_bad_input_leaves_nothing(neft: Neft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "reply": "b"}\n')
    result = neft("train", "--dataset", "rows.jsonl")
    assert result.code == 2
    assert "rows.jsonl, line 1: the columns match no known row format\n  got      question, reply" in result.err
    assert sorted(tmp_path.iterdir()) == [tmp_path / "rows.jsonl"]


@pytest.mark.parametrize("name", ["../x", "a/b", "x" * 80, "run name"])
def test_train_rejects_a_name_outside_the_folder(neft: Neft, quick: list[str], name: str, tmp_path: Path) -> None:
    result = neft(*quick, "--set", f"name={name}")
    assert result.code == 2
    assert "a run's name has at most 64 letters, digits, dots, underscores and hyphens" in result.err
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_train_debug_shows_the_traceback() -> None:
    quiet = neft_process("train", "--alpha", "-1")
    loud = neft_process("train", "--alpha", "-1", "--debug")
    assert "Traceback" not in quiet.err
    assert "Traceback" in loud.err


def test_main_reports_a_bug(neft: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """The message that other tests look for is the one that an unexpected exception gets."""

    def fail(*_arguments: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("neftcli.models.registry.resolve_model", fail)
    result = neft("models", "tiny")
    assert result.code == 1
    assert INTERNAL_MESSAGE in result.err
    assert "RuntimeError: planted" in result.err
    assert "--debug" in result.err


@pytest.mark.slow
def test_train_reports_an_unreachable_hub_in_seconds(tmp_path: Path) -> None:
    result = neft_process(
        "train",
        "--model",
        "opt-350m",
        "--output-dir",
        tmp_path / "runs",
        HF_ENDPOINT="https://hub.invalid",
        HF_HUB_OFFLINE="0",
    )
    assert result.code == 2
    assert "facebook/opt-350m on the hub can't be reached, and is not in the local cache" in result.err
    assert "without a network: --model smollm2-135m" in result.err
    assert "Traceback" not in result.err


def test_recipes_lists_shows_and_copies(neft: Neft, tmp_path: Path) -> None:
    from neftcli.recipe import catalog
    from neftcli.recipe.loading import load_recipe

    listed = neft("recipes").out
    assert all(name in listed for name in catalog.list_recipes())
    assert neft("recipes", "show", "quickstart").out == (catalog.recipes_folder() / "quickstart.yaml").read_text()
    copied = neft("recipes", "copy", "quickstart", tmp_path)
    assert copied.code == 0
    assert load_recipe(str(tmp_path / "quickstart.yaml")) == load_recipe("quickstart")
    again = neft("recipes", "copy", "quickstart", tmp_path)
    assert again.code == 2
    assert "is not overwritten" in again.err


def test_recipes_show_all_is_itself_a_recipe(neft: Neft, tmp_path: Path) -> None:
    from neftcli.recipe.loading import load_recipe

    file = tmp_path / "all.yaml"
    file.write_text(neft("recipes", "show", "llama-2-7b-alpaca-qlora", "--all").out)
    assert load_recipe(str(file)) == load_recipe("llama-2-7b-alpaca-qlora")


def test_data_inspect_marks_answers_and_their_stop_token(neft: Neft, quick: list[str]) -> None:
    model_and_data = quick[1:5]
    out = neft("data", "inspect", *model_and_data, "--rows", "1").out
    assert "Below is an instruction" in out
    assert "\n            | ### Response:\n     7 LOSS | Apple.</s>\n" in out
    assert out.rstrip().endswith("     7 LOSS | Apple.</s>\n  ends with its stop token, which carries loss")


def test_data_inspect_writes_a_page(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    """The rows are on the page instead of in the lines; a file of a different kind is never overwritten."""
    output = neft("data", "inspect", *quick[1:5], "--rows", "2", "--html", tmp_path / "rows.html").out
    html = (tmp_path / "rows.html").read_text()
    assert output.splitlines()[-1] == f"page: 2 rows in {tmp_path / 'rows.html'}"
    assert (html.count("<h2>"), "LOSS" in output) == (2, False)
    rows = Path(quick[4])
    before = rows.read_bytes()
    rejected = neft("data", "inspect", *quick[1:5], "--html", rows)
    assert (rejected.code, rejected.out) == (2, "")
    assert rejected.err.startswith("--html: this file exists and is not a page of neft, so it is not overwritten\n")
    assert rows.read_bytes() == before


def run_script(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script in a process, with the command line's `command` and `main`."""
    begin = "import sys\nfrom neftcli.cli import main as module\nfrom neftcli.cli.main import command, main\n"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, "-c", begin + script, *arguments], text=True, check=False, **options)


def test_command_ends_without_teardown_after_registered_functions() -> None:
    script = (
        "import atexit, os\n"
        "class Apart:\n    def __del__(self, write=os.write): write(1, b'apart')\n"
        "def run():\n    atexit.register(print, 'registered'); main()\n"
        "module.main = run; apart = Apart()\n{}()"
    )
    assert run_script(script.format("command"), "--version").stdout.splitlines()[1:] == ["registered"]
    assert run_script(script.format("run"), "--version").stdout.splitlines()[1:] == ["registered", "apart"]


@pytest.mark.parametrize(
    ("main", "code"),
    [
        ("sys.exit()", 0),
        ("sys.exit(75)", 75),
        ("sys.exit('words of a library')", 1),
        ("raise ValueError", 1),
        ("raise KeyboardInterrupt", -2),
    ],
)
def test_command_exits_with_the_code_of_python(main: str, code: int) -> None:
    assert run_script(f"def run(): {main}\nmodule.main = run; command()").returncode == code


def test_main_leaves_the_exit_code_to_its_caller() -> None:
    assert run_script("try: main()\nexcept SystemExit: sys.exit(3)", "--version").returncode == 3


def test_command_fails_if_output_cannot_be_written() -> None:
    script = "def run(): print('x', end=''); sys.exit(0)\nmodule.main = run; command()"
    with Path("/dev/full").open("w") as full:
        done = run_script(script, stdout=full)
    assert done.returncode != 0
    assert "No space left" in done.stderr
    assert run_script(script.replace("run():", "run(): sys.stdout.close();")).returncode != 0


@pytest.mark.parametrize(
    ("arguments", "code"), [("--version", 1), ("train --alhpa 3 --json", 2), ("recipes show quickstart", 1)]
)
def test_command_reports_lost_output(arguments: str, code: int) -> None:
    """Also on a full disk each command continues to its end, and then says so."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "neftcli", *arguments.split()]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.endswith("output was lost, as it could not be written: No space left on device\n")
    assert INTERNAL_MESSAGE not in done.stderr


@pytest.mark.slow
def test_train_continues_on_a_full_disk_of_stdout(quick: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "neftcli", *quick], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, "output was lost" in done.stderr) == (1, True)
    [run] = (tmp_path / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_command_waits_for_a_pipe_that_does_not_block() -> None:
    command = [sys.executable, "-m", "neftcli", "recipes", "show", "quickstart", "--all"]
    whole = subprocess.run(command, capture_output=True, check=True).stdout
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write, False)
    process = subprocess.Popen(command, stdout=write)
    os.close(write)
    time.sleep(0.5)  # until the pipe is full
    with os.fdopen(read, "rb") as output:
        assert output.read() == whole
    assert process.wait() == 0


@pytest.mark.parametrize(("arguments", "code"), [("models", 0), ("eval nosuch", 2), ("train --alpha five", 2)])
def test_command_works_with_closed_output(arguments: str, code: int) -> None:
    command = f"exec '{sys.executable}' -m neftcli {arguments} >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    assert INTERNAL_MESSAGE not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "unbuffered"),
    [("models", 0, "1"), ("recipes show quickstart --all", 0, ""), ("--help", 0, "1"), ("eval nosuch", 2, "")],
)
def test_command_continues_without_readers(arguments: str, code: int, unbuffered: str) -> None:
    """As in `neft models 2>&1 | head -1`: the exit code is the command's own."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "neftcli", *arguments.split()]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writer, stderr=writer, env=environment, check=False)
    os.close(writer)
    assert done.returncode == code


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_train_continues_without_a_reader(quick: list[str], form: list[str], tmp_path: Path) -> None:
    """As in `neft train | head -1`: the run is finished and its model saved."""
    command = [sys.executable, "-m", "neftcli", *quick, *form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    [record] = tmp_path.glob("runs/*/run.json")
    assert json.loads(record.read_text())["status"] == "finished"
    assert list(record.parent.glob("model/*.safetensors"))


@pytest.mark.parametrize("name", ["c" * 300, "d/" * 2100])
def test_train_rejects_a_path_that_is_too_long(neft: Neft, quick: list[str], name: str) -> None:
    result = neft(*quick, "--output-dir", name)
    assert result.code == 2
    assert "too long" in result.err
    assert INTERNAL_MESSAGE not in result.err


def test_chat_without_standard_input() -> None:
    command = f"exec '{sys.executable}' -m neftcli chat smollm2-135m <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, "standard input is closed" in done.stderr) == (2, True)
