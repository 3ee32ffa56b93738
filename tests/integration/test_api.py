"""neft from Python on a tiny model.

Oracles: the weights that `neft train` writes, and the report that `neft eval` prints.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import neftcli
from neftcli.errors import InputError, Preempted, RecipeError
from neftcli.events import StepLogged, TrainingProgress
from tests.conftest import Result, events, quick_arguments
from tests.tiny_sweep import weights_hash

Neft = Callable[..., Result]


class Recorder:
    """Records events."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def notify(self, event: Any) -> None:
        """Record an event."""
        self.events.append(event)


@pytest.fixture
def settings(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> dict[str, Any]:
    """Return the settings of a run of seconds into `tmp_path/runs`."""
    return {
        "model.name": tiny_folder("llama"),
        "data.source": rows_file,
        "training.max_steps": 4,
        "training.logging_steps": 1,
        "training.precision": "float32",
        "evaluation.every": 0.5,
        "evaluation.probe_rows": 4,
        "evaluation.samples": 2,
        "evaluation.generation.max_new_tokens": 6,
        "output_dir": tmp_path / "runs",
        "name": "tiny",
    }


def test_train_and_evaluate_equal_the_command_line(
    neft: Neft, settings: dict[str, Any], tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    recorder = Recorder()
    run = neftcli.train(settings={**settings, "neftune.alpha": 5}, progress=recorder)
    assert run.folder == tmp_path / "runs" / "tiny-a5-s0"
    assert [event.step for event in recorder.events if isinstance(event, StepLogged)] == [1, 2, 3, 4]
    assert run.results.held_out_loss is not None
    result = neft(*quick_arguments(tiny_folder("llama"), rows_file, tmp_path / "typed"), "--alpha", "5")
    assert result.code == 0, result.err
    assert weights_hash(run.folder) == weights_hash(tmp_path / "typed" / "tiny-a5-s0")
    model, tokenizer = run.load()
    assert model(torch.tensor([tokenizer("Name a fruit.")["input_ids"]])).logits.isfinite().all()
    report = neftcli.evaluate(run, settings={"evaluation.generation.max_new_tokens": 4}, progress=False)
    typed = neft("eval", run.folder, "--set", "evaluation.generation.max_new_tokens=4", "--json")
    [expected] = [event for event in events(typed.out) if event["event"] == "evaluation.report"]
    losses = [row for row in report.metrics if row.metric == "held_out_loss"]
    [printed] = [row for row in expected["metrics"] if row["metric"] == "held_out_loss"]
    assert [value and value.value for value in losses[0].values] == [
        value and value["value"] for value in printed["values"]
    ]


def test_train_stopped_and_resumed(settings: dict[str, Any], tmp_path: Path) -> None:
    """An interrupt saves a checkpoint; the resumed run has the weights of an undisturbed one."""

    class Interrupt(Recorder):
        def notify(self, event: Any) -> None:
            if isinstance(event, TrainingProgress) and event.step == 2:
                import _thread

                _thread.interrupt_main()

    with pytest.raises(Preempted, match="checkpoint"):
        neftcli.train(settings=settings, progress=Interrupt())
    resumed = neftcli.train(resume=tmp_path / "runs" / "tiny-a5-s0", progress=False)
    whole = neftcli.train(settings={**settings, "output_dir": tmp_path / "whole"}, progress=False)
    assert weights_hash(resumed.folder) == weights_hash(whole.folder)


def test_train_in_a_thread(settings: dict[str, Any]) -> None:
    """Only the main thread can handle signals; other threads train without."""
    runs: list[neftcli.Run] = []
    work = lambda: runs.append(neftcli.train(settings=settings, progress=False))  # noqa: E731
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [run.folder.name for run in runs] == ["tiny-a5-s0"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training.learning_rat": 1}, r"settings\['training.learning_rat'\]: training.learning_rat is not an option"),
        ({"training.max_steps": -1}, r"settings\['training.max_steps'\]"),
        ({"training.processes": 2}, "several processes are started by the command line"),
    ],
)
def test_train_rejects_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, RecipeError), match=message):
        neftcli.train("quickstart", settings)


@pytest.mark.slow
def test_sweep_alpha_in_a_script(settings: dict[str, Any], tmp_path: Path) -> None:
    """Its workers import the script again, which trains nothing below its guard."""
    script = tmp_path / "script.py"
    arguments = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    script.write_text(
        "import neftcli\n"
        "if __name__ == '__main__':\n"
        f"    report = neftcli.sweep_alpha([0, 5], settings={arguments!r}, seeds=2, progress=False)\n"
        "    print([(arm.alpha, arm.seeds) for arm in report.arms])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[(0.0, 2), (5.0, 2)]"
