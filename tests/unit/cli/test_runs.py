"""`neft runs` through the command line: tables, plain lines, JSON, questions and errors.

Oracles: texts written out in full, and the json module.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from neftcli.cli.display import run_rows
from neftcli.cli.display.live import LiveDisplay
from neftcli.events import Method, RunsListed, RunStatus, RunSummary
from neftcli.recipe.schema import Data
from neftcli.runs.catalog import read_catalog
from neftcli.runs.details import compare_runs, read_details
from tests.conftest import Result, events
from tests.written_runs import recipe_of, write_run, write_sweep, write_verdict

Neft = Callable[..., Result]
NOW = 1_767_323_045.0  # 2026-01-02T03:04:05+00:00


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pair() -> list[str]:
    """Write a run and its baseline, compared by `neft eval`."""
    run = write_run(Path("runs"), recipe_of(5.0))
    results = {"seconds": 60.0, "base_held_out_loss": 2.5, "held_out_loss": 1.75}
    write_run(Path("runs"), recipe_of(0.0), finished="2026-01-01T00:00:00+0000", results=results)
    write_verdict(run, "mine-a0-s0", "not_significant")
    return ["mine-a5-s0", "mine-a0-s0"]


def shown(event: object, width: int) -> str:
    """What a terminal of this width shows of an event."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=40, force_terminal=True, color_system=None, highlight=False)
    with LiveDisplay(console) as display:
        display.notify(event)  # type: ignore[arg-type]
    return re.sub(r"\x1b\[\??[0-9;]*[A-Zhl]", "", stream.getvalue())  # the cursor's movements, no colours


def test_runs_plain_lines(neft: Neft, pair: list[str]) -> None:
    result = neft("runs")
    assert result.code == 0
    first, second = result.out.splitlines()
    assert first.startswith(
        "run runs/mine-a5-s0: status=finished model=opt-125m method=lora r=8 alpha=5 seed=0 steps=4 "
        "base_held_out_loss=2.5000 held_out_loss=2.0000 verdict=not_significant baseline=mine-a0-s0 "
        "changed=2026-01-02T03:04:05+00:00 size_bytes="
    )
    assert second.startswith("run runs/mine-a0-s0: ")
    assert neft("runs", "list").out == result.out


def test_runs_json(neft: Neft, pair: list[str]) -> None:
    [listed] = events(neft("runs", "--json").out)
    assert (listed["event"], listed["folder"], len(listed["runs"])) == ("runs.listed", "runs", 2)
    assert listed["runs"][0]["verdict"]["verdict"] == "not_significant"
    [details] = events(neft("runs", "show", "mine-a5-s0", "--json").out)
    assert (details["event"], details["summary"]["path"]) == ("runs.shown", "runs/mine-a5-s0")
    [compared] = events(neft("runs", "compare", *pair, "--json").out)
    assert (compared["event"], compared["options"][0]["key"]) == ("runs.compared", "neftune.alpha")
    [removed] = events(neft("runs", "rm", *pair, "--yes", "--json").out)
    assert (removed["event"], removed["runs"]) == ("runs.removed", ["runs/mine-a5-s0", "runs/mine-a0-s0"])


def test_runs_without_runs(neft: Neft) -> None:
    result = neft("runs")
    assert (result.code, result.out) == (0, "no runs in runs\n")
    assert neft("runs", "--output-dir", "missing").code == 2


@pytest.mark.parametrize(
    ("name", "hint"),
    [("mine-a5-s0", "neft runs show mine-a5-s0"), ("remove", "neft runs rm RUN"), ("ls", "neft runs list")],
)
def test_runs_unknown_command(neft: Neft, name: str, hint: str) -> None:
    result = neft("runs", name)
    assert (result.code, f"  hint     {hint}\n" in result.err) == (2, True)


def test_runs_options_before_the_command_are_rejected(neft: Neft, pair: list[str]) -> None:
    result = neft("runs", "--output-dir", "elsewhere", "show", "mine-a5-s0")
    assert (result.code, "options follow the command" in result.err) == (2, True)


def test_runs_show_and_compare_suggest_next_commands(neft: Neft, pair: list[str]) -> None:
    write_run(Path("runs"), recipe_of(5.0, seed=1), status="preempted", results=None)
    assert "next: neft train --resume runs/mine-a5-s1" in neft("runs", "show", "mine-a5-s1").out
    for name in pair:  # they are compared with each other
        assert f"next: neft eval runs/{name} --show 5" in neft("runs", "show", name).out
    assert "next: neft eval" not in neft("runs", "compare", *pair).out  # it was done
    compared = neft("runs", "compare", "mine-a0-s0", "mine-a5-s0").out
    assert "neftune.alpha: first=0 second=5" in compared
    assert "held-out loss, tuned: first=1.7500 second=2.0000 difference=-0.2500" in compared
    assert compared.count("One run each") == 1
    assert "next: neft sweep-alpha --recipe runs/mine-a5-s0/recipe.yaml --alphas 0,5 --seeds 6" in compared


def test_runs_compare_says_why_losses_are_not_subtracted(neft: Neft) -> None:
    write_run(Path("runs"), recipe_of(), "a")
    write_run(Path("runs"), recipe_of(data=Data(max_length=256, split_seed=1)), "b")
    write_run(Path("runs"), recipe_of(), "c", data_sha256="e" * 64)
    out = neft("runs", "compare", "a", "b").out
    assert "data.max_length, data.split_seed differ: their losses may be of different rows or tokens" in out
    assert "held-out loss, tuned: first=2.0000 second=2.0000 difference=-\n" in out
    out = neft("runs", "compare", "a", "c").out
    assert "They have different data (by the hashes in run.json), so their losses are not subtracted.\n" in out
    assert "Both have the same recipe" in out


def test_runs_compare_evaluates_the_run_with_noise(neft: Neft) -> None:
    for alpha in (0.0, 5.0):
        write_run(Path("runs"), recipe_of(alpha))
    out = neft("runs", "compare", "mine-a0-s0", "mine-a5-s0").out
    assert "next: neft eval runs/mine-a5-s0 --baseline runs/mine-a0-s0" in out


@pytest.mark.parametrize("width", [80, 100, 140])
def test_runs_tables_fit_the_terminal(pair: list[str], width: int) -> None:
    damaged = write_run(Path("runs"), recipe_of(7.0), "damaged")
    (damaged / "run.json").write_text("{")
    sweep = write_sweep(Path("runs"), recipe_of(), [recipe_of(0.0)], {"conclusion": ["Nothing is better."]})
    for event in (
        read_catalog(Path("runs")),
        read_details("mine-a5-s0", Path("runs")),
        read_details(str(sweep), Path("runs")),
        compare_runs(*pair, Path("runs")),
    ):
        text = shown(event, width)
        assert all(len(line.rstrip()) <= width for line in text.splitlines()), text
    table = shown(read_catalog(Path("runs")), width)
    for fact in ("mine-a5-s0", "2.500 -> 2.000", "not significant", "damaged", "run.json: "):
        assert fact in table, fact
    assert ("LoRA r8" in table) is (width == 140)


def test_runs_table_shows_no_control_characters() -> None:
    run = RunSummary("runs/\x1b[31mred", "other", RunStatus.OTHER, "", 0, model="\x07", problem="\x1b]0;title")
    text = shown(RunsListed("runs", (run,)), 100)
    assert "\x1b[31mred" not in text
    assert "\x1b]0;" not in text


def test_runs_rm_needs_yes_without_a_terminal(neft: Neft, pair: list[str]) -> None:
    result = neft("runs", "rm", *pair)
    assert result.code == 2
    assert "hint     neft runs rm runs/mine-a5-s0 runs/mine-a0-s0 --yes\n" in result.err
    assert len(list(Path("runs").iterdir())) == 2
    result = neft("runs", "rm", "mine-a5-s0", "--yes")
    assert result.code == 0
    assert result.out.startswith("removed: runs/mine-a5-s0\nfreed_bytes=")
    assert [run.name for run in Path("runs").iterdir()] == ["mine-a0-s0"]


@pytest.mark.parametrize(("answer", "left"), [("y\n", 1), ("YES\n", 1), ("n\n", 2), ("\n", 2), ("", 2), ("yep\n", 2)])
def test_runs_rm_asks_on_a_terminal(
    neft: Neft, pair: list[str], answer: str, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", question)
    assert neft("runs", "rm", "mine-a5-s0").code == (0 if left == 1 else 1)
    assert "Remove 1 folder (" in question.getvalue()
    assert "runs/mine-a5-s0   run, finished, " in question.getvalue()
    assert len(list(Path("runs").iterdir())) == left


def test_age_units() -> None:
    ages = {0: "0 s", 89: "89 s", 90: "2 min", 5399: "90 min", 5400: "2 h", 129_599: "36 h", 129_600: "2 d"}
    for seconds, text in ages.items():
        assert run_rows.age("2026-01-02T03:04:05+00:00", NOW + seconds) == text
    assert run_rows.age("2026-01-02T03:04:05+00:00", NOW - 5) == "0 s"  # a clock that was set back
    assert run_rows.age("") == ""


def test_table_row_of_a_sweep() -> None:
    sweep = RunSummary(
        "runs/s",
        "sweep",
        RunStatus.UNFINISHED,
        "",
        2048,
        "owner/a-model-with-a-very-long-name",
        Method("full"),
        alphas=(0.0, 2.5, 5.0, 10.0, 15.0),
        seeds=(0, 1, 2),
        steps=7,
        total_steps=15,
        recommended="neftune.alpha=5",
    )
    row = run_rows.table_row(sweep)
    assert (row["alpha"], row["seed"], row["steps"]) == ("0 to 15", "0-2", "7/15 cells")
    assert (row["model"], row["verdict"]) == ("a-model-with-a-very-l...", "best: alpha 5")
