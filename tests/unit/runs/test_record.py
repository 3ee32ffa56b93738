"""`run.json`.

Oracles: the list of fields in this file, written down apart from the code; a secret in the environment, looked for in
every byte that was written; and a `git` that answers what the test tells it to.
"""

import errno
import json
import os
import platform
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import neftcli
from neftcli.recipe.loading import recipe_fingerprint
from neftcli.recipe.schema import Neftune, Recipe, Training
from neftcli.runs.directory import RECORD, RunDirectory
from neftcli.runs.record import RunRecord
from tests.conftest import new_run

RECIPE = Recipe(name="tiny", neftune=Neftune(alpha=10.0, noise="gaussian"), training=Training(seed=3))
FIELDS = {
    "trackers",
    "status",
    "started",
    "finished",
    "recipe_sha256",
    "model",
    "method",
    "seed",
    "neftune",
    "versions",
    "hardware",
    "git",
    "resumed",
    "environment",
    "paths",
}
PACKAGES = {
    "neftcli", "python", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers",
}  # fmt: skip
SECRET = "hf_secret_0123456789"  # noqa: S105 - it is what must not be found


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return new_run(tmp_path / "runs", "run")


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `git` that runs the shell script in this file."""
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


def written(run: RunDirectory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / RECORD).read_text(encoding="utf-8"))
    return found


def test_record_fields(run: RunDirectory) -> None:
    """A run that is killed in its first second has a record that says it was running."""
    record = RunRecord(run, RECIPE)
    found = written(run)
    assert found == record.fields
    assert found.keys() == FIELDS
    assert (found["status"], found["finished"], found["seed"]) == ("running", None, 3)
    assert found["neftune"] == {"alpha": 10.0, "noise": "gaussian", "length": "tokens", "schedule": "constant"}
    assert found["recipe_sha256"] == recipe_fingerprint(RECIPE)
    assert found["hardware"] == {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
    }


def test_record_versions(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each package that a result depends on; missing packages are recorded as missing."""
    versions = RunRecord(run, RECIPE).fields["versions"]
    assert versions.keys() == PACKAGES
    for package in PACKAGES - {"neftcli", "python"}:
        assert versions[package] == metadata.version(package)
    assert (versions["neftcli"], versions["python"]) == (neftcli.__version__, platform.python_version())

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert RunRecord(run, RECIPE).fields["versions"]["bitsandbytes"] == "not installed"


def test_record_times_have_zones(run: RunDirectory) -> None:
    """ISO 8601 with an offset, and the end is not before the start."""
    record = RunRecord(run, RECIPE)
    record.end("finished")
    started, finished = (datetime.fromisoformat(written(run)[key]) for key in ("started", "finished"))
    assert started.tzinfo is not None
    assert started <= finished


@pytest.mark.parametrize("status", ["finished", "failed", "interrupted"])
def test_record_end(status: str, run: RunDirectory) -> None:
    """The status and the results are recorded; earlier fields stay."""
    record = RunRecord(run, RECIPE)
    record.update(data_sha256="abc")
    assert written(run)["data_sha256"] == "abc"
    assert written(run)["status"] == "running"
    record.end(status, held_out_loss=1.25)
    found = written(run)
    assert found.keys() == FIELDS | {"data_sha256", "held_out_loss"}
    assert (found["status"], found["held_out_loss"], found["data_sha256"]) == (status, 1.25, "abc")
    assert found["finished"] is not None


def test_record_has_no_secrets(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens live in the environment; no file of a run holds one."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    record = RunRecord(run, RECIPE)
    record.update(data_sha256="abc")
    record.end("finished")
    files = [file for file in run.path.rglob("*") if file.is_file()]
    assert [file.name for file in files] == [RECORD]
    assert not any(SECRET.encode() in file.read_bytes() for file in files)


def test_record_git_commit(run: RunDirectory, git: Path) -> None:
    """The record has the output of git without its line break."""
    git.write_text('#!/bin/sh\n[ "$*" = "rev-parse HEAD" ] && echo 0123abc\n', encoding="utf-8")
    assert RunRecord(run, RECIPE).fields["git"] == "0123abc"


@pytest.mark.parametrize(
    "script",
    [
        "echo 'fatal: not a git repository' >&2; exit 128",
        "echo HEAD; echo \"fatal: ambiguous argument 'HEAD'\" >&2; exit 128",  # a repository without a commit
    ],
)
def test_record_repository_without_commit(script: str, run: RunDirectory, git: Path) -> None:
    """Outside a repository, and in one that has no commit yet."""
    git.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    assert RunRecord(run, RECIPE).fields["git"] is None


def test_record_without_git(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without git runs as well."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert RunRecord(run, RECIPE).fields["git"] is None


def test_record_failed_write_keeps_fields(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that failed to say "finished" still says what its file says, to whoever ends the run."""
    record = RunRecord(run, RECIPE)
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            record.end("finished")
    assert record.fields["status"] == written(run)["status"] == "running"


def full(*_arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
