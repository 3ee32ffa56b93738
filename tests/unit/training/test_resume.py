"""State of a run in its checkpoints. Oracles: the schema of a checkpoint, and values written out by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from neftcli.errors import InputError
from neftcli.events import Evaluated
from neftcli.runs.schemas import TrainingState, parse_json
from neftcli.training.resume import BaseEvaluation, LossEvaluation, RunState, describe_changes, find_resume_state

NO_RUN = "run the command that started it again; a run killed in its first seconds leaves no folder"
BASE = BaseEvaluation(Evaluated(0, 2.0, 2.5), ["an answer"], 3.0, 4.0)


def test_run_state_round_trip() -> None:
    """The restored state equals the saved one; a later evaluation replaces it."""
    state = RunState(BASE, time.perf_counter() - 10, {}, "")
    state.unlogged = {"loss": [0.5], "tokens": [20.0], "since": 6}
    state.last_evaluation = LossEvaluation(Evaluated(6, 1.0, 1.5, {"rouge_l": 0.5, "exact_match": None}), ())
    saved = parse_json(json.dumps(state.to_json()), TrainingState)
    assert saved["seconds"] == pytest.approx(10, abs=1)
    restored = RunState(BASE, 0.0, {}, "")
    restored.restore(saved)
    assert (restored.evaluated, restored.evaluated_step) == (state.evaluated, 6)
    assert restored.unlogged == state.unlogged
    assert BaseEvaluation.restore(saved["base"]) == BASE
    restored.last_evaluation = LossEvaluation(Evaluated(8, 0.5, 0.5), ())
    assert restored.evaluated_step == 8


def test_run_state_before_the_first_evaluation() -> None:
    state = RunState(BASE, 0.0, {}, "")
    assert (state.evaluated, state.evaluated_step, list(state.held_out_losses)) == (None, 0, [])


def test_find_resume_state_lists_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def hint() -> str:
        with pytest.raises(InputError) as raised:
            find_resume_state("nope", [], accept_changes=False)
        [problem] = raised.value.problems
        return problem.hint

    assert hint() == NO_RUN
    record = tmp_path / "runs" / "mine-a5-s0" / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"status": "preempted", "recipe_sha256": "0" * 64}))
    assert hint() == "neft train --resume RUN    in runs/: mine-a5-s0 (preempted)"


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({}, []),
        ({"neftune.alpha": [5.0, 10.0]}, ["neftune.alpha 5 up to step 6, then 10"]),
        ({"training.logging_steps": [3, None]}, ["training.logging_steps 3 up to step 6, then the default"]),
        ({"data_sha256": "0123"}, ["different data after step 6 (accepted)"]),
        ({"data.source": ["a", "b"]}, []),  # moved
    ],
)
def test_describe_changes(changes: dict[str, Any], sentences: list[str]) -> None:
    assert describe_changes({"checkpoint": "checkpoint-6", "changes": changes}) == sentences
    assert describe_changes({"checkpoint": None, "changes": changes}) == []
