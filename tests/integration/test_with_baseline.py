"""`neft train --with-baseline`: both runs and their comparison in one command.

Oracle: the same three commands, typed one by one.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from neftcli.training.evaluator import Evaluator
from tests.conftest import call_neft, events, quick_arguments


@pytest.fixture
def arguments(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> list[str]:
    """Return the arguments of a quick run into `tmp_path/runs`."""
    return quick_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs")


def weights(run: Path) -> Any:
    return json.loads((run / "run.json").read_text())["weights_sha256"]


def test_with_baseline_equals_three_commands(arguments: list[str], tmp_path: Path) -> None:
    result = call_neft(*arguments, "--with-baseline", "--json")
    assert result.code == 0, result.err
    written = events(result.out)
    finished = [event for event in written if event["event"] == "training.finished"]
    runs = tmp_path / "runs"
    assert [event["run"] for event in finished] == [str(runs / "tiny-a5-s0"), str(runs / "tiny-a0-s0")]
    assert [event["paired_run"] for event in finished] == [None, None]
    report = written[-1]
    assert report["event"] == "evaluation.report"
    assert [(model["role"], model["alpha"]) for model in report["models"]][:2] == [("run", 5.0), ("baseline", 0.0)]
    alone = [*arguments, "--output-dir", str(tmp_path / "alone")]
    assert call_neft(*alone).code == call_neft(*alone, "--alpha", "0").code == 0
    for name in ("tiny-a5-s0", "tiny-a0-s0"):
        assert weights(runs / name) == weights(tmp_path / "alone" / name)
    expected = call_neft(
        *("eval", tmp_path / "alone" / "tiny-a5-s0", "--baseline", tmp_path / "alone" / "tiny-a0-s0", "--json")
    )
    assert report["comparisons"] == events(expected.out)[-1]["comparisons"]
    # Again: nothing is trained, the report is the same.
    again = events(call_neft(*arguments, "--with-baseline", "--json").out)
    assert [event["event"] for event in again if event["event"] == "training.finished"] == []
    assert again[-1]["comparisons"] == report["comparisons"]
    assert sum("is not trained again" in event.get("message", "") for event in again) == 2


def test_with_baseline_rejects_changed_rows_before_training(
    arguments: list[str], rows_file: Path, tmp_path: Path
) -> None:
    """A finished run is reused, so its rows are checked before its pair is trained, whichever of the two it is."""
    rows = tmp_path / "mine.jsonl"
    rows.write_bytes(rows_file.read_bytes())
    arguments = [*arguments, "--dataset", str(rows), "--alpha"]
    assert call_neft(*arguments, "0").code == 0
    rows.write_text(rows.read_text().replace("Apple.", "Pear."))
    result = call_neft(*arguments, "5", "--with-baseline")
    assert result.code == 2
    finished = tmp_path / "runs" / "tiny-a0-s0"
    message = (
        f"{rows}: the rows have changed since {finished} was trained; both runs need the same\n  got      data_sha"
    )
    assert message in result.err
    assert "--name NAME    trains both runs in new folders" in result.err
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["tiny-a0-s0"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_with_baseline_has_a_tracker_run_of_its_own(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the first run is finished already, so that the variable is still set."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    run_id = client.create_run(client.create_experiment("neft")).info.run_id
    arguments = [*arguments, "--report-to", "mlflow"]
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert call_neft(*arguments).code == 0
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    result = call_neft(*arguments, "--with-baseline")
    assert result.code == 0, result.err
    assert "note: MLFLOW_RUN_ID is for the run with noise; the baseline is reported as a run of its own" in result.out
    ids = [
        json.loads((tmp_path / "runs" / name / "run.json").read_text())["trackers"]["mlflow"]["id"]
        for name in ("tiny-a5-s0", "tiny-a0-s0")
    ]
    assert ids[0] == run_id != ids[1]


@pytest.mark.slow
def test_with_baseline_continues_after_a_stop(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped run is resumed, a run of another recipe with the same name is left alone."""
    other = call_neft(*arguments, "--learning-rate", "1e-4")
    assert other.code == 0, other.err
    stopped = tmp_path / "runs" / "tiny-a5-s0-2"

    evaluate = Evaluator.evaluate

    def stop(self: Evaluator, model: Any, step: int) -> Any:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, model, step)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", stop)
        assert call_neft(*arguments, "--with-baseline").code == 75
    assert json.loads((stopped / "run.json").read_text())["status"] == "preempted"
    before = weights(tmp_path / "runs" / "tiny-a5-s0")
    result = call_neft(*arguments, "--with-baseline")
    assert result.code == 0, result.err
    assert weights(tmp_path / "runs" / "tiny-a5-s0") == before
    assert json.loads((stopped / "run.json").read_text())["status"] == "finished"
    assert (tmp_path / "runs" / "tiny-a0-s0" / "model").is_dir()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpha", "0"], "--with-baseline compares noise with none"),
        (["--processes", "2"], "--with-baseline trains in one process"),
        (["--dry-run"], "--with-baseline and --dry-run can't be combined"),
    ],
)
def test_with_baseline_rejects(arguments: list[str], tmp_path: Path, flags: list[str], message: str) -> None:
    result = call_neft(*arguments, "--with-baseline", *flags)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "runs").exists()
