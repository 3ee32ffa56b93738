"""`neft sweep-alpha` on a tiny model, with real worker processes.

Oracles: the same recipe trained by `neft train` alone, the files that a sweep must have, and an uninterrupted sweep.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neftcli.data.splits import normalize_prompt
from tests.conftest import Result, events, neft_process
from tests.judge_server import judge_server, prefers_longer
from tests.tiny_sweep import hash_cells, start_sweep, sweep_arguments, wait_for, weights_hash

Neft = Callable[..., Result]


@pytest.fixture
def arguments(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> list[str]:
    """Return the arguments of a sweep into `tmp_path/runs`."""
    return sweep_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs")


def report_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return content


def mean_loss(cells: list[dict[str, Any]]) -> float:
    """Return the held-out loss over seeds and rows, in nats per token."""
    losses = [cell["metrics"]["held_out_loss"] for cell in cells]
    nats, tokens = (sum(sum(loss[part]) for loss in losses) for part in ("values", "weights"))
    return float(nats / tokens)


@pytest.mark.slow
def test_sweep_alpha_fourth_cell_equals_train_alone(neft: Neft, arguments: list[str], tmp_path: Path) -> None:
    """Bit for bit, although its worker trained three cells before it."""
    assert neft(*arguments).code == 0
    folder = tmp_path / "runs" / "tiny-sweep"
    recipe = folder / "cells" / "tiny-a5-s1" / "recipe.yaml"
    assert neft("train", "--recipe", recipe, "--output-dir", tmp_path / "alone").code == 0
    assert weights_hash(tmp_path / "alone" / "tiny-a5-s1") == hash_cells(folder)["tiny-a5-s1"]


def test_sweep_alpha_report_and_second_run(
    neft: Neft, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = neft(*arguments, "--json")
    assert result.code == 0, result.err
    folder = tmp_path / "runs" / "tiny-sweep"
    report = events(result.out)[-1]
    assert report["event"] == "sweep.report"
    assert [(arm["alpha"], arm["seeds"]) for arm in report["arms"]] == [(0, 2), (5, 2)]
    [comparison] = report["arms"][1]["comparisons"]
    cells = {state["arm"]: [] for state in report_of(folder)["cells"]}
    for state in report_of(folder)["cells"]:
        cells[state["arm"]].append(json.loads((Path(state["run"]) / "evaluation" / "cell.json").read_text()))
    assert comparison["n"] == len({normalize_prompt(prompt) for prompt in cells["neftune.alpha=0"][0]["prompts"]})
    means = {arm: mean_loss(contents) for arm, contents in cells.items()}
    assert comparison["difference"] == pytest.approx(means["neftune.alpha=5"] - means["neftune.alpha=0"], rel=1e-9)
    assert {file.name for file in folder.iterdir()} >= {"sweep.json", "cells.csv", "verdict.md", "plots", "best"}
    assert {file.name for file in (folder / "plots").iterdir()} >= {"held-out-loss.png", "learning-curves.svg"}
    rows = list(csv.DictReader((folder / "cells.csv").read_text().splitlines()))
    assert [(row["arm"], row["seed"], row["status"]) for row in rows] == [
        ("neftune.alpha=0", "0", "finished"),
        ("neftune.alpha=5", "0", "finished"),
        ("neftune.alpha=0", "1", "finished"),
        ("neftune.alpha=5", "1", "finished"),
    ]
    assert (folder / "best" / "run.json").is_file()
    # Again by its folder: nothing is trained, the report is the same.
    stamps = {file: file.stat().st_mtime_ns for file in folder.rglob("model/*")}
    again = events(neft("sweep-alpha", folder, "--json").out)
    assert [one["status"] for one in again if one["event"] == "sweep.cell"] == []
    [plan] = [one for one in again if one["event"] == "sweep.started"]
    assert [state["status"] for state in plan["cells"]] == ["finished"] * 4
    assert {key: again[-1][key] for key in ("arms", "conclusion")} == {
        key: report[key] for key in ("arms", "conclusion")
    }
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("model/*")} == stamps
    assert again[-1]["retried"] == []
    rows = list(csv.DictReader((folder / "cells.csv").read_text().splitlines()))
    assert {(row["step"], row["total_steps"]) for row in rows} == {("3", "3")}
    # Different options would be different cells in the same table.
    refused = neft("sweep-alpha", folder, "--max-steps", "4")
    assert refused.code == 2
    assert "the cells of the sweep in this folder were trained differently" in refused.err
    assert "training.max_steps 4 (there 3)" in refused.err
    dry_run = neft("sweep-alpha", folder, "--max-steps", "4", "--dry-run")
    assert (dry_run.code, "alpha" in dry_run.out) == (2, False)
    monkeypatch.chdir(tmp_path)
    other = events(neft("sweep-alpha", folder, "--max-steps", "4", "--name", "more", "--dry-run", "--json").out)
    assert [one["folder"] for one in other if one["event"] == "sweep.started"] == [f"{tmp_path}/runs/more-sweep"]
    # With fewer seeds the verdict and `best` of a finished sweep would be replaced.
    written = {name: (folder / name).read_bytes() for name in ("sweep.json", "verdict.md", "recipe.yaml", "cells.csv")}
    fewer = neft("sweep-alpha", folder, "--seeds", "1")
    assert (fewer.code, fewer.out) == (2, "")
    assert "is finished, and its report would lose 2 of its 4 cells" in fewer.err
    assert {name: (folder / name).read_bytes() for name in written} == written
    assert (folder / "best").is_symlink()
    # A truncated model counts as missing.
    [weights] = (folder / "cells" / "tiny-a5-s1" / "model").glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    [plan] = [
        one for one in events(neft("sweep-alpha", folder, "--seeds", "2", "--dry-run", "--json").out) if "cells" in one
    ][:1]
    assert [state["status"] for state in plan["cells"]] == ["finished", "finished", "finished", "waiting"]
    weights.write_bytes(whole)
    assert neft("eval", folder / "cells" / "tiny-a0-s0", "--no-base", "--no-answers").code == 0


@pytest.mark.slow
def test_sweep_alpha_with_more_seeds(neft: Neft, arguments: list[str], tmp_path: Path) -> None:
    """Existing cells stay."""
    folder = tmp_path / "runs" / "tiny-sweep"
    assert neft(*arguments, "--seeds", "1").code == 0
    before = hash_cells(folder)
    more = events(neft("sweep-alpha", folder, "--seeds", "2", "--json").out)
    assert [arm["seeds"] for arm in more[-1]["arms"]] == [2, 2]
    assert hash_cells(folder).items() >= before.items()


def worker_of(process: subprocess.Popen[str], but: int = 0) -> int:
    """Return the process id of a sweep's worker other than `but`, which may be a zombie."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    command = (entry / "cmdline").read_text()
                except OSError:
                    continue
                if parent == process.pid and "spawn_main" in command and int(entry.name) != but:
                    return int(entry.name)
        time.sleep(0.02)
    raise AssertionError("no worker came")


@pytest.mark.slow
def test_sweep_alpha_killed_worker_and_killed_sweep(neft: Neft, arguments: list[str], tmp_path: Path) -> None:
    """After kill -9 of a worker and of the sweep, all cells are those of an uninterrupted sweep."""
    folder = tmp_path / "runs" / "tiny-sweep"
    done = lambda: (folder / "cells" / "tiny-a0-s0" / "evaluation" / "cell.json").is_file()  # noqa: E731
    process = start_sweep([*arguments, "--json"])
    worker = worker_of(process)
    wait_for(done, process)
    os.kill(worker, signal.SIGKILL)
    second = worker_of(process, but=worker)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{second}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{second}").exists(), "a worker outlives its sweep"
    result = neft("sweep-alpha", folder, "--json")
    assert result.code == 0, result.err
    stream = events(result.out)
    [plan] = [event for event in stream if event["event"] == "sweep.started"]
    assert plan["cells"][0]["status"] == "finished"
    undisturbed = tmp_path / "other"
    assert neft(*arguments, "--output-dir", undisturbed, "--set", f"output_dir={undisturbed}").code == 0
    assert hash_cells(folder) == hash_cells(undisturbed / "tiny-sweep")


@pytest.mark.slow
def test_sweep_alpha_names_a_retried_cell(neft: Neft, arguments: list[str], tmp_path: Path) -> None:
    """A cell whose worker was killed is named in the lines, the table and the verdict."""
    arguments = [*arguments, "--seeds", "1", "--set", "training.logging_steps=1"]
    folder = tmp_path / "runs" / "tiny-sweep"
    process = start_sweep([*arguments, "--set", "training.max_steps=60", "--json"])
    worker = worker_of(process)
    wait_for(lambda: any((folder / "cells").glob("*/metrics.jsonl")), process)
    os.kill(worker, signal.SIGKILL)
    out, output = process.communicate(timeout=120)
    assert process.returncode == 0, output
    stream = events(out)
    died = "alpha 0, seed 0 is retried: the worker that trained it died: signal 9"
    assert [one["message"] for one in stream if one["event"] == "notice" and "retried" in one["message"]] == [died]
    assert [state["retries"] for state in stream[-1]["retried"]] == [1]
    assert "alpha 0, seed 0 was restarted (try 2)" in (folder / "verdict.md").read_text()
    rows = csv.DictReader((folder / "cells.csv").read_text().splitlines())
    assert [(row["status"], row["retries"]) for row in rows] == [("finished", "1"), ("finished", "0")]


@pytest.mark.slow
def test_sweep_alpha_signal_while_a_worker_starts(neft: Neft, arguments: list[str], tmp_path: Path) -> None:
    """While the worker imports libraries no cell starts, and the printed command resumes."""
    arguments = [*arguments, "--seeds", "1", "--set", "sweep.answers=false"]
    folder = tmp_path / "runs" / "tiny-sweep"
    process = start_sweep(arguments)
    worker_of(process)
    os.killpg(process.pid, signal.SIGINT)
    out, output = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "Traceback" not in out + output
    assert f"neft sweep-alpha {folder}    resumes it" in output
    assert not list((folder / "cells").glob("*/metrics.jsonl"))
    assert neft("sweep-alpha", folder).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("sent_signal", [signal.SIGINT, signal.SIGTERM])
def test_sweep_alpha_stops_after_the_step_on_a_signal(
    sent_signal: signal.Signals, neft: Neft, arguments: list[str], tmp_path: Path
) -> None:
    arguments = [*arguments, "--seeds", "1", "--set", "training.logging_steps=1"]
    folder = tmp_path / "runs" / "tiny-sweep"
    process = start_sweep([*arguments, "--set", "training.max_steps=200"])
    wait_for(lambda: any((folder / "cells").glob("*/metrics.jsonl")), process)
    other = neft_process("sweep-alpha", folder)
    assert other.code == 2
    assert "another sweep is running in this folder" in other.err
    os.killpg(process.pid, sent_signal)
    _, output = process.communicate(timeout=90)
    assert process.returncode == 75
    assert "2 of 2 cells are left" in output
    assert f"neft sweep-alpha {folder}    resumes it" in output
    [run] = (folder / "cells").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "preempted"
    [checkpoint] = (run / "checkpoints").iterdir()
    assert neft("sweep-alpha", folder).code == 0
    [resumed] = json.loads((run / "run.json").read_text())["resumed"]
    assert resumed["checkpoint"] == checkpoint.name
    assert neft("train", "--recipe", run / "recipe.yaml", "--output-dir", tmp_path / "alone").code == 0
    assert weights_hash(tmp_path / "alone" / run.name) == weights_hash(run)


@pytest.mark.slow
def test_sweep_alpha_failing_arm(neft: Neft, arguments: list[str], tmp_path: Path) -> None:
    """If a learning rate ends in NaN, the other point of the grid is finished."""
    result = neft(*arguments, "--seeds", "1", "--grid", "training.learning_rate=1e-3,1e30", "--json")
    assert result.code == 1
    [report] = [event for event in events(result.out) if event["event"] == "sweep.report"]
    assert {state["arm"] for state in report["failed"]} == {
        "neftune.alpha=0 training.learning_rate=1e+30",
        "neftune.alpha=5 training.learning_rate=1e+30",
    }
    assert [arm["seeds"] for arm in report["arms"]] == [1, 1, 0, 0]
    assert "became" in result.err
    assert "leave its arm out, or neft sweep-alpha" in result.err


@pytest.mark.slow
def test_sweep_alpha_second_ctrl_c_stops_immediately(arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny-sweep"
    process = start_sweep([*arguments, "--set", "training.max_steps=4000"])
    wait_for(lambda: any((folder / "cells").glob("*/metrics.jsonl")), process)
    worker = worker_of(process)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert not Path(f"/proc/{worker}").exists()


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_sweep_alpha_judge_and_tasks(neft: Neft, arguments: list[str], tmp_path: Path) -> None:
    """Several metrics decide together; the judge is asked once for each pair and order."""
    data = tmp_path / "letters.jsonl"
    rows = [{"question": f"{n} or {n + 1}?", "choices": ["a", "b"], "answer": n % 2} for n in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "letters.yaml").write_text(
        f"task: letters\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {data}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{answer}}'\nmetric_list:\n  - metric: acc\n"
    )
    with judge_server(prefers_longer) as server:
        extra = [
            "--seeds",
            "1",
            "--metric",
            "win_rate_length_controlled,held_out_loss",
            "--judge",
            server.url,
            "--judge-model",
            "m",
        ]
        result = neft(*arguments, *extra, "--json")
        assert result.code == 0, result.err
        requests = len(server.requests)
        again = events(neft("sweep-alpha", tmp_path / "runs" / "tiny-sweep", "--json").out)[-1]
        assert len(server.requests) == requests
    report = events(result.out)[-1]
    assert again["arms"] == report["arms"]
    controlled = "win_rate_length_controlled"
    assert report["metrics"] == [controlled, "held_out_loss"]
    assert report["arms"][0]["values"]["win_rate"]["value"] == report["arms"][0]["values"][controlled]["value"] == 0.5
    assert [one["metric"] for one in report["arms"][1]["comparisons"]] == [controlled, "held_out_loss"]
    tasks = ["--metric", "tasks", "--tasks", str(tmp_path / "letters.yaml"), "--name", "other", "--seeds", "1"]
    report = events(neft(*arguments, *tasks, "--set", "name=other", "--json").out)[-1]
    assert report["metrics"] == ["letters/acc"]


@pytest.mark.slow
def test_sweep_alpha_dry_run(
    neft: Neft,
    tiny_folder: Callable[[str], Path],
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cells and times are shown as lines and as JSON, with a real forward pass, and no file is created."""
    arguments = sweep_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs", alphas="5")
    written = tmp_path / "temporary"
    written.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(written))
    result = neft(*arguments, "--dry-run")
    assert result.code == 0, result.err
    assert "2 arms x 2 seeds = 4 cells" in result.out
    assert "alpha 0 was added" in result.out
    assert re.search(r"estimate: about .* per cell, .* in all \(4 cells, 1 worker\)\n", result.out)
    basis = "estimated from a timed forward pass on this machine; a finished cell gives a better estimate"
    assert f"estimate: {basis}\n" in result.out
    assert "note: every answer is assumed to have the maximum length, 4 tokens\n" in result.out
    grid = ["--grid", "training.per_device_train_batch_size=2,8", "--set", "training.max_steps=1", "--seeds", "1"]
    *_, found = events(neft(*arguments, *grid, "--set", "sweep.answers=false", "--dry-run", "--json").out)
    assert found["event"] == "sweep.estimate"
    assert [cell["arm"] for cell in found["cells"]] == [
        f"neftune.alpha={alpha} training.per_device_train_batch_size={size}" for size in (2, 8) for alpha in (0, 5)
    ]
    assert 0 < sum(cell["seconds"] for cell in found["cells"]) < found["seconds"]
    assert (found["finished_cells"], found["timed_passes"]) == (0, 2)
    assert list(written.iterdir()) == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_sweep_alpha_dry_run_rejects_an_invalid_model(neft: Neft, arguments: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    dry_run, wet = (neft(*arguments, "--model", broken, *extra) for extra in (["--dry-run"], []))
    assert dry_run.code == 2
    assert dry_run.err.splitlines()[0] in wet.err
    assert not list((tmp_path / "runs").glob("*/cells/*"))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--alphas", "5,five"], "sweep.alphas must be a non-empty list, each a finite number, 0 or more"),
        (["--alphas", "-1"], "sweep.alphas must be a non-empty list, each a finite number, 0 or more"),
        (["--seeds", "0"], "sweep.seeds must be a whole number, above 0"),
        (["--metric", "bleu"], "sweep.metrics must be a non-empty list, each one of held_out_loss"),
        (["--metric", "win_rate_length_controlled"], "sweep.metrics win_rate_length_controlled needs a judge"),
        (["--metric", "tasks"], "sweep.metrics tasks needs tasks"),
        (["--held-out-rows", "4"], "a sweep needs at least 6 held-out rows with different prompts"),
        (["--grid", "training.lr=1"], "training.lr is not an option"),
        (["--engine", "spark"], "--engine: there is no such engine"),
        (["--ray-address", "auto"], "--ray-address needs --engine ray"),
        (["--dataset", "missing.jsonl"], "no such file or folder"),
        (["--set", "training.freeze=[embed_token]"], "training.freeze: the model has no such layer"),
        (
            ["--lora", "--grid", "adapter.modules_to_save=[x],[]"],
            "adapter.modules_to_save: the model has no such layer",
        ),
        (
            ["--lora", "--set", "model.dtype=bfloat16", "--grid", "adapter.init_lora_weights=default,pissa"],
            "adapter.init_lora_weights pissa needs weights in float32",
        ),
    ],
)
def test_sweep_alpha_rejects_invalid_arguments(
    neft: Neft, arguments: list[str], tmp_path: Path, extra: list[str], message: str
) -> None:
    result = neft(*arguments, *extra)
    assert result.code == 2, result.out
    assert message in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_sweep_alpha_rejects_a_folder_of_something_else(
    neft: Neft, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no sweep in this folder" in neft("sweep-alpha", tmp_path).err
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "tiny-sweep"
    (folder / "cells" / "one").mkdir(parents=True)
    (folder / "cells" / "one" / "run.json").write_text("{}")
    (folder / "recipe.yaml").write_text("data: {max_rows: 20}\n")
    near = neft("sweep-alpha", "tiny-swep").err
    assert "did you mean runs/tiny-sweep?" in " ".join(near.split())
    assert "neft sweep-alpha runs/tiny-sweep" in near
    assert "this is a sweep" in neft("train", "--resume", "tiny-sweep").err
    assert "this is a sweep" in neft("eval", folder).err
    result = neft(*arguments)
    assert result.code == 2
    assert "the cells of the sweep in this folder were trained differently" in result.err
