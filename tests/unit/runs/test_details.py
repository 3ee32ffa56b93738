"""Details of a run, and the differences between two.

Oracle: the values with which the folders were written.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from neftcli.errors import InputError
from neftcli.recipe.schema import Data, Training
from neftcli.runs.details import compare_runs, read_details
from tests.written_runs import recipe_of, write_run, write_sweep, write_verdict

RUNS = Path("runs")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_read_details_finished_run() -> None:
    run = write_run(RUNS, recipe_of(), device="CPU, 2 threads", precision="fp32", noise_to_embedding=0.25)
    write_verdict(run, "mine-a0-s0", "lower")
    details = read_details("mine-a5-s0", RUNS)
    assert (details.seconds, details.base_train_loss, details.train_loss) == (60.0, 2.25, 1.5)
    assert (details.device, details.precision, details.noise_to_embedding) == ("CPU, 2 threads", "fp32", 0.25)
    assert details.options == {"model.name": "opt-125m", "adapter.type": "lora", "adapter.r": 8}
    assert [verdict.conclusion for verdict in details.verdicts] == [("lower than mine-a0-s0.",)]
    sizes = {file.name: file.size_bytes for file in details.files}
    assert sizes["model/"] == 1000
    assert sizes.keys() == {"evaluation/", "metrics.jsonl", "model/", "recipe.yaml", "run.json"}
    assert details.paired_run is not None
    assert (details.paired_run.run, details.paired_run.exists) == ("runs/mine-a0-s0", False)
    write_run(RUNS, recipe_of(0.0))
    paired = read_details("mine-a5-s0", RUNS).paired_run
    assert paired is not None
    assert paired.exists


def test_read_details_unfinished_and_damaged_run() -> None:
    run = write_run(RUNS, recipe_of(), status="preempted", results=None)
    for step, complete in ((10, True), (9, True), (20, False)):
        folder = run / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if complete:
            (folder / "manifest.json").touch()
    details = read_details(str(run), RUNS)
    assert (details.seconds, details.checkpoints, details.paired_run) == (None, (9, 10), None)
    (run / "run.json").write_text("{")
    details = read_details(str(run), RUNS)
    assert (details.started, details.verdicts, details.summary.status) == ("", (), "damaged")


def test_read_details_sweep_and_its_best() -> None:
    sweep = write_sweep(RUNS, recipe_of(), [recipe_of(0.0), recipe_of(5.0)], {})
    (sweep / "best").symlink_to("cells/mine-a5-s0")
    assert [cell.name() for cell in read_details("mine-sweep", RUNS).cells] == ["mine-a0-s0", "mine-a5-s0"]
    assert read_details("runs/mine-sweep/best", RUNS).summary.path == "runs/mine-sweep/cells/mine-a5-s0"


def test_compare_runs_baseline() -> None:
    write_run(RUNS, recipe_of(5.0))
    write_run(RUNS, recipe_of(0.0), results={"seconds": 50.0, "held_out_loss": 1.75})
    compared = compare_runs("mine-a5-s0", "mine-a0-s0", RUNS)
    assert [(option.key, option.first, option.second) for option in compared.options] == [("neftune.alpha", 5.0, 0.0)]
    assert (compared.comparable, compared.different_inputs, compared.verdict) == (True, (), None)
    assert (compared.first_seconds, compared.second_seconds) == (60.0, 50.0)
    assert compared.sweep_command == "neft sweep-alpha --recipe runs/mine-a5-s0/recipe.yaml --alphas 0,5 --seeds 6"
    assert compare_runs("mine-a0-s0", "mine-a5-s0", RUNS).sweep_command == compared.sweep_command


def test_compare_runs_finds_a_verdict_of_either() -> None:
    run, baseline = write_run(RUNS, recipe_of(5.0)), write_run(RUNS, recipe_of(0.0))
    write_verdict(run, "another", "lower", folder="another")
    write_verdict(run, baseline.name, "higher", folder="this")
    for pair in ((run, baseline), (baseline, run)):
        compared = compare_runs(str(pair[0]), str(pair[1]), RUNS)
        assert compared.verdict is not None
        assert (compared.evaluated, compared.verdict.verdict) == ("mine-a5-s0", "higher")


@pytest.mark.parametrize(
    ("change", "fields", "different", "comparable"),
    [
        ({"training": Training(seed=0, learning_rate=1e-3)}, {}, (), True),
        ({"data": Data(split_seed=7)}, {}, (), False),
        ({}, {"data_sha256": "e" * 64}, ("data",), False),
        ({}, {"model_fingerprint": "sha256 n"}, ("model",), False),
        ({}, {"tokens_sha256": None}, (), True),
    ],
)
def test_compare_runs_losses_of_different_rows(
    change: dict[str, object], fields: dict[str, object], different: tuple[str, ...], comparable: bool
) -> None:
    """The difference of two losses means something only if both are of the same rows and tokens."""
    write_run(RUNS, recipe_of(), "first")
    write_run(RUNS, replace(recipe_of(), **change), "second", **fields)
    compared = compare_runs("first", "second", RUNS)
    assert (compared.different_inputs, compared.comparable) == (different, comparable)
    assert compared.sweep_command is None


def test_compare_runs_rejects_other_things() -> None:
    run = write_run(RUNS, recipe_of())
    write_sweep(RUNS, recipe_of(), [recipe_of(0.0)], {})
    for names, message in (
        (("mine-a5-s0", "mine-sweep"), "this is a sweep"),
        (("mine-a5-s0", "./runs/mine-a5-s0"), "takes two different runs"),
        (("mine-a5-s0", "missing"), "no such run or sweep"),
    ):
        with pytest.raises(InputError, match=message):
            compare_runs(*names, RUNS)
    (write_run(RUNS, recipe_of(1.0)) / "run.json").write_text("{")
    with pytest.raises(InputError, match="not a valid record"):
        compare_runs(run.name, "mine-a1-s0", RUNS)
