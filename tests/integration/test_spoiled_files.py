"""Damaged files of runs, sweeps and models.

Property: for any content of a JSON file, no command reports a bug in neft or shows a traceback. The files are those of
a tiny model; hypothesis deletes, renames, retypes, nests, truncates and repeats parts of them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from neftcli.errors import INTERNAL_MESSAGE
from neftcli.runs.checkpoints import MANIFEST, TRAINER_STATE, CheckpointFolder
from tests.conftest import call_neft, quick_arguments

EXAMPLES_OF_A_KIND = {"sweep": 5}  # each trains a cell again
MAX_EXAMPLES = 25
VALUES: list[Any] = [None, True, -1, 0, 10**30, 1.5, "", "x", [], {}, [None], {"a": 1}, [[[]]]]
TEXTS = [b"", b"[]", b"null", b"NaN", b'"x"', b"{", b"\xff\xfe{}", b"[" * 20_000, b'{"a":' * 20_000]


@st.composite
def changed_values(draw: st.DrawFn, value: Any) -> Any:
    """Draw a JSON value with a change somewhere in it."""
    keys: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys = list(range(len(value)))
    if not keys or draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(VALUES))
    key = draw(st.sampled_from(keys))
    copy = dict(value) if isinstance(value, dict) else list(value)
    change = draw(st.sampled_from(["delete", "rename", "inside", "inside", "inside"]))
    if change == "delete":
        del copy[key]
    elif change == "rename" and isinstance(copy, dict):
        copy[f"{key}x"] = copy.pop(key)
    else:
        copy[key] = draw(changed_values(value[key]))
    return copy


@st.composite
def damaged_files(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a changed JSON or JSON lines file."""
    kind = draw(st.sampled_from(["text", "cut", "repeat", "change", "change", "change", "change"]))
    if kind == "text":
        return draw(st.sampled_from(TEXTS))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    lines = content.split(b"\n")
    try:
        values = [json.loads(line) for line in lines if line]
    except ValueError:  # one object over many lines
        whole = json.loads(content)
        if kind == "repeat" and isinstance(whole, dict):
            key = draw(st.sampled_from(sorted(whole)))
            again = f", {json.dumps(key)}: {json.dumps(draw(st.sampled_from(VALUES)))}}}"
            return content.rstrip()[:-1] + again.encode()
        return json.dumps(draw(changed_values(whole))).encode()
    index = draw(st.integers(0, len(values) - 1))
    if kind == "repeat":
        values.append(values[index])
    else:
        values[index] = draw(changed_values(values[index]))
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


@pytest.fixture(scope="module")
def folder(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, a full run and one with LoRA, a sweep, and a run that was stopped at step 2."""
    root = tmp_path_factory.mktemp("spoiled")
    shutil.copytree(tiny_folder("llama"), root / "model")
    arguments = [*quick_arguments(root / "model", rows_file, root / "runs"), "--set", "checkpoints.save_steps=2"]
    with chdir(root):
        commands: list[Sequence[object]] = [
            arguments,
            [*arguments, "--lora", "--set", "name=lora"],
            ["sweep-alpha", *arguments[1:], "--alphas", "0,5", "--seeds", "2"],
            ["eval", "runs/tiny-a5-s0", *EVAL_OPTIONS],
        ]
        for command in commands:
            result = call_neft(*command)
            assert result.code == 0, result.err
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(CheckpointFolder, "publish", publish_and_stop)
            assert call_neft(*arguments, "--set", "name=stopped").code == 75
    return root


def publish_and_stop(checkpoints: CheckpointFolder, step: int, facts: Mapping[str, Any]) -> None:
    """Publish a checkpoint, and ask the run to stop."""
    publish(checkpoints, step, facts)
    os.kill(os.getpid(), signal.SIGTERM)


publish = CheckpointFolder.publish
EVAL_OPTIONS = ("--no-base", "--set", "evaluation.generation.max_new_tokens=4")
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "run": (
        ("run.json", "metrics.jsonl", "evaluation/*.jsonl", "model/*config.json"),
        ("eval", "runs/tiny-a5-s0", *EVAL_OPTIONS),
    ),
    "adapter": (
        ("run.json", "model/adapter_config.json", "model/tokenizer_config.json"),
        ("eval", "runs/lora-a5-s0", "--no-base", "--no-answers"),
    ),
    "sweep": (
        ("cells/*/run.json", "cells/*/metrics.jsonl", "cells/*/evaluation/cell.json", "sweep.json"),
        ("sweep-alpha", "runs/tiny-sweep"),
    ),
    "checkpoint": (
        ("run.json", "metrics.jsonl", "checkpoints/*/*.json"),
        ("train", "--resume", "runs/stopped-a5-s0", "--quiet"),
    ),
    "model": (
        ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"),
        ("train", "--dry-run", "--model", "model", "--output-dir", "other"),
    ),
}
FOLDERS = {
    "run": "runs/tiny-a5-s0",
    "adapter": "runs/lora-a5-s0",
    "sweep": "runs/tiny-sweep",
    "checkpoint": "runs/stopped-a5-s0",
    "model": "model",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_commands_report_damaged_files(kind: str, folder: Path, tmp_path: Path) -> None:
    names, command = KINDS[kind]
    target, original = folder / FOLDERS[kind], tmp_path / "kept"
    shutil.copytree(target, original, symlinks=True)
    files = sorted({file.relative_to(original) for name in names for file in original.glob(name)})

    @settings(
        max_examples=EXAMPLES_OF_A_KIND.get(kind, MAX_EXAMPLES),
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(data=st.data())
    def damage_a_file(data: st.DataObject) -> None:
        shutil.rmtree(target)
        shutil.copytree(original, target, symlinks=True)
        file = target / data.draw(st.sampled_from(files))
        content = data.draw(damaged_files(file.read_bytes()))
        file.write_bytes(content)
        if file.name == MANIFEST and data.draw(st.booleans()):
            seal(file.parent)
        result = call_neft(*command)
        assert result.code in (0, 1, 2), (file, content[:2000], result.err)
        assert INTERNAL_MESSAGE not in result.err, (file, content[:2000], result.err)
        assert "Traceback" not in result.err, (file, content[:2000], result.err)

    try:
        with chdir(folder):
            undamaged = call_neft(*command)
            assert undamaged.code == 0, undamaged.err  # else nothing would be read
            damage_a_file()
    finally:  # other tests use the folder
        shutil.rmtree(target)
        shutil.copytree(original, target, symlinks=True)


def seal(checkpoint: Path) -> None:
    """Write the manifest of a checkpoint again, with the run's facts from it if they can be read."""
    try:
        facts = json.loads((checkpoint / MANIFEST).read_text())
        facts = {key: value for key, value in facts.items() if key not in ("files", "manifest_sha256")}
    except (ValueError, AttributeError, RecursionError):
        return
    publish(CheckpointFolder(checkpoint.parent, 9), int(checkpoint.name.rpartition("-")[2]), facts)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["run", "TrainerControl"])
def test_resume_skips_checkpoint_without_run_state(
    key: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "runs" / "stopped-a5-s0", tmp_path / "run")
    monkeypatch.chdir(folder)
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    state = json.loads((checkpoint / TRAINER_STATE).read_text())
    del state["stateful_callbacks"][key]
    (checkpoint / TRAINER_STATE).write_text(json.dumps(state))
    seal(checkpoint)
    result = call_neft("train", "--resume", tmp_path / "run")
    assert result.code == 2
    assert f"{TRAINER_STATE} is damaged (stateful_callbacks.{key}: Field required)" in result.err
