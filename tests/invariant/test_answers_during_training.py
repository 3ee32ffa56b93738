"""`evaluation.during`: answers during training leave the weights alone, and select them if the recipe asks for it.

Oracles: the same run without these answers, the uninterrupted run, the checkpoint that an equal run saved at the best
step, and `neft eval` of the finished run. The answers are words of one letter, of which a tiny model learns a part.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from hashlib import sha256
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import call_neft, events, neft_process
from tests.killed_runs import LORA, SETTINGS, Killer, run_result, run_training

METRICS = ("rouge_l", "exact_match", "answer_tokens")
DURING = {"evaluation.during": f"[{','.join(METRICS)}]"}
BEST = {"training.keep": "best", "training.best_metric": "rouge_l", "training.patience": 2}
MODES: dict[str, dict[str, Any]] = {
    "full": {"training.learning_rate": "5e-2"},
    "LoRA, dropout": {**LORA, "training.learning_rate": "3e-2"},
}
RESUMABLE = 75
RUN = "run-a5-s0"


@pytest.fixture(scope="module")
def settings(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the settings of a run without metrics of answers."""
    file = tmp_path_factory.mktemp("letters") / "rows.jsonl"
    words = [" ".join(letters) for letters in permutations("abcd", 3)] * 2
    rows = [{"prompt": f"Order {number}.", "completion": word} for number, word in enumerate(words)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        **SETTINGS,
        "model.name": tiny_folder("llama"),
        "data.source": file,
        "training.lr_scheduler_type": "constant",
        "evaluation.generation.max_new_tokens": 5,
        "evaluation.every": 0.12,
    }


def without_metrics(run: Path) -> Any:
    """Return the result of a run without its metrics of answers."""
    weights, lines = run_result(run)
    return weights, [{key: value for key, value in line.items() if key != "answer_metrics"} for line in lines]


def evaluations(run: Path) -> list[dict[str, Any]]:
    """Return the evaluations in metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "training.evaluated"]


def measured_by_neft_eval(run: Path) -> dict[str, float]:
    """Return the metrics of answers of a finished run by `neft eval`."""
    result = call_neft("eval", str(run), "--no-base", "--json")
    assert result.code == 0, result.err
    rows = {row["metric"]: row["values"][0] for row in events(result.out)[-1]["metrics"]}
    return {metric: rows[metric]["value"] for metric in METRICS}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_answers_during_training_leave_the_weights_alone(mode: str, settings: dict[str, Any], tmp_path: Path) -> None:
    settings = settings | MODES[mode]
    assert run_training(settings, tmp_path / "without") == 0
    assert run_training(settings | DURING, tmp_path / "with") == 0
    run = tmp_path / "with" / RUN
    assert without_metrics(run) == without_metrics(tmp_path / "without" / RUN)
    metrics = [line["answer_metrics"] for line in evaluations(run)]
    assert [list(values) for values in metrics] == [list(METRICS)] * 9
    assert metrics[-1] == pytest.approx(measured_by_neft_eval(run), abs=1e-12)
    record = json.loads((run / "run.json").read_text())["results"]
    assert (record["base_answer_metrics"], record["answer_metrics"]) == (metrics[0], metrics[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killer", "code"),
    [
        (Killer(9), -signal.SIGKILL),
        (Killer(7, answering=True), -signal.SIGKILL),
        (Killer(7, signal.SIGTERM, answering=True), RESUMABLE),
        (Killer(11, signal.SIGTERM, answering=True), RESUMABLE),
    ],
)
def test_best_metric_after_stops(killer: Killer, code: int, settings: dict[str, Any], tmp_path: Path) -> None:
    """The step with the highest ROUGE-L is kept, and the training ends at the same step however it was stopped."""
    settings = settings | MODES["full"] | DURING | BEST
    assert run_training(settings, tmp_path / "whole") == 0
    whole = tmp_path / "whole" / RUN
    values = {line["step"]: line["answer_metrics"]["rouge_l"] for line in evaluations(whole) if line["step"]}
    losses = {line["step"]: line["held_out_loss"] for line in evaluations(whole) if line["step"]}
    assert (list(values), max(values, key=lambda step: values[step])) == ([2, 4, 6, 8, 10, 12], 8)
    assert min(losses, key=lambda step: losses[step]) != 8
    record = json.loads((whole / "run.json").read_text())["selected"]
    assert (record["metric"], record["step"], record["value"]) == ("rouge_l", 8, values[8])
    assert (record["last_step"], record["last_value"], record["held_out_loss"]) == (12, values[12], losses[8])

    saved = tmp_path / "saved" / RUN
    assert run_training({**settings, "checkpoints.save_steps": 1}, saved.parent, killer=Killer(9)) == -signal.SIGKILL
    of_step = (saved / "checkpoints" / "checkpoint-8" / "model.safetensors").read_bytes()
    assert sha256(of_step).hexdigest() == run_result(whole)[0]

    broken = tmp_path / "broken" / RUN
    assert run_training({**settings, "checkpoints.save_steps": 3}, broken.parent, killer=killer) == code
    assert run_training(settings, broken.parent, resume=broken) == 0
    assert run_result(broken) == run_result(whole)
    assert json.loads((broken / "run.json").read_text())["selected"] == record


@pytest.mark.slow
def test_answers_during_training_of_two_processes(settings: dict[str, Any], tmp_path: Path) -> None:
    """Each process answers a part of the prompts; the weights are those without the answers."""
    sets = [f"--set={key}={value}" for key, value in (settings | MODES["full"]).items()]
    for name, during in (("without", ()), ("with", ("--during", ",".join(METRICS)))):
        output = ("--output-dir", str(tmp_path / name), "--processes", "2")
        result = neft_process("train", *sets, *output, *during, "--quiet")
        assert result.code == 0, result.err
    run = tmp_path / "with" / RUN
    assert without_metrics(run) == without_metrics(tmp_path / "without" / RUN)
    assert evaluations(run)[-1]["answer_metrics"] == pytest.approx(measured_by_neft_eval(run), abs=1e-12)
