"""Several processes that train one model, from the command line.

Oracles: the same rows trained by one process; the uninterrupted run, by the hash of its weights and every line of
metrics.jsonl except times. Runs are killed (-9) and stopped by real signals, and launched by neft and by torchrun.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from neftcli.runs.checkpoints import verify
from tests.killed_runs import run_result

NEFT = [sys.executable, "-m", "neftcli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node"]
MODES: dict[str, dict[str, Any]] = {
    "full, bucketed, by torchrun first": {"training.batching": "bucketed"},
    "three, LoRA, accumulation, dropout": {
        "adapter.type": "lora",
        "adapter.r": 2,
        "adapter.lora_dropout": 0.1,
        "training.gradient_accumulation_steps": 2,
        "training.per_device_train_batch_size": 1,
    },
}


@pytest.fixture(scope="module")
def arguments(tiny_folder: Callable[[str], Path], rows_file: Path) -> list[str]:
    """Return the arguments of all runs here: two epochs of 48 rows."""
    sets = {
        "data.max_rows": 53,
        "data.held_out_rows": 5,
        "training.num_train_epochs": 2,
        "training.per_device_train_batch_size": 2,
        "training.learning_rate": "5e-3",
        "training.logging_steps": 2,
        "training.precision": "float32",
        "evaluation.every": 0.3,
        "evaluation.samples": 1,
        "evaluation.probe_rows": 3,
        "evaluation.generation.max_new_tokens": 3,
    }
    return ["train", "--model", str(tiny_folder("llama")), "--dataset", str(rows_file), *with_sets(sets), "--quiet"]


def with_sets(sets: dict[str, Any]) -> list[str]:
    """Return settings as arguments."""
    return [f"--set={key}={value}" for key, value in sets.items()]


def begin(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    """Start a command in `folder`, with its output in the file `said`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with (folder / "said").open("w") as output:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)


def end(folder: Path, process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Wait for a command; return its exit code and output."""
    return process.wait(timeout=180), (folder / "said").read_text()


def do(folder: Path, *command: str) -> tuple[int, str]:
    """Run a command; return its exit code and output."""
    return end(folder, begin(folder, *command))


def wait_for_step(run: Path, process: subprocess.Popen[bytes], step: int) -> None:
    """Wait until the run has logged a step."""
    metrics = run / "metrics.jsonl"
    while process.poll() is None:
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        if any(json.loads(line)["step"] >= step for line in lines if line.endswith("}")):
            return
        time.sleep(0.01)
    raise AssertionError(f"{run} ended before step {step}")


def others(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes that a process has started."""
    return psutil.Process(process.pid).children()


def require_gone(processes: list[psutil.Process]) -> None:
    """Check that processes end within seconds."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


@pytest.mark.slow
def test_train_two_processes_equal_twice_the_batch(arguments: list[str], tmp_path: Path) -> None:
    """Without noise, which each process draws itself; up to the order of floating-point sums."""
    sets = with_sets({"neftune.alpha": 0, "training.batching": "padded"})
    assert do(tmp_path, *NEFT, *arguments, *sets, "--processes", "2", "--name", "two")[0] == 0
    assert (
        do(tmp_path, *NEFT, *arguments, *sets, "--set=training.per_device_train_batch_size=4", "--name", "one")[0] == 0
    )
    two, one = (run_result(tmp_path / "runs" / f"{name}-a0-s0")[1] for name in ("two", "one"))
    assert [line.keys() for line in two] == [line.keys() for line in one]
    for line, other in zip(two[:-1], one[:-1], strict=True):  # the last is the answers
        numbers, others = ([value for value in row.values() if isinstance(value, float)] for row in (line, other))
        assert numbers == pytest.approx(others, rel=1e-4)
        assert line["step"] == other["step"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [pytest.param(mode, marks=[pytest.mark.slow] * ("three" in mode)) for mode in MODES])
def test_train_killed_processes_resume_bit_identically(mode: str, arguments: list[str], tmp_path: Path) -> None:
    """In the second epoch, whose order differs from the first."""
    number = "3" if "three" in mode else "2"
    command = [*NEFT, *arguments, *with_sets(MODES[mode])]
    if "torchrun" in mode:
        code, output = do(tmp_path, *TORCHRUN, number, *command, "--name", "whole")
    else:
        code, output = do(tmp_path, *command, "--name", "whole", "--processes", number)
    assert code == 0, output
    broken = tmp_path / "runs" / "broken-a5-s0"
    steps = json.loads((tmp_path / "runs" / "whole-a5-s0" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    process = begin(tmp_path, *command, "--name", "broken", "--processes", number, "--save-steps", "1")
    wait_for_step(broken, process, steps // 2 + 2)
    rest = others(process)
    process.kill()
    process.wait()
    require_gone(rest)
    assert not (broken / "model").exists()
    [*_, newest] = sorted((broken / "checkpoints").glob("*/manifest.json"), key=lambda file: file.stat().st_mtime)
    checkpoint = verify(newest.parent)
    assert checkpoint.step > steps // 2
    assert checkpoint.manifest["processes"] == int(number)
    assert {f"rng_state_{rank}.pth" for rank in range(int(number))} <= checkpoint.manifest["files"].keys()
    code, output = do(tmp_path, *NEFT, "train", "--resume", str(broken))
    assert code == 0, output
    assert run_result(broken) == run_result(tmp_path / "runs" / "whole-a5-s0")


@pytest.mark.slow
def test_train_processes_signals_and_failures(arguments: list[str], tmp_path: Path) -> None:
    """Stop a run by SIGTERM, then kill its other process; a different number of processes never resumes it."""
    run = tmp_path / "runs" / "run-a5-s0"
    again = [*NEFT, "train", "--resume", str(run)]
    long = [*arguments, "--set=training.num_train_epochs=500", "--name", "run", "--processes", "2"]

    process = begin(tmp_path, *NEFT, *long)
    wait_for_step(run, process, 4)
    rest = others(process)
    rest[0].send_signal(signal.SIGTERM)  # only the first one decides
    process.send_signal(signal.SIGTERM)
    code, output = end(tmp_path, process)
    assert code == 75, output
    assert f"is saved, after step {verify_newest(run)}" in output
    assert f"neft train --resume {run.relative_to(tmp_path)}\n" in output
    require_gone(rest)

    for accepted in ([], ["--accept-changes"]):
        code, output = do(tmp_path, *again, "--processes", "3", *accepted)
        assert code == 2
        assert "training.processes differs" in output
        assert f"got      3 (checkpoint-{verify_newest(run)}: 2)" in output

    process = begin(tmp_path, *again)
    wait_for_step(run, process, verify_newest(run) + 4)
    rest = others(process)
    rest[0].kill()
    code, output = end(tmp_path, process)
    assert code == 1
    step = verify_newest(run)
    assert (
        f"another of the 2 processes ended; {run}/checkpoints/checkpoint-{step} is saved, after step {step}" in output
    )
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["error"].startswith("ProcessLostError: another of the 2 processes ended")
    assert "Traceback" not in output
    require_gone(rest)


PHASES = [
    ("reading_data", "the first"),
    ("loading_libraries", "another"),
    ("loading_model", "the first"),
    ("evaluating_base", "another"),
    ("generating_base_samples", "the first"),
    ("preparing_trainer", "another"),
    ("saving_model", "the first"),
    ("evaluating", "another"),
    ("generating_samples", "the first"),
]


@pytest.fixture(scope="module")
def complete_run(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("complete")
    code, output = do(folder, *command_of_two(arguments), "run")
    assert code == 0, output
    return folder / "runs" / "run-a5-s0"


def command_of_two(arguments: list[str]) -> list[str]:
    """Return the command of two processes, without the name of the run."""
    sets = ["--processes", "2", "--set=training.num_train_epochs=1", "--save-steps", "4"]
    return [*NEFT, *[word for word in arguments if word != "--quiet"], *sets, "--json", "--name"]


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "which"), PHASES)
def test_train_processes_killed_in_a_phase(
    phase: str, which: str, arguments: list[str], complete_run: Path, tmp_path: Path
) -> None:
    """All processes end; then the run resumes, or the same command starts it if it had no folder yet."""
    command = command_of_two(arguments)
    process = begin(tmp_path, *command, "run")
    while process.poll() is None and f'"phase": "{phase}"' not in (tmp_path / "said").read_text():
        time.sleep(0.005)
    rest = others(process)
    (process if which == "the first" else rest[0]).kill()
    code, output = end(tmp_path, process)
    assert code == (-signal.SIGKILL if which == "the first" else 1), output
    assert "Traceback" not in output
    require_gone(rest)
    run = tmp_path / "runs" / "run-a5-s0"
    again = [*NEFT, "train", "--resume", str(run)] if run.is_dir() else [*command, "run"]
    code, output = do(tmp_path, *again)
    assert code == 0, output
    assert run_result(run) == run_result(complete_run)


def verify_newest(run: Path) -> int:
    """Verify the newest checkpoint, and return its step."""
    return max(verify(place).step for place in (run / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("command", "expected_message"),
    [
        (["eval", "runs/x"], "neft eval runs in a single process"),
        (["sweep-alpha"], "neft sweep-alpha runs in a single process"),
        (["train", "--processes", "3"], "a launcher has started a different number of processes"),
    ],
)
def test_main_rejects_a_launcher(
    neft: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, command: list[str], expected_message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = neft(*command)
    assert done.code == 2
    assert expected_message in done.err
    assert "WORLD_SIZE 2" in done.err


@pytest.mark.slow
def test_train_processes_report_an_error_once(arguments: list[str], tmp_path: Path) -> None:
    code, output = do(tmp_path, *TORCHRUN, "2", *NEFT, *arguments, "--dataset", "nothere.jsonl")
    assert code == 1  # torchrun's own, whatever its processes end with
    assert output.count("no such file or folder") == 1
    assert not (tmp_path / "runs").exists()
