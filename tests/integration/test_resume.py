"""`neft train --resume`: rejections, messages, and the safety of the run's files.

Oracles: the uninterrupted run, a disk that is really full, a folder that is really read-only.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from neftcli.runs.directory import RunDirectory
from tests.conftest import Result, file_system
from tests.killed_runs import LORA, SETTINGS, Killer, run_result, run_training

Neft = Callable[..., Result]
ONE_PROCESS = pytest.mark.xdist_group("resume")
"""Runs the quick tests in one process, so that the stopped run is trained once."""


@pytest.fixture(scope="module")
def stopped(
    tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Train a run that is killed after its seventh step, with checkpoints after the fourth and the sixth."""
    output = tmp_path_factory.mktemp("stopped")
    settings = {**SETTINGS, **LORA, "model.name": tiny_folder("llama"), "data.source": rows_file}
    assert run_training(settings, output, killer=Killer(7)) == -signal.SIGKILL
    return output / "run-a5-s0", settings


@pytest.fixture
def copy(stopped: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """Return a copy of the stopped run, to be changed."""
    shutil.copytree(stopped[0], tmp_path / "run-a5-s0")
    return tmp_path / "run-a5-s0"


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, except the lock of a killed process and the output of libraries."""
    found = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in (".lock", "train.log"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


@ONE_PROCESS
def test_resume_stopped_run(neft: Neft, copy: Path, stopped: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    said = neft("train", "--resume", copy)
    assert said.code == 0, said.err
    assert f"resuming after step 6, from {copy}/checkpoints/checkpoint-6" in " ".join((said.out + said.err).split())
    assert run_training(stopped[1], tmp_path / "whole") == 0
    assert run_result(copy) == run_result(tmp_path / "whole" / "run-a5-s0")
    again = neft("train", "--resume", copy)
    assert again.code == 2
    assert "this run is finished" in again.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "expected_message"),
    [
        (["--alpha", "10"], "neftune.alpha differs from that of checkpoint-6\n  got      10 (checkpoint-6: 5)"),
        (["--seed", "1"], "training.seed differs from that of checkpoint-6\n  got      1 (checkpoint-6: 0)"),
        (["--batch-size", "2"], "training.per_device_train_batch_size differs from that of checkpoint-6\n"),
        (["--max-rows", "30"], "data.max_rows differs from that of checkpoint-6\n  got      30 (checkpoint-6: 36)"),
        (["--lora-r", "4"], "adapter.r differs from that of checkpoint-6\n  got      4 (checkpoint-6: 2)"),
        (["--model", "opt-350m"], "model.name differs from that of checkpoint-6\n"),
        (["--epochs", "3", "--set", "neftune.noise=gaussian"], "2 errors"),
        (
            ["--learning-rate", "1e-4", "--accept-changes"],
            "training.learning_rate differs from that of checkpoint-6, which can't be accepted\n",
        ),
        (["--set", "training.logging_steps=null"], "got      the default (checkpoint-6: 3)"),
        (["--set", "training.fused_layers=false"], "got      false (checkpoint-6: true)"),
        (["--samples", "2", "--accept-changes"], "evaluation.samples differs from that of checkpoint-6, which can't"),
        (["--name", "other"], "--name and --resume can't be combined\n  got      --name other"),
        (["--output-dir", "other"], "--output-dir and --resume can't be combined\n"),
    ],
)
def test_resume_different_recipe(neft: Neft, copy: Path, typed: list[str], expected_message: str) -> None:
    before = files(copy)
    said = neft("train", "--resume", copy, *typed)
    assert said.code == 2
    assert expected_message in said.err
    assert "Traceback" not in said.err
    assert files(copy) == before


@pytest.mark.slow
def test_resume_edited_recipe(neft: Neft, copy: Path) -> None:
    file = copy / "recipe.yaml"
    file.write_text(file.read_text().replace("learning_rate: 0.005", "learning_rate: 0.05"))
    said = neft("train", "--resume", copy)
    assert said.code == 2
    assert "training.learning_rate differs from that of checkpoint-6\n  got      0.05 (checkpoint-6: 0.005)" in said.err


@pytest.mark.slow
def test_resume_accepted_change(neft: Neft, copy: Path) -> None:
    said = neft("train", "--resume", copy, "--alpha", "10", "--accept-changes")
    assert said.code == 0, said.err
    [entry] = json.loads((copy / "run.json").read_text())["resumed"]
    assert entry["changes"] == {"neftune.alpha": [5.0, 10.0]}
    assert re.search(r"^finished: .* in \d+s \(\d+s with earlier commands\)$", said.out, re.MULTILINE)
    mixed = "neftune.alpha 5 up to step 6, then 10"
    assert f"from here on the run is mixed: {mixed}" in " ".join(said.out.split())
    assert f"| mixed | `{mixed}` |" in (copy / "model" / "README.md").read_text()
    assert "alpha: 10" in (copy / "recipe.yaml").read_text()
    said = neft("train", "--resume", copy, "--lora-r", "4", "--accept-changes")
    assert said.code == 2


@pytest.fixture
def movable(stopped: tuple[Path, dict[str, Any]], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return a killed run's folder, and its own copies of the rows and the model."""
    rows, model = tmp_path / "rows.jsonl", tmp_path / "model"
    shutil.copy(stopped[1]["data.source"], rows)
    shutil.copytree(stopped[1]["model.name"], model)
    own = {**stopped[1], "data.source": rows, "model.name": model}
    assert run_training(own, tmp_path / "own", killer=Killer(5)) == -signal.SIGKILL
    return tmp_path / "own" / "run-a5-s0", rows, model


def change_last_byte(file: Path) -> None:
    """Change the weights, not their shapes."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def change_settings(file: Path) -> None:
    """Change the model's configuration, not its weights."""
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 1e-3}))


@pytest.mark.slow
def test_resume_changed_rows_or_model(
    neft: Neft, stopped: tuple[Path, dict[str, Any]], movable: tuple[Path, Path, Path]
) -> None:
    folder, rows, model = movable
    rows.write_text(rows.read_text().replace("Apple", "Pear"))
    before = files(folder)
    said = neft("train", "--resume", folder)
    assert said.code == 2
    assert f"{rows}: the rows changed since checkpoint-4" in said.err
    assert "1 error;" in said.err
    assert "--accept-changes" in said.err
    assert "resuming" not in said.out
    assert files(folder) == before
    shutil.copy(stopped[1]["data.source"], rows)
    settings = (model / "config.json").read_text()
    change_settings(model / "config.json")
    said = neft("train", "--resume", folder)
    assert said.code == 2
    assert "the model's files changed since checkpoint-4" in said.err
    (model / "config.json").write_text(settings)
    change_last_byte(model / "model.safetensors")
    said = neft("train", "--resume", folder)
    assert said.code == 2
    assert "the model's files changed since checkpoint-4" in said.err


@pytest.mark.slow
def test_resume_moved_rows_and_model(
    neft: Neft, stopped: tuple[Path, dict[str, Any]], movable: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    folder, rows, model = movable
    rows.rename(tmp_path / "moved.jsonl")
    model.rename(tmp_path / "moved")
    said = neft("train", "--resume", folder)
    assert said.code == 2
    assert "2 errors" in said.err
    for expected_message, flag in (
        ("model.name: this folder doesn't exist", "--model"),
        ("data.source: no such file", "--dataset"),
    ):
        assert expected_message in said.err
        assert f"neft train --resume {folder} {flag} PATH    the new path" in said.err
    typed = ["--model", tmp_path / "moved", "--dataset", tmp_path / "moved.jsonl"]
    said = neft("train", "--resume", folder, *typed)
    assert said.code == 0, said.err
    [entry] = json.loads((folder / "run.json").read_text())["resumed"]
    assert entry["changes"] == {
        "model.name": [str(model), str(tmp_path / "moved")],
        "data.source": [str(rows), str(tmp_path / "moved.jsonl")],
    }
    assert run_training(stopped[1], tmp_path / "whole") == 0
    assert run_result(folder) == run_result(tmp_path / "whole" / "run-a5-s0")


@pytest.mark.slow
def test_resume_moved_and_changed_rows_or_model(neft: Neft, movable: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder, rows, model = movable
    before = files(folder)
    shutil.copytree(model, tmp_path / "copy")
    said = neft("train", "--resume", folder, "--model", tmp_path / "copy")  # the old one is still there: no move
    assert said.code == 2
    assert "model.name differs from that of checkpoint-4" in said.err
    model.rename(tmp_path / "moved")
    change_settings(tmp_path / "moved" / "config.json")
    for typed in ([], ["--accept-changes"]):
        said = neft("train", "--resume", folder, "--model", tmp_path / "moved", *typed)
        assert said.code == 2
        assert "the model's files changed since checkpoint-4" in said.err
        assert "--model with the model that the run started from" in said.err
    (tmp_path / "copy").rename(model)
    rows.rename(tmp_path / "moved.jsonl")
    moved = tmp_path / "moved.jsonl"
    moved.write_text(moved.read_text().replace("Apple", "Pear"))
    said = neft("train", "--resume", folder, "--dataset", moved)
    assert said.code == 2
    assert "the rows changed since checkpoint-4" in said.err
    assert files(folder) == before


@pytest.mark.slow
def test_resume_skips_damaged_checkpoint(
    neft: Neft, copy: Path, stopped: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    newest = copy / "checkpoints" / "checkpoint-6"
    (newest / "rng_state.pth").unlink()
    said = neft("train", "--resume", copy, "--json")
    assert said.code == 0, said.err
    assert "checkpoint-6: rng_state.pth is missing" in said.out
    assert "resuming after step 4" in said.out
    assert run_training(stopped[1], tmp_path / "whole") == 0
    assert run_result(copy) == run_result(tmp_path / "whole" / "run-a5-s0")


@pytest.mark.slow
def test_resume_no_checkpoint_verifies(neft: Neft, copy: Path) -> None:
    for place in (copy / "checkpoints").iterdir():
        file = place / "optimizer.pt"
        file.write_bytes(file.read_bytes()[:-10])
    before = files(copy)
    said = neft("train", "--resume", copy)
    assert said.code == 2
    for step in (4, 6):
        assert f"checkpoint-{step}: optimizer.pt has" in said.err
    assert "none of its checkpoints is valid" in said.err
    assert files(copy) == before


@pytest.mark.parametrize(
    ("typed", "expected_message"),
    [
        (["--resume", "nowhere"], "--resume: no such run"),
        (["--accept-changes"], "--accept-changes needs --resume"),
        (["--resume", "x", "--recipe", "quickstart"], "--resume and --recipe can't be combined"),
        (["--resume", "x", "--dry-run"], "--resume and --dry-run can't be combined"),
        (["--resume", "my run", "--dry-run"], "hint     neft train --resume 'my run'\n"),
        (["--requeue-signal", "SIGNOTHING"], "--requeue-signal must be one of SIGUSR1, "),
        (["--requeue-signal", "SIGCHLD"], "--requeue-signal must be one of SIGUSR1, "),
        (["--recipe", ""], "no such recipe"),
    ],
)
def test_resume_bad_flags(neft: Neft, typed: list[str], expected_message: str) -> None:
    said = neft("train", *typed)
    assert said.code == 2
    assert expected_message in said.err


@pytest.mark.slow
def test_resume_locked_run(neft: Neft, copy: Path) -> None:
    from neftcli.runs.directory import RunDirectory

    with RunDirectory(copy).lock():
        said = neft("train", "--resume", copy)
    assert said.code == 2
    assert "another process is training this run" in said.err


@pytest.mark.slow
def test_full_disk_during_training(neft: Neft, stopped: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    assert run_training(stopped[1], tmp_path / "whole") == 0
    typed = [part for key, value in stopped[1].items() for part in ("--set", f"{key}={value}")]
    small = tmp_path / "small"
    with file_system(small, "-t", "tmpfs", "-o", "size=1500k", "tmpfs"):
        folder = small / "run-a5-s0"
        process = subprocess.Popen(
            [sys.executable, "-m", "neftcli", "train", *typed, "--output-dir", small],
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not list(folder.glob("checkpoints/*/manifest.json")):
            time.sleep(0.005)
        filler = small / "filler"
        with filler.open("wb") as file:
            try:
                while True:
                    os.write(file.fileno(), bytes(4096))
            except OSError:
                pass
        _, said = process.communicate()
        assert process.returncode == 1, said
        assert "the disk is full" in said
        assert "is saved, after step" in said
        assert f"neft train --resume {folder}" in said.replace("\n", " ")
        assert "Traceback" not in said
        filler.unlink()
        assert neft("train", "--resume", folder).code == 0
        assert run_result(folder) == run_result(tmp_path / "whole" / "run-a5-s0")


@pytest.mark.slow
def test_full_disk_before_training(neft: Neft, copy: Path, tmp_path: Path) -> None:
    """A new run leaves nothing; a stopped run is unchanged."""
    with file_system(tmp_path / "small", "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        folder = tmp_path / "small" / "run-a5-s0"
        shutil.copytree(copy, folder)
        before = files(folder)
        with (tmp_path / "small" / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        said = neft("train", "--resume", folder)
        assert said.code == 1
        assert f"the disk is full; {folder}/checkpoints/checkpoint-6 is saved" in said.err
        assert f"make room, then neft train --resume {folder}" in said.err
        assert files(folder) == before
        said = neft("train", "--max-steps", "1", "--output-dir", tmp_path / "small")
        assert said.code == 1
        assert "the disk is full; nothing was started" in said.err
        assert "make room, then run the same command again" in said.err
        assert {item.name for item in (tmp_path / "small").iterdir()} == {"run-a5-s0", "filler"}


@ONE_PROCESS
def test_resume_missing_recipe(neft: Neft, copy: Path) -> None:
    (copy / "recipe.yaml").unlink()
    said = neft("train", "--resume", copy)
    assert said.code == 2
    assert f"cp {copy}/checkpoints/checkpoint-6/recipe.yaml {copy}/    restores" in said.err
    shutil.copy(copy / "checkpoints" / "checkpoint-6" / "recipe.yaml", copy)
    assert neft("train", "--resume", copy).code == 0


@pytest.mark.slow
def test_full_disk_at_the_last_write(
    neft: Neft, stopped: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record can't say "finished"; the message names what is saved, and the run finishes once there is space."""
    typed = [part for key, value in stopped[1].items() for part in ("--set", f"{key}={value}")]
    write = RunDirectory.write_json

    def full(self: RunDirectory, name: str, content: Any) -> None:
        if content.get("status") == "finished":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "write_json", full)
        said = neft("train", *typed, "--output-dir", tmp_path)
    folder = tmp_path / "run-a5-s0"
    assert said.code == 1
    assert f"the disk is full; the tuned model is in {folder}/model" in said.err.replace("\n", " ")
    assert neft("train", "--resume", folder).code == 0
    assert run_training(stopped[1], tmp_path / "whole") == 0
    assert run_result(folder) == run_result(tmp_path / "whole" / "run-a5-s0")


@pytest.mark.slow
def test_full_disk_for_the_model(neft: Neft, stopped: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    typed = [part for key, value in stopped[1].items() for part in ("--set", f"{key}={value}")]
    with file_system(tmp_path / "small", "-t", "tmpfs", "-o", "size=200k", "tmpfs"):
        said = neft("train", *typed, "--set", "adapter.r=64", "--output-dir", tmp_path / "small")
        assert said.code == 2
        assert "the disk has no space for the tuned model" in said.err
        assert list((tmp_path / "small").iterdir()) == []


@pytest.mark.slow
def test_resume_read_only_folder(neft: Neft, copy: Path, tmp_path: Path) -> None:
    with file_system(tmp_path / "runs", "--bind", str(tmp_path / "run-a5-s0")):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(tmp_path / "runs")], check=True)
        said = neft("train", "--resume", tmp_path / "runs")
        assert said.code == 2
        assert "can't be written" in said.err
        assert "Read-only file system" in said.err
