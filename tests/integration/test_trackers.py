"""`--report-to`: real trackers, whose files are read back.

Oracles: the run's own `metrics.jsonl`, and the weights of the same run without trackers.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from neftcli.trackers.backends import TensorBoard, read_wandb_records
from tests.conftest import Result, events, neft_process, quick_arguments
from tests.killed_runs import SETTINGS, Killer, run_result, run_training

Neft = Callable[..., Result]
Row = tuple[int, float]
KEY = "0123456789abcdef0123456789abcdef01234567"


def needs(module: str) -> pytest.MarkDecorator:
    """Skip a test if a tracker is not installed."""
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")


def weights(run: Path) -> str:
    """Return the hash of a run's weights."""
    return sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def logged(run: Path) -> tuple[list[Row], list[Row]]:
    """Return the losses and the held-out losses of metrics.jsonl, with their steps."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["loss"]) for row in rows if row["event"] == "training.step"]
    return losses, [(row["step"], row["held_out_loss"]) for row in rows if row["event"] == "training.evaluated"]


def tensorboard_rows(folder: Path) -> tuple[list[Row], list[Row]]:
    """Read the losses and the held-out losses that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder))
    shown.Reload()
    losses, held_out = shown.Scalars("train/loss"), shown.Scalars("eval/held_out_loss")
    return [(row.step, row.value) for row in losses], [(row.step, row.value) for row in held_out]


def mlflow_rows(store: Path) -> tuple[list[Row], list[Row]]:
    """Read the losses and the held-out losses of the only run in a file store."""
    import mlflow

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = mlflow.MlflowClient(store.absolute().as_uri())
    [run] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert (run.info.status, run.data.params["neft.neftune.alpha"]) == ("FINISHED", "5.0")
    parts = [client.get_metric_history(run.info.run_id, name) for name in ("loss", "eval_held_out_loss")]
    losses, held_out = [[(metric.step, metric.value) for metric in part] for part in parts]
    return losses, held_out


def wandb_rows(folder: Path) -> tuple[list[Row], list[Row]]:
    """Read the losses and the held-out losses of all parts of an offline run, in their order."""
    from wandb.proto.wandb_internal_pb2 import Record

    losses, held_out, ids = [], [], set()
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for content in read_wandb_records(file.read_bytes()):
            record = Record.FromString(content)
            if record.run.run_id:
                ids.add(record.run.run_id)
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = row.get("train/global_step")
            losses += [(step, row["train/loss"])] if "train/loss" in row else []
            held_out += [(step, row["eval/held_out_loss"])] if "eval/held_out_loss" in row else []
    assert len(ids) == 1
    return losses, held_out


def trackio_rows(run: Path) -> tuple[list[Row], list[Row]]:
    """Read the losses and the held-out losses of a local database, in a process of its own."""
    import sqlite3

    losses, held_out = [], []
    with sqlite3.connect(run / "trackers" / "trackio" / "neft.db") as database:
        for (metrics,) in database.execute("SELECT metrics FROM metrics ORDER BY step"):
            row = json.loads(metrics)
            losses += [(row["train/global_step"], row["train/loss"])] if "train/loss" in row else []
            held_out += [(row["train/global_step"], row["eval/held_out_loss"])] if "eval/held_out_loss" in row else []
    return losses, held_out


def close(rows: tuple[list[Row], list[Row]]) -> list[Any]:
    """Return rows for a comparison with those that TensorBoard stores in 32 bits, or trackers round."""
    return [[(step, pytest.approx(value, rel=1e-6)) for step, value in part] for part in rows]


@needs("tensorboard")
def test_tensorboard(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    """All rows arrive, with the recipe and the results; the weights are those of the run without."""
    said = neft(*quick, "--report-to", "tensorboard", "--json")
    assert said.code == 0, said.err
    run = tmp_path / "runs" / "tiny-a5-s0"
    [opened] = [event for event in events(said.out) if event["event"] == "tracker.opened"]
    folder = run / "trackers" / "tensorboard"
    assert (opened["tracker"], opened["location"]) == ("tensorboard", str(folder))
    assert tensorboard_rows(folder) == tuple(close(logged(run)))
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    for expected in (b"max_steps: 4", b"final/held_out_loss", b"eval/train_loss_noise_off", b"noise_to_embedding"):
        assert expected in content
    assert opened["view"] == f"tensorboard --logdir {folder}"
    record = json.loads((run / "run.json").read_text())["trackers"]
    assert record == {"tensorboard": {"id": None, "location": str(folder), "problem": ""}}

    assert neft(*quick).code == 0
    without = tmp_path / "runs" / "tiny-a5-s0-2"
    assert weights(without) == weights(run)
    assert logged(without) == logged(run)
    assert not (without / "trackers").exists()


@needs("tensorboard")
def test_tracker_fails_in_the_middle(
    neft: Neft, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run continues, and the failure is reported once, and at the end; a key in its message is hidden."""
    from torch.utils.tensorboard import SummaryWriter

    add = SummaryWriter.add_scalar

    def fail(self: Any, name: str, value: float, step: int) -> None:
        if step == 2:
            raise OSError(28, f"No space left on device: {KEY}")
        add(self, name, value, step)

    monkeypatch.setenv("SOME_API_KEY", KEY)
    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    said = neft(*quick, "--report-to", "tensorboard")
    assert said.code == 0, said.err
    problem = "OSError: [Errno 28] No space left on device: ***"
    assert said.out.count(f"note: TensorBoard failed: {problem}; the run continues without it") == 1
    assert f"note: TensorBoard has only a part of this run ({problem}); all rows are in metrics.jsonl" in said.out
    run = tmp_path / "runs" / "tiny-a5-s0"
    assert len(logged(run)[0]) == 4
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["trackers"]["tensorboard"]["problem"]) == ("finished", problem)
    assert KEY not in said.out + said.err + (run / "train.log").read_text()


@needs("tensorboard")
def test_tracker_does_not_start(neft: Neft, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: TensorBoard) -> None:
        raise OSError("no such server")

    monkeypatch.setattr(TensorBoard, "start", fail)
    said = neft(*quick, "--report-to", "tensorboard")
    assert said.code == 2
    assert "training.report_to: tensorboard can't be started\n  got      OSError: no such server\n" in said.err
    assert not list((tmp_path / "runs").glob("*"))


def test_tracker_switched_off(neft: Neft, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its package is installed or not."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    said = neft(*quick, "--report-to", "wandb")
    assert said.code == 0, said.err
    assert "note: nothing is reported to Weights & Biases: WANDB_MODE=disabled switches it off" in said.out
    assert not (tmp_path / "runs" / "tiny-a5-s0" / "trackers").exists()


READERS: dict[str, Callable[[Path], tuple[list[Row], list[Row]]]] = {
    "tensorboard": lambda run: tensorboard_rows(run / "trackers" / "tensorboard"),
    "mlflow": lambda run: mlflow_rows(run / "trackers" / "mlflow"),
    "wandb": lambda run: wandb_rows(run / "trackers"),
    "trackio": trackio_rows,
}


@pytest.mark.slow
@pytest.mark.parametrize("tracker", [pytest.param(tracker, marks=needs(tracker)) for tracker in READERS])
def test_tracker_after_kill(
    tracker: str,
    tiny_folder: Callable[[str], Path],
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A killed and resumed run continues the tracker's run: each step is there once. No key is in any file."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    settings = {**SETTINGS, "model.name": tiny_folder("llama"), "data.source": rows_file, "training.logging_steps": 1}
    assert run_training(settings, tmp_path / "without") == 0
    settings["training.report_to"] = f"[{tracker}]"
    assert run_training(settings, tmp_path / "with", killer=Killer(8)) == -signal.SIGKILL
    run = tmp_path / "with" / "run-a5-s0"
    before = json.loads((run / "run.json").read_text())["trackers"][tracker]
    assert run_training(settings, tmp_path / "with", resume=run) == 0
    after = json.loads((run / "run.json").read_text())["trackers"][tracker]
    assert (after["id"], after["problem"]) == (before["id"], "")
    assert READERS[tracker](run) == tuple(close(logged(run)))
    assert run_result(run) == run_result(tmp_path / "without" / "run-a5-s0")
    for file in run.rglob("*"):
        assert not file.is_symlink()
        assert file.is_dir() or KEY.encode() not in file.read_bytes()


@pytest.mark.slow
@needs("mlflow")
@pytest.mark.parametrize("killer", [Killer(5, signal.SIGTERM), Killer(5, signal.SIGTERM, twice=True)])
def test_tracker_of_a_stopped_run(
    killer: Killer, tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither running nor finished, also after a second signal, and continues on resume."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    settings = {**SETTINGS, "model.name": tiny_folder("llama"), "data.source": rows_file, "training.logging_steps": 1}
    settings["training.report_to"] = "[mlflow]"
    assert run_training(settings, tmp_path, killer=killer) == (130 if killer.twice else 75)
    run = tmp_path / "run-a5-s0"
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == ("interrupted" if killer.twice else "preempted")
    client = mlflow.MlflowClient((run / "trackers" / "mlflow").as_uri())
    assert client.get_run(record["trackers"]["mlflow"]["id"]).info.status == "KILLED"
    assert run_training(settings, tmp_path, resume=run) == 0
    assert mlflow_rows(run / "trackers" / "mlflow") == tuple(close(logged(run)))


@pytest.mark.slow
@needs("tensorboard")
def test_tracker_of_a_sweep(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> None:
    """Each cell has a sub-folder in the sweep's folder, and so has the verdict."""
    settings = {**SETTINGS, "data.held_out_rows": 8, "evaluation.samples": 0, "sweep.answers": "false"}
    settings |= {"model.name": tiny_folder("llama"), "data.source": rows_file, "output_dir": tmp_path}
    settings |= {"data.max_rows": 60, "training.max_steps": 2, "sweep.alphas": "[0, 5]", "sweep.seeds": 1}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    said = neft_process("sweep-alpha", *sets, "--report-to", "tensorboard")
    assert said.code == 0, said.err
    folder = tmp_path / "run-sweep" / "trackers" / "tensorboard"
    cells = {"run-a0-s0", "run-a5-s0"}
    assert {path.name for path in folder.iterdir()} == {*cells, "run-sweep-verdict"}
    for path in map(folder.joinpath, cells):
        assert tensorboard_rows(path) == tuple(close(logged(tmp_path / "run-sweep" / "cells" / path.name)))


def tensorboard_verdict(store: Path, name: str) -> tuple[dict[str, float], str]:
    """Read the numbers and the text of a verdict that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = store / "tensorboard" / name
    shown = EventAccumulator(str(folder if folder.is_dir() else folder.parent))
    shown.Reload()
    tags = [tag for tag in shown.Tags()["scalars"] if tag.startswith("verdict/")]
    *_, text = [event.tensor_proto.string_val[0].decode() for event in shown.Tensors("verdict/text_summary")]
    values = {tag: [event.value for event in shown.Scalars(tag)] for tag in tags}  # a tag may be purged
    return {tag: numbers[-1] for tag, numbers in values.items() if numbers}, text


def mlflow_verdict(store: Path, name: str) -> tuple[dict[str, float], str]:
    """Read the numbers and the text of a verdict in a file store."""
    import mlflow

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = mlflow.MlflowClient((store / "mlflow").absolute().as_uri())
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    [run] = [run for run in runs if run.info.run_name == name]
    assert run.info.status == "FINISHED"
    numbers = {key: value for key, value in run.data.metrics.items() if key.startswith("verdict/")}
    return numbers, run.data.tags["neft.verdict"]


def wandb_verdict(store: Path, name: str) -> tuple[dict[str, float], str]:
    """Read the numbers and the text of a verdict in the summary of an offline run, whose parts share an id."""
    from wandb.proto.wandb_internal_pb2 import Record

    summary: dict[str, Any] = {}
    names: dict[str, set[str]] = {}
    for file in sorted(store.glob("wandb/offline-run-*/*.wandb")):
        for content in read_wandb_records(file.read_bytes()):
            record = Record.FromString(content)
            if record.run.run_id:
                names.setdefault(record.run.display_name, set()).add(record.run.run_id)
                is_wanted = record.run.display_name == name
            for item in record.summary.update:
                key = item.key or "/".join(item.nested_key)
                if is_wanted and key.startswith("verdict/"):
                    summary[key] = json.loads(item.value_json)
    assert len(names[name]) == 1
    return summary, summary.pop("verdict/text")


def trackio_verdict(store: Path, name: str) -> tuple[dict[str, float], str]:
    """Read the numbers and the text of a verdict in a local database."""
    import sqlite3

    with sqlite3.connect(store / "trackio" / "neft.db") as database:
        query = "SELECT metrics FROM metrics WHERE run_name = ? ORDER BY step"
        rows = [json.loads(metrics) for (metrics,) in database.execute(query, (name,))]
    *_, row = [row for row in rows if "verdict/text" in row]
    numbers = {key: value for key, value in row.items() if key.startswith("verdict/") and key != "verdict/text"}
    return numbers, row["verdict/text"]["_value"]


VERDICT_READERS = {
    "tensorboard": tensorboard_verdict,
    "mlflow": mlflow_verdict,
    "wandb": wandb_verdict,
    "trackio": trackio_verdict,
}


def numbers_of(comparison: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the numbers of a comparison as trackers get them."""
    names = {"difference": "difference", "low": "ci_low", "high": "ci_high", "p_adjusted": "p"}
    values = {f"verdict/{prefix}/{name}": comparison[key] for key, name in names.items()}
    return {name: pytest.approx(value, rel=1e-6) for name, value in values.items() if value is not None}


@pytest.mark.slow
@pytest.mark.parametrize("tracker", [pytest.param(tracker, marks=needs(tracker)) for tracker in READERS])
def test_tracker_of_a_verdict(
    tracker: str, tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has the verdict of --with-baseline, beside its rows; that of a second evaluation is the latest."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = quick_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs")
    result = neft_process(*arguments, "--with-baseline", "--report-to", tracker, "--json")
    assert result.code == 0, result.err
    run = tmp_path / "runs" / "tiny-a5-s0"
    for _ in range(2):
        [report] = [event for event in events(result.out) if "comparisons" in event]
        numbers, text = VERDICT_READERS[tracker](run / "trackers", run.name)
        expected: dict[str, Any] = {}
        for comparison in report["comparisons"]:
            if comparison["against"] == "baseline":
                expected |= numbers_of(comparison, comparison["metric"])
        assert numbers == expected
        assert [line for line in text.splitlines() if line] == [*report["conclusion"], report["scope"]]
        baseline = tmp_path / "runs" / "tiny-a0-s0"
        result = neft_process("eval", str(run), "--baseline", str(baseline), "--max-rows", "10", "--json")
        assert result.code == 0, result.err
        opened = [event["tracker"] for event in events(result.out) if event["event"] == "tracker.opened"]
        assert opened == [tracker]
    if tracker != "mlflow":  # its reader expects one run only
        assert READERS[tracker](run) == tuple(close(logged(run)))
    alone = neft_process("eval", str(run), "--no-answers", "--json")
    assert not [event for event in events(alone.out) if event["event"] == "tracker.opened"]


@pytest.mark.slow
@pytest.mark.parametrize("tracker", [pytest.param(tracker, marks=needs(tracker)) for tracker in READERS])
def test_tracker_of_a_sweeps_verdict(
    tracker: str, tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a run of its own in the sweep's group, which the same sweep updates."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = {**SETTINGS, "data.held_out_rows": 8, "evaluation.samples": 0, "sweep.answers": "false"}
    settings |= {"model.name": tiny_folder("llama"), "data.source": rows_file, "output_dir": tmp_path}
    settings |= {"data.max_rows": 60, "training.max_steps": 2, "sweep.alphas": "[0, 5]", "sweep.seeds": 1}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    sweep = tmp_path / "run-sweep"
    for command in (
        ("sweep-alpha", *sets, "--report-to", tracker),
        ("sweep-alpha", str(sweep), "--metric", "token_accuracy"),
    ):
        result = neft_process(*command, "--json")
        assert result.code == 0, result.err
        [report] = [event for event in events(result.out) if "arms" in event]
        numbers, text = VERDICT_READERS[tracker](sweep / "trackers", "run-sweep-verdict")
        [arm] = [arm for arm in report["arms"] if arm["comparisons"]]
        [comparison] = arm["comparisons"]
        expected = numbers_of(comparison, f"alpha_5/{report['metrics'][0]}")
        assert expected.items() <= numbers.items()
        assert [line for line in text.splitlines() if line] == [*report["conclusion"], report["scope"]]
    ids = json.loads((sweep / "trackers" / "verdict.json").read_text())
    assert list(ids) == [tracker]


def python(script: str, *arguments: object, cwd: Path, **environment: str) -> Any:
    """Run a Python script in a new process, and return what it prints, parsed as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


THREE_RUNS = """
import json, os, sys
from unittest.mock import patch

import neftcli
from neftcli.events import TrackerOpened
from transformers.integrations import MLflowCallback, TrackioCallback, WandbCallback

class Observer:
    views = []

    def notify(self, event):
        if isinstance(event, TrackerOpened):
            self.views.append(event.view)

tracker, settings = sys.argv[1], json.loads(sys.argv[2])
callback = {"mlflow": MLflowCallback, "trackio": TrackioCallback, "wandb": WandbCallback}[tracker]
before = dict(os.environ)
with patch.object(callback, "on_log", side_effect=OSError("no such server")):
    runs = [neftcli.train(None, settings, progress=Observer())]
runs += [neftcli.train(None, settings, progress=Observer()) for _ in range(2)]
changed = {name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}
print(json.dumps([[str(run.folder) for run in runs], Observer.views, sorted(changed)]))
"""
VIEWS = {
    "mlflow": "MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {}",
    "trackio": "TRACKIO_DIR={} trackio show --project neft",
    "wandb": "wandb sync {}",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "tracker", [pytest.param(tracker, marks=needs(tracker)) for tracker in ("mlflow", "trackio", "wandb")]
)
def test_tracker_of_three_runs_in_one_process(
    tracker: str, tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    """Each run has a store of its own, also after a run in which the tracker has failed; no setting is left."""
    settings = {"name": "run", "model.name": str(tiny_folder("llama")), "data.source": str(rows_file)}
    settings |= {"output_dir": str(tmp_path / "my runs"), "training.max_steps": 2, "training.logging_steps": 1}
    settings |= {"training.report_to": [tracker], "training.precision": "float32", "evaluation.samples": 0}
    environment = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": "", "TRACKIO_DIR": ""}
    folders, views, changed = python(THREE_RUNS, tracker, json.dumps(settings), cwd=tmp_path, **environment)
    runs, problems = [Path(folder) for folder in folders], ["OSError: no such server", "", ""]
    for run, view, problem in zip(runs, views, problems, strict=True):
        record = json.loads((run / "run.json").read_text())
        assert (record["status"], record["trackers"][tracker]["problem"]) == ("finished", problem)
        location = record["trackers"][tracker]["location"]
        assert Path(unquote(location.removeprefix("file://"))).is_relative_to(run)
        assert shlex.split(view) == [word.format(location) for word in VIEWS[tracker].split()]
    for run in runs[1:]:
        assert READERS[tracker](run) == tuple(close(logged(run)))
    settings_left = [name for name in changed if name.startswith(("MLFLOW_", "TRACKIO_", "WANDB_"))]
    assert settings_left in ([], ["WANDB_SERVICE"])  # the address of wandb's process


WANDB_RUN = """
import json, os, sys
from pathlib import Path
from neftcli.trackers.backends import TrackedRun, Wandb

backend = Wandb(TrackedRun("run", Path("store")))
backend.start()
backend.finish("finished")
print(json.dumps([backend.location, backend.view]))
"""


@pytest.mark.slow
@needs("wandb")
def test_wandb_leaves_the_links_of_the_user(tmp_path: Path) -> None:
    """Only the run's folder is without links, even if WANDB_DIR is the home folder."""
    home = tmp_path / "my home"
    (home / "wandb").mkdir(parents=True)
    (home / "models").symlink_to(tmp_path)
    (home / "wandb" / "latest-run").symlink_to(tmp_path)
    location, view = python(WANDB_RUN, cwd=tmp_path, WANDB_DIR=str(home), WANDB_MODE="offline")
    assert (home / "models").is_symlink()
    assert (home / "wandb" / "latest-run").is_symlink()
    assert Path(location).parent == home / "wandb"
    assert not [path for path in Path(location).rglob("*") if path.is_symlink()]
    assert view == f"wandb sync '{location}'"
