"""The Ray engine on a real cluster of two nodes on this machine.

Oracles: the same recipe trained by `neft train` alone, a cluster that loses a node, and `neft train --resume` on a run
that a node started.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from neftcli.errors import InputError
from neftcli.events import Evaluated, Event, Notice, TrainingProgress
from neftcli.recipe.loading import load_recipe, parse_assignment, recipe_fingerprint, resolve_recipe
from neftcli.runs.directory import RunDirectory
from neftcli.sweep.cell_runs import CellRuns, read_evaluation
from neftcli.sweep.engines import ray_engine as module
from neftcli.sweep.engines.engine import CellOutcome
from neftcli.sweep.engines.ray_engine import RayEngine
from neftcli.sweep.plan import Cell, plan_cells
from neftcli.training.resume import find_resume_state
from tests.conftest import Result

# Ray reads these when it is imported: nobody else on this machine can join, and nothing is written to the home folder.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
pytest.importorskip("ray", reason="the extra neftcli[ray] is not installed")
# One process runs them all: "auto" finds every cluster on this machine.
pytestmark = [pytest.mark.enable_socket, pytest.mark.xdist_group("ray")]

STEPS = 80


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Start a cluster of two nodes of one CPU."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=2**27)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def cells(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> list[Cell]:
    """Return two alphas and two seeds on a tiny model, and a fifth cell whose loss becomes NaN."""
    sets = {
        "model.name": tiny_folder("llama"),
        "data.source": rows_file,
        "training.max_steps": STEPS,
        "training.learning_rate": "5e-3",
        "training.precision": "float32",
        "evaluation.samples": 0,
        "evaluation.probe_rows": 0,
        "evaluation.generation.max_new_tokens": 4,
        "sweep.alphas": "[0, 5]",
        "sweep.seeds": 2,
        "name": "tiny",
        "output_dir": tmp_path / "sweep" / "cells",
    }
    layers = [parse_assignment(f"{key}={value}") for key, value in sets.items()]
    planned = plan_cells(resolve_recipe(layers), layers)
    wrong = replace(planned[0].recipe, training=replace(planned[0].recipe.training, learning_rate=1e30))
    return [*planned, Cell(planned[0].arm, 0, wrong, recipe_fingerprint(wrong))]


def weights_of(run: Path) -> str:
    [file] = (run / "model").glob("*.safetensors")
    return sha256(file.read_bytes()).hexdigest()


@pytest.mark.slow
def test_ray_engine_lost_node_costs_no_cell_and_no_bit(
    cluster: Any,
    cells: list[Cell],
    rows_file: Path,
    neft: Callable[..., Result],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    *good, wrong = cells
    received: list[tuple[str, Event]] = []
    outcomes: list[tuple[str, CellOutcome]] = []
    nodes = list(cluster.worker_nodes)

    def on_event(cell: Cell, event: Event) -> None:
        received.append((cell.key, event))
        training = {key for key, event in received if isinstance(event, TrainingProgress)} - {
            key for key, _ in outcomes
        }
        assert len(training) <= 2, "more cells at work than CPUs"
        if nodes and len(training) == 2:  # each node has a CPU, so one of the two is at work there
            cluster.remove_node(nodes.pop(), allow_graceful=False)

    engine = RayEngine(cluster.address, 2, folder)
    try:
        engine.run(cells, on_event, lambda cell, outcome: outcomes.append((cell.key, outcome)))
    finally:
        engine.close()
    assert not nodes, "no node was lost"
    ends = {key: outcome for key, outcome in outcomes if outcome.status != "waiting"}
    assert [outcome.problems[0].message for _, outcome in outcomes if outcome.status == "waiting"] == [
        "its worker or node was lost"
    ], "only the cell of the lost node is retried"
    assert len(outcomes) - 1 == len(ends) == 5
    assert ends[wrong.key].status == "failed"
    assert "became" in ends[wrong.key].problems[0].message
    begun = [key for key, event in received if isinstance(event, Evaluated) and event.step == 0]
    assert sorted({*begun}) == sorted(ends)
    assert len(begun) == 5 + 1, "one cell started twice"
    assert capsys.readouterr().out == ""
    for cell in good:
        assert ends[cell.key].status == "finished", ends[cell.key]
        run = CellRuns(folder / "cells").finished(cell.key)
        assert run is not None
        assert str(run.path) == ends[cell.key].run
        assert read_evaluation(run, cell.recipe) is not None
        assert run.path.name == cell.recipe.run_name()
        assert load_recipe(str(run.path / "recipe.yaml")) == cell.recipe
        card = (run.model / "README.md").read_text()
        assert str(rows_file) in card
        assert json.loads((run.path / "run.json").read_text())["recipe_sha256"] in card
        assert any(key == cell.key and isinstance(event, Evaluated) and event.step == STEPS for key, event in received)
        alone = tmp_path / "alone"
        assert neft("train", "--recipe", run.path / "recipe.yaml", "--output-dir", alone).code == 0
        assert weights_of(run.path) == weights_of(alone / run.path.name)
    statuses = [json.loads(record.read_text())["status"] for record in (folder / "cells").glob("*/run.json")]
    assert sorted(statuses) == ["failed"] + ["finished"] * 4
    assert len(list((folder / "cells").iterdir())) == 5
    assert not list(folder.glob(".ray-probe-*"))


def done_by(engine: RayEngine, cells: list[Cell], on_event: Callable[[Cell, Event], None]) -> list[CellOutcome]:
    """Run cells, leave the cluster, and return how they ended."""
    outcomes: list[CellOutcome] = []
    try:
        engine.run(cells, on_event, lambda _cell, outcome: outcomes.append(outcome))
    finally:
        engine.close()
    return outcomes


@pytest.mark.slow
def test_ray_engine_workers_import_from_no_folder_of_the_driver(tmp_path: Path) -> None:
    """Ray puts the driver's current folder on their path before the packages: an empty one, moved to the end."""
    engine = RayEngine(None, 0, tmp_path)
    try:
        import ray

        path = [Path(entry) for entry in ray.get(ray.remote(lambda: sys.path).remote())]
        added = [entry for entry in path if entry.name.startswith("neft-ray-")]
        assert [list(folder.iterdir()) for folder in added] == [[]]
        packages = Path(ray.__file__).parents[1]
        assert path.count(packages) == 1
        assert path.index(packages) > path.index(Path(os.__file__).parent)
    finally:
        engine.close()
    assert not added[0].exists()


@pytest.mark.slow
def test_ray_engine_resumes_a_preempted_cell_bit_identically(
    cells: list[Cell], cluster: Any, neft: Callable[..., Result], tmp_path: Path
) -> None:
    """`neft train --resume` also accepts the run of a preempted cell, with its checkpoint."""
    folder = tmp_path / "sweep"
    recipe = replace(cells[1].recipe, training=replace(cells[1].recipe.training, max_steps=1000))
    long = [
        Cell(cells[1].arm, seed, one, recipe_fingerprint(one))
        for seed in range(4)
        for one in [replace(recipe, training=replace(recipe.training, seed=seed))]
    ]
    engine = RayEngine(cluster.address, 1, folder)
    stop = lambda _cell, event: engine.stop() if isinstance(event, TrainingProgress) else None  # noqa: E731
    outcomes = done_by(engine, long, stop)
    assert [outcome.status for outcome in outcomes] == ["preempted"] * 4
    runs = [*(folder / "cells").iterdir()]
    assert 1 <= len(runs) <= 2, "there are two CPUs"
    run = next(run for run in runs if any((run / "checkpoints").glob("*")))  # another one may have just started
    [cell] = [one for one in long if one.recipe.run_name() == run.name]
    resolved, resume_state = find_resume_state(str(run), (), accept_changes=False)
    assert resolved == cell.recipe
    assert 0 < resume_state.step < 1000
    received: list[Event] = []
    [outcome] = done_by(RayEngine(cluster.address, 1, folder), [cell], lambda _cell, event: received.append(event))
    assert outcome == CellOutcome("finished", str(run))
    assert min(event.step for event in received if isinstance(event, TrainingProgress)) > resume_state.step
    [resumed] = json.loads((run / "run.json").read_text())["resumed"]
    assert resumed["checkpoint"] == f"checkpoint-{resume_state.step}"
    alone = tmp_path / "alone"
    assert neft("train", "--recipe", run / "recipe.yaml", "--output-dir", alone).code == 0
    assert weights_of(run) == weights_of(alone / run.name)


@pytest.mark.slow
def test_ray_engine_only_evaluates_a_trained_cell(
    cells: list[Cell], cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With settings other than before, and a task file with a relative path, on the existing weights."""
    letters = {"question": "{n} or {m}?", "choices": ["a", "b"], "answer": 0}
    (tmp_path / "letters.jsonl").write_text("".join(json.dumps(letters) + "\n" for _ in range(8)))
    (tmp_path / "letters.yaml").write_text(
        f"task: letters\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {tmp_path}/letters.jsonl}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\nmetric_list:\n  - metric: acc\n"
    )
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweep"
    [cell] = cells[1:2]
    [first] = done_by(RayEngine(cluster.address, 1, folder), [cell], lambda _cell, _event: None)
    run = RunDirectory(Path(first.run))
    before = weights_of(run.path), read_evaluation(run, cell.recipe)
    assert before[1] is not None
    evaluation = replace(cell.recipe.evaluation, tasks=("letters.yaml",))
    other = replace(cell, recipe=replace(cell.recipe, evaluation=evaluation))
    received: list[Event] = []
    [again] = done_by(RayEngine(cluster.address, 1, folder), [other], lambda _cell, event: received.append(event))
    assert again == first
    assert not [event for event in received if isinstance(event, TrainingProgress)], "it was trained again"
    assert weights_of(run.path) == before[0]
    content = read_evaluation(run, other.recipe)
    assert content is not None
    assert content["metrics"].pop("letters/acc")
    assert content["metrics"] == before[1]["metrics"]
    assert load_recipe(str(run.path / "recipe.yaml")) == cell.recipe, "the recipe of a run is the one that trained it"
    assert len(list((folder / "cells").iterdir())) == 1


@pytest.mark.slow
def test_ray_engine_reports_once_that_the_cluster_has_no_room(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(module, "NO_ROOM_AFTER", 1.0)
    node = {"num_cpus": 0, "object_store_memory": 2**27, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        engine = RayEngine(cluster.address, 1, tmp_path / "sweep")
        received: list[Event] = []

        def on_event(_cell: Cell, event: Event) -> None:
            received.append(event)
            threading.Timer(2.5, engine.stop).start()

        outcomes = done_by(engine, cells[:2], on_event)
    finally:
        cluster.shutdown()
    assert [outcome.status for outcome in outcomes] == ["preempted"] * 2
    [notice] = received
    assert isinstance(notice, Notice)
    assert notice.message == "the Ray cluster has no room for a cell: 1 CPU must be free; the cells wait"


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto", "somewhere"])
def test_ray_engine_rejects_a_missing_cluster_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    begun = time.monotonic()
    with pytest.raises(InputError, match=f"--ray-address {address}: there is no Ray cluster that can be joined"):
        RayEngine(address, 0, tmp_path)
    assert time.monotonic() - begun < 20


@pytest.mark.slow
@pytest.mark.parametrize("left", ["a process of Ray", "RAY_ADDRESS"])
def test_ray_engine_rejects_the_remains_of_a_cluster_at_once(
    left: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray._private import services

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    services._cached_find_gcs_addresses.cache_clear()
    command = ["raylet", "-c", "read", "raylet", "--gcs-address=127.0.0.1:1"]
    remains = subprocess.Popen(command, executable="bash", stdin=subprocess.PIPE)
    if left == "RAY_ADDRESS":
        remains.kill()
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    begun = time.monotonic()
    try:
        with pytest.raises(InputError, match="no Ray cluster that can be joined") as caught:
            RayEngine("auto", 0, tmp_path)
    finally:
        remains.kill()
        remains.communicate()  # waits, and closes the pipe
        services._cached_find_gcs_addresses.cache_clear()
    assert "refused" in str(caught.value.problems[0].got)  # by what is left, not for want of any
    assert time.monotonic() - begun < 20
