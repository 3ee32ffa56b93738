"""`neft eval`: evaluate models on rows that none of them was trained on, compare them, and write a report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.data.prepare import data_fingerprint
from neftcli.data.sources import require_local_source
from neftcli.data.splits import normalize_prompt
from neftcli.data.tokens import instruction, split_prompt_and_reference
from neftcli.errors import OUT_OF_MEMORY, Checks, InputError, NeftError, Preempted, Problem, first_line
from neftcli.evaluation.cache import lock_results
from neftcli.evaluation.exports import EXPORTS
from neftcli.evaluation.held_out import EvalRows, read_eval_rows
from neftcli.evaluation.targets import EvalTarget, Role, apply_typed_trust, base_model_target, resolve_target
from neftcli.events import EvaluationReport, Notice, Observer, Phase, PhaseId, PhaseProgress
from neftcli.models.validate import validate_model, validate_weight_files
from neftcli.system.files import atomic_write, remove, remove_stale_files, require_no_link, require_no_links
from neftcli.system.libraries import capture_library_output, prepare_libraries
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.evaluation.measurement import ModelResults
    from neftcli.metrics.registry import JudgeScores
    from neftcli.recipe.yaml_file import Layer

EVALUATION, LOG = "evaluation", "eval.log"
QUESTION = ".question"
"""File in a report's folder with the hash of what the evaluation was asked."""


@dataclass(frozen=True)
class EvalRequest:
    """Arguments of `neft eval`.

    Attributes:
        target: A run or a model.
        baseline: Another run or model to compare with; None for none.
        dataset: Rows to evaluate on; None for the held-out split of the run.
        split: Split of the dataset; None for its default.
        max_rows: Use at most N rows.
        overrides: Recipe options from the command line.
        base: Compare with the base model of the run as well.
        answers: Generate answers.
        show: Number of prompts to show with all answers side by side.
        export: Id of an export; None for no export.
    """

    target: str
    baseline: str | None = None
    dataset: str | None = None
    split: str | None = None
    max_rows: int | None = None
    overrides: tuple[Layer, ...] = ()
    base: bool = True
    answers: bool = True
    show: int = 0
    export: str | None = None


def evaluate(request: EvalRequest, observer: Observer) -> EvaluationReport:
    """Evaluate the models, compare them and write the report; cached results are not computed again.

    Raises:
        InputError: A model, the rows or a setting can't be used; nothing was started.
        JudgeError: The judge failed; its replies so far are kept.
        Preempted: KeyboardInterrupt; results so far are kept.
    """
    started = time.perf_counter()
    prepare_libraries()
    targets = _resolve_targets(request, observer)
    _require_different_models(targets)
    _require_usable_settings(targets, request)
    data_options = [path for layer in request.overrides for path in layer if path.startswith("data.")]
    rows = read_eval_rows(targets, request.dataset, request.split, request.max_rows, data_options, observer)
    for target in targets:
        validate_model(target.reference, target.recipe, trains=False)
        validate_weight_files(target.reference)
    measures_answers = request.answers or targets[0].recipe.evaluation.tasks
    if not measures_answers and not any(example.answer() or example.text for example in rows.examples):
        raise InputError(
            Problem(
                "there is nothing to measure",
                f"{count_noun(len(rows.examples), 'row')} without an answer, --no-answers",
                "leave out --no-answers, or evaluate on rows with answers",
            )
        )
    _require_no_links(targets)
    folder = _make_report_folder(rows, targets, request)
    observer.notify(Phase(PhaseId.LOADING_LIBRARIES))
    with _explain_errors(folder), capture_library_output(folder / LOG):
        results = _evaluate_models(targets, rows, request, observer)
        failure, judged = None, None
        try:
            judged = _judge_answers(results, rows, observer)
        except NeftError as error:  # the other results are reported all the same
            failure = error
        report = _write_report(request, results, judged, rows, folder, started)
    observer.notify(report)
    with capture_library_output(folder / LOG):
        _report_to_trackers(report, targets[0], observer)
    if failure is not None:
        raise failure
    return report


def _resolve_targets(request: EvalRequest, observer: Observer) -> list[EvalTarget]:
    """Resolve the models: the requested run or model, the baseline, the base model of the run.

    If baseline and base model have the same weights, the table has one of them: a run as the baseline, a model as the
    base, which uses the run's chat template.
    """
    named: list[tuple[str, Role, Sequence[Layer]]] = [(request.target, "run", request.overrides)]
    if request.baseline is not None:
        evaluation_options = [
            {path: setting for path, setting in layer.items() if path.startswith("evaluation.")}
            for layer in request.overrides
        ]
        named.append((request.baseline, "baseline", evaluation_options))
    targets, checks = [], Checks()
    for name, role, overrides in named:
        with checks:
            try:
                targets.append(apply_typed_trust(resolve_target(name, role, overrides), request.overrides))
            except InputError as error:
                origin = "--baseline: " if role == "baseline" else ""
                raise type(error)(
                    *(replace(problem, message=f"{origin}{problem.message}") for problem in error.problems)
                ) from None
    if request.dataset is not None:
        with checks:
            require_local_source(request.dataset)
    checks.raise_errors()
    main = targets[0]
    base = base_model_target(main) if request.base else None
    if base is None:
        return targets
    if request.baseline is not None and _have_same_weights(targets[1], base):
        is_run = targets[1].run is not None
        role = "baseline" if is_run else "base"
        observer.notify(Notice(f"{request.baseline} is the base model of this run: the table shows it once, as {role}"))
        return targets if is_run else [main, base]
    return [*targets, base]


def _have_same_weights(baseline: EvalTarget, base: EvalTarget) -> bool:
    """Return whether a baseline is the base model itself, not an adapter on it or a quantized copy."""
    if baseline.has_adapter() or (baseline.run is None and baseline.recipe.quantization != base.recipe.quantization):
        return False
    ours, theirs = baseline.reference, base.reference
    if ours.kind == "hub":
        return (ours.kind, ours.location, ours.revision) == (theirs.kind, theirs.location, theirs.revision)
    return theirs.kind == ours.kind and Path(ours.location).resolve() == Path(theirs.location).resolve()


def _require_different_models(targets: Sequence[EvalTarget]) -> None:
    """Reject a run or model that is compared with itself, by whatever path.

    Raises:
        InputError: Both have their weights in the same folder.
    """
    main = targets[0]
    for target in targets:
        if target.role != "baseline":
            continue
        if _weights_folder(main).resolve() != _weights_folder(target).resolve():
            continue
        paired_run = main.paired_run()
        hint = "leave out --baseline to compare with the base model" if main.run else "--baseline OTHER"
        if paired_run is not None and paired_run.exists:
            hint = f"--baseline {shlex.quote(paired_run.run)}, or {hint}"
        kind = "run" if main.run else "model"
        raise InputError(Problem(f"this {kind} is compared with itself", f"--baseline {target.name}", hint))


def _weights_folder(target: EvalTarget) -> Path:
    return target.run.model if target.run else Path(target.reference.location)


def _require_usable_settings(targets: Sequence[EvalTarget], request: EvalRequest) -> None:
    """Reject settings that can't work, before anything is loaded."""
    from neftcli.evaluation.chat_server import require_reachable
    from neftcli.evaluation.judge import check_judge
    from neftcli.models.chat_templates import validate_chat_template

    for target in targets:
        if target.tokenizer is None:  # a saved tokenizer has its own template
            validate_chat_template(target.recipe.model.chat_template)
    settings = targets[0].recipe.evaluation
    check_judge(settings.judge)
    has_judge = settings.judge.base_url is not None
    if has_judge and len(targets) == 1:
        raise InputError(
            Problem(
                "--judge compares the answers of two models", "one model", "--baseline RUN, or a run without --no-base"
            )
        )
    if request.export is not None and request.export not in EXPORTS:
        hint = f"--export {' or '.join(EXPORTS)}"
        raise InputError(Problem("--export writes one format", request.export, hint))
    needs_answers = {"--judge": has_judge, "--show": request.show > 0, "--export": request.export is not None}
    for flag, is_set in needs_answers.items():
        if is_set and not request.answers:
            raise InputError(Problem(f"{flag} needs answers", "--no-answers", "leave out --no-answers"))
    if has_judge:
        require_reachable(settings.judge)
    if settings.tasks:
        from neftcli.evaluation.tasks import check_tasks

        check_tasks(settings.tasks, settings.task_settings)


def _require_no_links(targets: Sequence[EvalTarget]) -> None:
    """Check that no folder that neft will write to is a link; the models themselves are only read.

    Raises:
        InputError: A folder is a link.
    """
    for target in targets:
        require_no_link(target.home)
        require_no_links(target.home / EVALUATION)
    if targets[0].recipe.evaluation.judge.base_url is not None:
        require_no_links(_judge_folder(targets[0]))


def _judge_folder(target: EvalTarget) -> Path:
    """Return the folder of the judge's replies, shared by all runs in the same folder."""
    return target.home.parent / "judge"


def _make_report_folder(rows: EvalRows, targets: Sequence[EvalTarget], request: EvalRequest) -> Path:
    """Return the folder of the report: that of an earlier evaluation of the same question, or a new one.

    Raises:
        InputError: It can't be created.
    """
    baseline = next((target.name for target in targets if target.role == "baseline"), None)
    name = rows.label + (f"-vs-{baseline}" if baseline else "")
    settings = str(targets[0].recipe.evaluation)
    parts = [data_fingerprint(rows.examples), settings, request.base, request.answers, request.export]
    question = sha256(repr(parts).encode()).hexdigest() + "\n"
    parent = targets[0].home / EVALUATION
    number = 1
    try:
        while True:
            folder = parent / (name if number == 1 else f"{name}-{number}")
            folder.mkdir(parents=True, exist_ok=True)
            remove_stale_files(folder)
            question_file = folder / QUESTION
            if not question_file.is_file():
                atomic_write(question_file, question)
            if question_file.read_bytes() == question.encode():
                return folder
            number += 1
    except OSError as error:
        message = f"{parent} can't be written"
        hint = "free disk space, or get permission to write there"
        raise InputError(Problem(message, error.strerror or str(error), hint)) from None


def _evaluate_models(
    targets: Sequence[EvalTarget], rows: EvalRows, request: EvalRequest, observer: Observer
) -> list[ModelResults]:
    """Evaluate every model with the main one's settings, device and precision."""
    from neftcli.evaluation.measurement import ModelEvaluator

    main, compute = targets[0].recipe, targets[0].compute_config()
    evaluators = [
        ModelEvaluator(target, rows, main.evaluation, compute, main.training.seed, observer, answers=request.answers)
        for target in targets
    ]
    return [evaluator.run() for evaluator in evaluators]


def _judge_answers(results: Sequence[ModelResults], rows: EvalRows, observer: Observer) -> JudgeScores | None:
    """Ask the judge to compare the answers with the baseline's, or without a baseline with the base model's."""
    settings = results[0].target.recipe.evaluation.judge
    if settings.base_url is None:
        return None
    from neftcli.evaluation.judge import AnswerPair, find_length_matched, judge_pairs
    from neftcli.metrics.registry import JudgeScores

    opponent = results[1]
    pairs = [
        AnswerPair(instruction(example), ours.text, theirs.text, split_prompt_and_reference(example)[1])
        for example, ours, theirs in zip(rows.examples, results[0].answers, opponent.answers, strict=True)
    ]
    models = f"{results[0].target.name} against {opponent.target.name}"
    started = time.perf_counter()

    def notify_progress(done: int, total: int) -> None:
        elapsed = time.perf_counter() - started
        rate = done / elapsed if elapsed else 0.0
        remaining = (total - done) / rate if rate else 0.0
        observer.notify(
            PhaseProgress(PhaseId.JUDGING, done, total, elapsed, remaining, "verdicts", rate, "verdicts", models)
        )

    folder = _judge_folder(results[0].target)
    with lock_results(folder, observer):
        judged = judge_pairs(pairs, settings, folder / "verdicts.jsonl", notify_progress)
    return JudgeScores(
        opponent.target.role,
        tuple(pair.score for pair in judged),
        tuple(find_length_matched(pairs)),
        tuple(len(pair.answer) - len(pair.opponent) for pair in pairs),
        tuple(pair.verdicts for pair in judged),
    )


def _write_report(
    request: EvalRequest,
    results: Sequence[ModelResults],
    judged: JudgeScores | None,
    rows: EvalRows,
    folder: Path,
    started: float,
) -> EvaluationReport:
    """Compare the models, and write the report to its folder."""
    from neftcli.evaluation import report as reporting
    from neftcli.evaluation.comparison import compare_models, win_rate_bounds
    from neftcli.evaluation.sentences import conclusion
    from neftcli.statistics.paired import MIN_PROMPTS

    prompts = [normalize_prompt(instruction(example)) for example in rows.examples]
    metrics, comparisons = compare_models(results, judged, prompts)
    models = tuple(model.target.column() for model in results)
    changed = reporting.changed_options(results)
    report = EvaluationReport(
        models=models,
        rows=len(rows.examples),
        source=rows.source,
        metrics=metrics,
        comparisons=comparisons,
        scope=reporting.evaluation_scope(results, comparisons, prompts),
        remarks=(
            *reporting.selection_remarks([model.target for model in results], rows.source),
            *reporting.remarks(results, judged, comparisons),
        ),
        shown=tuple(reporting.select_most_different(results, rows, request.show)),
        folder=str(folder),
        seconds=time.perf_counter() - started,
        paired_run=results[0].target.paired_run(),
        conclusion=tuple(conclusion(models, metrics, comparisons, changed)),
        sweep_command=reporting.sweep_command(results) if len(set(prompts)) >= MIN_PROMPTS else None,
        win_rate_bounds=None if judged is None else win_rate_bounds(judged),
    )
    export = None if request.export is None else EXPORTS[request.export]
    reporting.write_report(report, results, judged, rows, folder, export=export)
    return report


def _report_to_trackers(report: EvaluationReport, target: EvalTarget, observer: Observer) -> None:
    """Report the verdict against a baseline to the trackers of the recipe that the evaluated run was reported to."""
    if target.run is None or not any(model.role == "baseline" for model in report.models):
        return
    record, evaluations = target.run.record(), target.run.evaluations()
    if record["status"] != "finished" or not record.get("trackers"):
        return
    from neftcli.runs.tracking import tracked_run
    from neftcli.trackers.verdicts import report_verdict, verdict_of_evaluation

    step = evaluations[-1]["step"] if evaluations else 0
    runs = []
    for tracker in dict.fromkeys(target.saved_recipe().training.report_to):
        recorded = record["trackers"].get(tracker)
        if recorded and (recorded["id"] is not None or not recorded["problem"]):
            runs.append((tracker, replace(tracked_run(target.run.path, recorded, step), purges=False)))
    report_verdict(verdict_of_evaluation(report), runs, observer)


@contextmanager
def _explain_errors(folder: Path) -> Iterator[None]:
    """Turn errors that end an evaluation early into messages that say which results are kept."""
    kept = f"results so far are kept next to {folder}"
    try:
        yield
    except KeyboardInterrupt:
        raise Preempted(Problem(f"stopped; {kept}", hint="the same command resumes")) from None
    except InputError:  # nothing was started, so nothing is left behind, except an earlier report
        if not (folder / "report.json").is_file():
            for name in (QUESTION, LOG):
                remove(folder / name)
            with suppress(OSError):  # a folder is not empty, or a link
                for empty in (folder, *folder.parents[:2]):
                    empty.rmdir()
        raise
    except NeftError:
        raise
    except OSError as error:
        got = str(error.strerror or error)
        if error.filename:
            got += f": {error.filename}"
        raise NeftError(
            Problem(
                f"a file can't be read or written; {kept}",
                got,
                "free disk space, or fix the file's permissions, then run the same command again",
            )
        ) from error
    except Exception as error:
        from neftcli.system.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        raise NeftError(
            Problem(
                f"out of memory while loading a model, or with a single row; {kept}",
                first_line(error),
                "--set evaluation.generation.max_new_tokens=64, shorter rows, or a machine with more memory",
                code=OUT_OF_MEMORY,
            )
        ) from error
