"""The trackers' runs: wandb's files, the process's settings, and the commands that show the results.

Oracle of wandb's files: records written here in LevelDB's log format, in blocks of 32768 bytes.
"""

from __future__ import annotations

import os
import shlex
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neftcli.trackers.backends import Backend, MLflow, TensorBoard, TrackedRun, read_wandb_records, remove_links

BLOCK, HEADER = 2**15, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def write_records(records: list[bytes]) -> bytes:
    """Write records as LevelDB does, after wandb's header; checksums are left out, since nothing reads them."""
    content = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        rest, is_first = record, True
        while True:
            room = BLOCK - len(content) % BLOCK
            if room < HEADER:
                content += bytes(room)
                room = BLOCK
            part, rest = rest[: room - HEADER], rest[room - HEADER :]
            kind = (WHOLE if is_first else LAST) if not rest else (FIRST if is_first else MIDDLE)
            content += struct.pack("<IHB", 0, len(part), kind) + part
            is_first = False
            if not rest:
                break
    return bytes(content)


@given(st.lists(st.tuples(st.integers(0, 255), st.sampled_from([0, 1, 100, 32740, 32747, 32748, 40000, 70000]))))
def test_read_wandb_records(sizes: list[tuple[int, int]]) -> None:
    records = [bytes([letter]) * size for letter, size in sizes]
    assert list(read_wandb_records(write_records(records))) == records


def test_read_wandb_records_of_a_killed_process() -> None:
    content = write_records([b"complete", b"incomplete"])
    assert list(read_wandb_records(content[:-3])) == [b"complete"]
    assert list(read_wandb_records(b"")) == []


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
@pytest.mark.parametrize(("own_id", "is_left"), [(None, False), ("given", False), ("other", True)])
def test_mlflow_id_of_the_environment_is_for_one_run(
    own_id: str | None, is_left: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is gone after the run that it names, and left after a run that has a different id."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((tmp_path / "mlflow").as_uri())
    experiment = client.create_experiment("neft")
    ids = {name: client.create_run(experiment).info.run_id for name in ("given", "other")}
    monkeypatch.setenv("MLFLOW_RUN_ID", ids["given"])
    backend = MLflow(TrackedRun("run", tmp_path, id=ids[own_id] if own_id else None))
    backend.start()
    assert "MLFLOW_RUN_ID" not in os.environ
    backend.finish("finished")
    assert backend.id == ids[own_id or "given"]
    assert ("MLFLOW_RUN_ID" in os.environ) is is_left


def test_backend_restores_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's variables are kept; those that neft has set are gone after the run, also if its end fails."""

    class Failing(Backend):
        def end_run(self, status: str) -> None:
            raise OSError(status)

    monkeypatch.setenv("NEFT_TEST_USER", "mine")
    monkeypatch.setenv("NEFT_TEST_CHANGED", "mine")
    monkeypatch.delenv("NEFT_TEST_NEW", raising=False)
    backend = Failing(TrackedRun("run", tmp_path))
    backend.set_default("NEFT_TEST_USER", "neft's")
    backend.set_default("NEFT_TEST_NEW", "neft's")
    backend.set_variable("NEFT_TEST_CHANGED", "neft's")
    backend.set_variable("NEFT_TEST_CHANGED", None)
    assert os.environ["NEFT_TEST_USER"] == "mine"
    assert os.environ["NEFT_TEST_NEW"] == "neft's"
    assert "NEFT_TEST_CHANGED" not in os.environ
    with pytest.raises(OSError, match="preempted"):
        backend.finish("preempted")
    backend.finish("failed")  # only the first call counts
    assert (os.environ["NEFT_TEST_USER"], os.environ["NEFT_TEST_CHANGED"]) == ("mine", "mine")
    assert "NEFT_TEST_NEW" not in os.environ


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_view_is_quoted(tmp_path: Path) -> None:
    backend = TensorBoard(TrackedRun("run", tmp_path / "my runs; $HOME"))
    backend.start()
    backend.finish("finished")
    assert shlex.split(backend.view) == ["tensorboard", "--logdir", backend.location]


def testremove_links(tmp_path: Path) -> None:
    """Links are removed, and what they lead to is not."""
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (tmp_path / "log").write_text("log")
    (run / "logs" / "debug-core.log").symlink_to(tmp_path / "log")
    (run / "file").write_text("file")
    remove_links(run)
    assert sorted(path.name for path in run.rglob("*")) == ["file", "logs"]
    assert (tmp_path / "log").read_text() == "log"
