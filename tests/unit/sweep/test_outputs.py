"""Files and screens of a sweep.

Oracles: the files themselves (JSON, a link's target, matplotlib's line in the SVG), a second report of the same folder,
and the planted results.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neftcli.cli.display import screens as display
from neftcli.evaluation import number_format
from neftcli.events import ArmResult, CellEstimate, CellState, MetricValue, SweepEstimate, SweepReport
from neftcli.metrics.registry import HELD_OUT_LOSS, WIN_RATE
from neftcli.report.plots import ArmPoints, Curve
from neftcli.sweep import outputs
from neftcli.sweep.plan import Arm, Cell
from neftcli.sweep.results import SweepResults
from neftcli.sweep.verdict import judge_sweep
from tests.markdown import HOSTILE, element_types
from tests.unit.cli.sample_events import SWEEP
from tests.unit.sweep.planted import plan, planted_results, with_win_rates


def states_of(cells: list[Cell], content: dict[str, Any], folder: Path) -> list[CellState]:
    """Create a run with a learning curve of one line for each evaluated cell; the loss is its index in the plan."""
    states = []
    for number, cell in enumerate(cells):
        run = folder / "cells" / f"{cell.recipe.run_name()}-{cell.key[:8]}"
        if cell.key in content:
            run.mkdir(parents=True, exist_ok=True)
            line = {"event": "training.evaluated", "step": 3, "held_out_loss": float(number)}
            (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        done = {"status": "finished", "run": str(run)} if cell.key in content else {"status": "waiting"}
        states.append(CellState(cell.key[:8], cell.arm.id(), cell.seed, **done))
    return states


def write_report(folder: Path, cells: list[Cell], content: dict[str, Any], *metrics: str) -> SweepReport:
    """Write the report of the results, as a sweep does."""
    results = SweepResults(cells, content)
    verdict = judge_sweep(results, metrics, [])
    chosen = verdict.recommended.id() if verdict.recommended else ""
    report = SweepReport(
        str(folder),
        verdict.arms,
        metrics,
        chosen,
        verdict.conclusion,
        verdict.scope,
        (),
        (),
        0,
        0,
        seconds=1.0,
        resume_command="x",
    )
    outputs.write_outputs(report, states_of(cells, content, folder), results, metrics, verdict.recommended, cells)
    return report


def stems(folder: Path) -> set[str]:
    return {file.stem for file in (folder / "plots").iterdir()}


@pytest.mark.slow
def test_write_outputs_removes_outdated_plots_only(tmp_path: Path) -> None:
    """`best` and the plots of an earlier report are removed; a user's file next to them stays."""
    cells = plan("sweep.alphas=[5]")
    content = with_win_rates(cells, {Arm(5.0): 0.95})
    write_report(tmp_path, cells, content, WIN_RATE, HELD_OUT_LOSS)
    both = {"win-rate", "win-rate-difference", "held-out-loss", "held-out-loss-difference"}
    assert stems(tmp_path) == {*both, "answer-tokens", "learning-curves"}
    assert (tmp_path / "best").resolve().name == f"quickstart-a5-s0-{cells[1].key[:8]}"
    (tmp_path / "plots" / "mine.png").write_text("mine")
    baselines = {cell.key: content[cell.key] for cell in cells if not cell.arm.alpha}
    report = write_report(tmp_path, cells, baselines, HELD_OUT_LOSS)
    assert report.recommended == ""
    assert not (tmp_path / "best").is_symlink()
    assert stems(tmp_path) == {"held-out-loss", "win-rate", "answer-tokens", "learning-curves", "mine"}
    write_report(tmp_path, cells, planted_results(cells, {0: 0, 5: -0.1}), HELD_OUT_LOSS)
    assert (tmp_path / "best").resolve().name == f"quickstart-a5-s0-{cells[1].key[:8]}"


def test_write_outputs_plots_the_paired_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are those of the verdict; a seed's difference is that of its two levels."""
    drawn: dict[str, list[ArmPoints]] = {}
    monkeypatch.setattr(
        outputs, "plot_metric", lambda _folder, stem, _name, _unit, _better, arms: drawn.update({stem: arms})
    )
    cells = plan("sweep.alphas=[5]", "sweep.seeds=3")
    report = write_report(tmp_path, cells, planted_results(cells, {0: 0, 5: -0.1}), HELD_OUT_LOSS)
    [comparison] = report.arms[1].comparisons
    plain, noised = drawn["held-out-loss-difference"]
    assert (plain.alpha, plain.value, plain.low, plain.high, plain.seeds) == (0, 0, None, None, (None,) * 3)
    assert (noised.value, noised.low, noised.high) == (comparison.difference, comparison.low, comparison.high)
    levels = [arm.seeds for arm in drawn["held-out-loss"]]
    assert noised.seeds == tuple(arm - base for base, arm in zip(*levels, strict=True))  # type: ignore[operator]


def test_write_outputs_removes_best_without_a_run(tmp_path: Path) -> None:
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: -0.1})
    results = SweepResults(cells, content)
    report = write_report(tmp_path, cells, content, HELD_OUT_LOSS)
    assert (tmp_path / "best").is_symlink()
    states = states_of(cells, {}, tmp_path)
    outputs.write_outputs(report, states, results, [HELD_OUT_LOSS], Arm(5.0), cells)
    assert not (tmp_path / "best").is_symlink()
    assert judge_sweep(results, [HELD_OUT_LOSS], []).recommended == Arm(5.0)


@pytest.mark.parametrize("text", ["", "[]", '{"arms": [1]}', '{"arms": 5}', "{}", "\xff"])
def test_write_outputs_damaged_earlier_report(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a list of its plots, none is removed."""
    for plot in ("plot_curves", "plot_metric"):
        monkeypatch.setattr(outputs, plot, lambda *_arguments: None)
    (tmp_path / "sweep.json").write_bytes(text.encode("latin-1"))
    (tmp_path / "plots").mkdir()
    for stem in ("win-rate", "win-rate-difference", "learning-curves"):
        (tmp_path / "plots" / f"{stem}.png").touch()
    cells = plan("sweep.alphas=[5]")
    write_report(tmp_path, cells, {}, HELD_OUT_LOSS)
    assert stems(tmp_path) == {"win-rate", "win-rate-difference", "learning-curves"}


def test_judge_sweep_arm_names(tmp_path: Path) -> None:
    cells = plan("sweep.alphas=[5]", "sweep.grid=['training.learning_rate=1e-5,5e-5']")
    report = write_report(tmp_path, cells, planted_results(cells, {0: 0, 5: 0}), HELD_OUT_LOSS)
    assert [row.name() for row in report.arms] == [arm.name() for arm in SweepResults(cells, {}).arms]


def test_write_outputs_curves_of_arms_with_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Curve] = []
    monkeypatch.setattr(outputs, "plot_curves", lambda *arguments: drawn.extend(arguments[-1]))
    monkeypatch.setattr(outputs, "plot_metric", lambda *arguments: None)
    cells = plan("sweep.alphas=[5, 5.0000001]", "sweep.seeds=2")
    write_report(tmp_path, cells, planted_results(cells, {0: 0, 5: 0, 5.0000001: 0}), HELD_OUT_LOSS)
    assert [(curve.alpha, curve.seed, curve.values) for curve in drawn] == [
        (cell.arm.alpha, cell.seed, (float(place),)) for place, cell in enumerate(cells)
    ]


def test_write_outputs_seed_keeps_its_position_in_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(outputs, "plot_curves", lambda *arguments: None)
    monkeypatch.setattr(outputs, "plot_metric", lambda *arguments: drawn.append(arguments))
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: 0})
    del content[cells[1].key]  # alpha 5, first seed
    write_report(tmp_path, cells, content, HELD_OUT_LOSS)
    loss = next(arguments for arguments in drawn if arguments[2] == "held-out loss")
    assert loss[3:5] == ("nats per token", "lower")
    assert [[seed is None for seed in arm.seeds] for arm in loss[5]] == [[False] * 3, [True, False, False]]


# In a terminal and in Markdown


def render(renderable: Any, width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, highlight=False).print(renderable)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 140])
def test_sweep_report_shows_different_numbers_of_seeds(tmp_path: Path, width: int) -> None:
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: 0})
    whole = render(display.sweep_report(write_report(tmp_path, cells, content, HELD_OUT_LOSS), width), width)
    assert "seeds" not in next(line for line in whole if line.startswith(" arm"))
    del content[cells[-1].key]
    lines = render(display.sweep_report(write_report(tmp_path, cells, content, HELD_OUT_LOSS), width), width)
    head = next(line for line in lines if line.startswith(" arm"))
    rows = [line for line in lines if re.match(r" alpha \d+ +\d ", line)]
    assert [line[: head.index("seeds") + 5].split()[-1] for line in rows] == ["3", "2"]
    assert all(len(line) <= width for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 100, 120, 160])
@pytest.mark.parametrize("grid", [(), ("sweep.grid=['training.learning_rate=1e-5,5e-5', 'neftune.noise=uniform']",)])
def test_sweep_report_at_any_width(tmp_path: Path, width: int, grid: tuple[str, ...]) -> None:
    """Every number is shown, with the minimum detectable effect, without breaking words, as in verdict.md."""
    cells = plan("sweep.alphas=[5]", *grid)
    report = write_report(tmp_path, cells, planted_results(cells, {0: 0, 5: 0.05}, seed_spread=0.01), HELD_OUT_LOSS)
    lines = render(display.sweep_report(report, width), width)
    assert all(len(line) <= width for line in lines)
    tables = lines[: next(place for place, line in enumerate(lines) if line.startswith((" No alpha", " Worse")))]
    words = " ".join(" ".join(tables).split())
    markdown = (tmp_path / "verdict.md").read_text()
    assert "MDE" in words
    for arm in report.arms:
        assert set(re.split(r",? ", arm.name())) <= set(re.split(r",? ", words))
        for comparison in arm.comparisons:
            numbers = (
                number_format.table_number(HELD_OUT_LOSS, comparison.difference, signed=True),
                number_format.table_interval(HELD_OUT_LOSS, comparison.low, comparison.high),
                number_format.table_p(comparison.p_adjusted),
                number_format.table_number(HELD_OUT_LOSS, comparison.detectable),
            )
            assert all(number in words for number in numbers)
            assert " | ".join(numbers) in markdown
    assert [line for line in tables if line and not line.startswith(" ")] == [], "lines that continue are indented"


def test_cells_screen_finished_cells() -> None:
    line = render(display.cells([CellState("k", "neftune.alpha=5", 0, "finished")], 10.0, 0))[-1]
    assert "1/1 cell" in line
    assert "left" not in line


def test_sweep_report_arms_that_are_not_compared(tmp_path: Path) -> None:
    cells = plan("sweep.alphas=[5]")
    report = write_report(tmp_path, cells, planted_results(cells[:1], {0: 0}), HELD_OUT_LOSS)
    whole = " ".join(render(display.sweep_report(report, 80)))
    assert "not compared" in whole
    assert "best ->" not in whole
    markdown = (tmp_path / "verdict.md").read_text()
    assert "| alpha 5 | 0 | - | - | - | - | - | - | not compared |" in markdown


def test_sweep_report_metric_of_some_arms(tmp_path: Path) -> None:
    cells = plan("sweep.alphas=[5]")
    content = planted_results(cells, {0: 0, 5: 0})
    for cell in cells:
        if not cell.arm.alpha:
            del content[cell.key]["metrics"]["answer_tokens"]
    lines = render(display.sweep_report(write_report(tmp_path, cells, content, HELD_OUT_LOSS), 140), 140)
    assert next(line for line in lines if line.startswith(" arm")).split()[-2] == "tokens"
    assert any(line.startswith(" alpha 5") and " 10.00 " in line for line in lines)


def test_sweep_plan_finds_cells_by_their_key() -> None:
    """Two arms with the same name have their own times."""
    states = [CellState(key, "neftune.alpha=5", 0, "waiting") for key in ("abc", "def")]
    cells = tuple(CellEstimate(key, "neftune.alpha=5", 0, seconds) for key, seconds in (("abc", 20.0), ("def", 40.0)))
    lines = render(display.sweep_plan(states, SweepEstimate(60.0, 1, cells, {}, timed_passes=1)))
    assert [line.split()[-2:] for line in lines if line.startswith(" alpha 5")] == [["20", "s"], ["40", "s"]]


def states(*names: str) -> list[CellState]:
    return [CellState(f"k{place}", f"neftune.alpha={place}", 0, name) for place, name in enumerate(names)]


@pytest.mark.parametrize("height", [8, 10, 24, 40, 100])
def test_cells_screen_more_cells_than_lines(height: int) -> None:
    """Active and failed cells have a row, wherever they are in the plan; the others are counted."""
    names = ["finished"] * 30 + ["failed", "training", "evaluating"] + ["waiting"] * 20
    lines = render(display.cells(states(*names), 10.0, 0, height))
    assert len(lines) <= height - 2
    assert "31/53 cells" in lines[-1]
    for place in (30, 31, 32)[: height - 6]:
        assert any(line.startswith(f" alpha {place} ") for line in lines)
    rows = [int(line.split()[1]) for line in lines if line.startswith(" alpha ")]
    assert rows == sorted(rows)
    others = re.search(r"^ and (.*)$", "\n".join(lines), re.MULTILINE)
    counted = sum(map(int, re.findall(r"\d+", others[1]))) if others else 0
    assert len(rows) + counted == len(names)
    assert len(render(display.cells(states(*names), 10.0, 0))) == len(names) + 3


def test_cells_screen_progress_of_an_evaluation() -> None:
    state = CellState("k", "neftune.alpha=5", 0, "evaluating", 54, 54, 1.9, 75.0, evaluated=32, to_evaluate=200)
    [row] = [line for line in render(display.cells([state], 1.0, 0)) if line.startswith(" alpha 5")]
    assert row.split() == ["alpha", "5", "0", "evaluating", "32/200", "54/54", "1.9000", "1:15"]


def test_write_outputs_no_transient_fields(tmp_path: Path) -> None:
    cells = plan("sweep.alphas=[5]")
    write_report(tmp_path, cells, planted_results(cells, {0: 0, 5: 0}), HELD_OUT_LOSS)
    columns = set((tmp_path / "cells.csv").read_text().splitlines()[0].split(","))
    assert columns == {
        "key",
        "arm",
        "seed",
        "status",
        "step",
        "total_steps",
        "held_out_loss",
        "run",
        "problem",
        "retries",
    }
    assert {*json.loads((tmp_path / "sweep.json").read_text())["cells"][0]} == columns


# Hostile names in Markdown


def report_with(text: str) -> SweepReport:
    """Return a report with a text as its task, swept option and problem."""
    metric = f"{text} acc"
    arms = tuple(
        ArmResult(f"{arm.arm} model.chat_template={text}", arm.alpha, 3, {metric: MetricValue(0.5, 0.4, 0.6, 54)}, ())
        for arm in SWEEP.arms
    )
    failed = (CellState("abc", f"neftune.alpha=10 model.chat_template={text}", 1, "failed", problem=text),)
    return SweepReport(
        folder=f"runs/{text}",
        arms=arms,
        metrics=(metric,),
        recommended="neftune.alpha=0",
        conclusion=SWEEP.conclusion,
        scope=SWEEP.scope,
        failed=failed,
        retried=(),
        unfinished=0,
        saved=0,
        seconds=1.0,
        resume_command="neft sweep-alpha x",
    )


def test_to_markdown_hostile_names() -> None:
    """A verdict with hostile names has the elements of one with plain names, by an independent reader of Markdown."""
    plain, hostile = outputs.to_markdown(report_with("x")), outputs.to_markdown(report_with(HOSTILE))
    assert not any(kind.startswith(("image", "link", "html")) for kind in element_types(hostile))
    assert element_types(hostile) == element_types(plain)
