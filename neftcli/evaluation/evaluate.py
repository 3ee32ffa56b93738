"""`neft eval`: measure models on rows that none was trained on, compare them, and write a report."""

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
from neftcli.data.splits import normalize_prompt
from neftcli.data.tokens import split_prompt_and_reference
from neftcli.errors import InputError, NeftError, Preempted, Problem, first_line
from neftcli.evaluation.cache import lock_results
from neftcli.evaluation.held_out import EvalRows, read_eval_rows
from neftcli.evaluation.targets import EvalTarget, base_model_target, resolve_target
from neftcli.events import EvaluationReport, Notice, Observer, Phase, PhaseId, PhaseProgress
from neftcli.models.validate import validate_model, validate_weight_files
from neftcli.recipe.trust import TRUST
from neftcli.system.files import atomic_write, remove, remove_stale_files, require_no_link, require_no_links
from neftcli.system.libraries import capture_library_output, prepare_libraries

if TYPE_CHECKING:
    from neftcli.evaluation.comparison import JudgeScores
    from neftcli.evaluation.measurement import ModelResults
    from neftcli.recipe.yaml_file import Layer

ALPACA_EVAL = "alpaca-eval"
EVALUATION, QUESTION, LOG = "evaluation", ".question", "eval.log"


@dataclass(frozen=True)
class EvalRequest:
    """What `neft eval` was asked for.

    Attributes:
        target: A run or a model.
        baseline: Another run or model to compare with, or None.
        dataset: Rows to evaluate on; None for those that the run held out.
        split: Their split, or None.
        max_rows: Use at most N of them.
        overrides: Options of the recipe from the command line.
        base: Compare with the model that the run began from, too.
        answers: Generate answers.
        show: How many prompts to show answers to, side by side.
        export: "alpaca-eval", or None.
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
    """Does what `request` asks for; what was measured before is not measured again.

    Raises:
        InputError: A model, the rows or a setting can't be used; nothing was measured.
        JudgeError: The judge could not be asked; what it said so far is kept.
        Preempted: It was stopped by KeyboardInterrupt; what was measured is kept.
    """
    begun = time.perf_counter()
    prepare_libraries()
    targets = _resolve_targets(request, observer)
    _require_two(targets)
    _check(targets, request)
    rows = read_eval_rows(
        targets, request.dataset, request.split, request.max_rows, _typed_data(request.overrides), observer
    )
    for target in targets:
        validate_model(target.reference, target.recipe, trains=False)
        validate_weight_files(target.reference)
    measurable = request.answers or targets[0].recipe.evaluation.tasks
    if not measurable and not any(example.answer() or example.text for example in rows.examples):
        raise InputError(
            Problem(
                "there is nothing to measure",
                f"{len(rows.examples)} rows without an answer, --no-answers",
                "leave --no-answers out, or give rows with answers",
            )
        )
    _require_no_links(targets)
    folder = _report_folder(rows, targets, request)
    observer.notify(Phase(PhaseId.LOADING_LIBRARIES))
    with _explained(folder), capture_library_output(folder / LOG):
        results = _measure(targets, rows, request, observer)
        failure, judged = None, None
        try:
            judged = _judge(results, rows, observer)
        except NeftError as error:  # what was measured is reported all the same
            failure = error
        report = _report(request, results, judged, rows, folder, begun)
    observer.notify(report)
    if failure is not None:
        raise failure
    return report


def _resolve_targets(request: EvalRequest, observer: Observer) -> list[EvalTarget]:
    """Find what is evaluated: the run or model asked for, the baseline, the run's base model.

    If baseline and base model have the same weights, the table has one of them: a run as the baseline, a model as the
    base, which is read by the run's chat template.

    A run's recipe may come from somebody else, so code that comes with a model runs only if that is typed.
    """
    trusted = [layer[TRUST].value for layer in request.overrides if TRUST in layer][-1:] == [True]
    main = _trusting(resolve_target(request.target, "run", request.overrides), trusted)
    targets = [main]
    if request.baseline is not None:
        evaluation = [
            {path: setting for path, setting in layer.items() if path.startswith("evaluation.")}
            for layer in request.overrides
        ]
        targets.append(_trusting(resolve_target(request.baseline, "baseline", evaluation), trusted))
    base = base_model_target(main) if request.base else None
    if base is None:
        return targets
    if request.baseline is not None and _same_weights(targets[1], base):
        is_run = targets[1].run is not None
        role = "baseline" if is_run else "base"
        observer.notify(Notice(f"{request.baseline} is the base model of this run: the table shows it once, as {role}"))
        return targets if is_run else [main, base]
    return [*targets, base]


def _same_weights(baseline: EvalTarget, base: EvalTarget) -> bool:
    """Whether a baseline is the base model itself, and not an adapter on it or a quantised copy."""
    if baseline.has_adapter() or (baseline.run is None and baseline.recipe.quantization != base.recipe.quantization):
        return False
    ours, theirs = baseline.reference, base.reference
    if ours.kind == "hub":
        return (ours.kind, ours.location, ours.revision) == (theirs.kind, theirs.location, theirs.revision)
    return theirs.kind == ours.kind and Path(ours.location).resolve() == Path(theirs.location).resolve()


def _require_two(targets: Sequence[EvalTarget]) -> None:
    """Refuse a run or model that is compared with itself, by whatever path.

    Raises:
        InputError: Both have their weights in one folder.
    """
    main = targets[0]
    for target in targets:
        if target.role != "baseline":
            continue
        folders = [one.run.model if one.run else Path(one.reference.location) for one in (main, target)]
        if folders[0].resolve() != folders[1].resolve():
            continue
        paired_run = main.paired_run()
        hint = "leave --baseline out, which compares with the base model" if main.run else "--baseline OTHER"
        if paired_run is not None and paired_run.exists:
            hint = f"--baseline {shlex.quote(paired_run.run)}, or {hint}"
        what = "run" if main.run else "model"
        raise InputError(Problem(f"this {what} is compared with itself", f"--baseline {target.name}", hint))


def _trusting(target: EvalTarget, trusted: bool) -> EvalTarget:
    """The target, whose own code may run or not.

    Raises:
        ModelError: It may, and comes from the hub without a commit.
    """
    from neftcli.models.loading import require_pinned_code

    require_pinned_code(target.reference, trusted)
    model = replace(target.recipe.model, trust_remote_code=trusted)
    return replace(target, recipe=replace(target.recipe, model=model))


def _check(targets: Sequence[EvalTarget], request: EvalRequest) -> None:
    """Refuses what can't be done, before anything is loaded."""
    from neftcli.evaluation.chat_server import require_reachable
    from neftcli.evaluation.judge import check_judge
    from neftcli.models.chat_templates import validate_chat_template

    for target in targets:
        if target.tokenizer is None:  # a saved tokenizer brings its template
            validate_chat_template(target.recipe.model.chat_template)
    settings = targets[0].recipe.evaluation
    check_judge(settings.judge)
    judged = settings.judge.base_url is not None
    if judged and len(targets) == 1:
        raise InputError(
            Problem(
                "--judge compares the answers of two models", "one model", "--baseline RUN, or a run without --no-base"
            )
        )
    if request.export not in (None, ALPACA_EVAL):
        raise InputError(Problem("--export writes one format", str(request.export), f"--export {ALPACA_EVAL}"))
    wanted = {"--judge": judged, "--show": request.show > 0, "--export": request.export is not None}
    needless = [name for name, given in wanted.items() if given and not request.answers]
    if needless:
        raise InputError(Problem(f"{needless[0]} needs answers", "--no-answers", "leave --no-answers out"))
    if judged:
        require_reachable(settings.judge)
    if settings.tasks:
        from neftcli.evaluation.tasks import check_tasks

        check_tasks(settings.tasks, settings.task_settings)


def _require_no_links(targets: Sequence[EvalTarget]) -> None:
    """Checks that nothing that will be written to is a link; the models themselves are only read.

    Raises:
        InputError: Something is.
    """
    for target in targets:
        require_no_link(target.home)
        require_no_links(target.home / EVALUATION)
    if targets[0].recipe.evaluation.judge.base_url is not None:
        require_no_links(_judge_folder(targets[0]))


def _judge_folder(target: EvalTarget) -> Path:
    """Where a judge's replies are kept, for all runs beside this one."""
    return target.home.parent / "judge"


def _typed_data(overrides: Sequence[Layer]) -> list[str]:
    return [path for layer in overrides for path in layer if path.startswith("data.")]


def _report(
    request: EvalRequest,
    results: Sequence[ModelResults],
    judged: JudgeScores | None,
    rows: EvalRows,
    folder: Path,
    begun: float,
) -> EvaluationReport:
    """Compare, and write the report."""
    from neftcli.evaluation import report as writing
    from neftcli.evaluation.comparison import compare_models, win_rate_bounds
    from neftcli.evaluation.sentences import conclusion
    from neftcli.statistics.paired import MIN_PROMPTS

    prompts = [normalize_prompt(writing.instruction(example)) for example in rows.examples]
    metrics, comparisons = compare_models(results, judged, prompts)
    models = tuple(one.target.column() for one in results)
    changed = writing.changed_options(results)
    report = EvaluationReport(
        models=models,
        rows=len(rows.examples),
        source=rows.source,
        metrics=metrics,
        comparisons=comparisons,
        scope=writing.scope(results, comparisons, prompts),
        remarks=tuple(writing.remarks(results, judged, comparisons)),
        shown=tuple(writing.select_most_different(results, rows, request.show)),
        folder=str(folder),
        seconds=time.perf_counter() - begun,
        paired_run=results[0].target.paired_run(),
        conclusion=tuple(conclusion(models, metrics, comparisons, changed)),
        sweep_command=writing.sweep_command(results) if len(set(prompts)) >= MIN_PROMPTS else None,
        win_rate_bounds=None if judged is None else win_rate_bounds(judged),
    )
    writing.write(report, results, judged, rows, folder, export=request.export == ALPACA_EVAL)
    return report


def _report_folder(rows: EvalRows, targets: Sequence[EvalTarget], request: EvalRequest) -> Path:
    """The folder of the report: that of the same question asked before, else a new one.

    Raises:
        InputError: It can't be made.
    """
    baseline = next((target.name for target in targets if target.role == "baseline"), None)
    name = rows.label + (f"-vs-{baseline}" if baseline else "")
    asked = [data_fingerprint(rows.examples), str(targets[0].recipe.evaluation), request.base, request.answers]
    question = sha256(repr([*asked, request.export]).encode()).hexdigest() + "\n"
    parent = targets[0].home / EVALUATION
    number = 1
    try:
        while True:
            folder = parent / (name if number == 1 else f"{name}-{number}")
            folder.mkdir(parents=True, exist_ok=True)
            remove_stale_files(folder)
            mark = folder / QUESTION
            if not mark.is_file():
                atomic_write(mark, question)
            if mark.read_text() == question:
                return folder
            number += 1
    except OSError as error:
        raise InputError(
            Problem(f"{parent} can't be written", error.strerror or str(error), "free space, or rights to write there")
        ) from None


def _measure(
    targets: Sequence[EvalTarget], rows: EvalRows, request: EvalRequest, observer: Observer
) -> list[ModelResults]:
    from neftcli.evaluation.measurement import ModelEvaluator
    from neftcli.system.device import resolve_compute_config

    main = targets[0].recipe
    frozen_weights = main.adapter.type != "none" or targets[0].run is None
    compute = resolve_compute_config(main.training.precision, main.model.dtype, frozen_weights=frozen_weights)
    settings, seed = main.evaluation, main.training.seed
    measurements = [
        ModelEvaluator(target, rows, settings, compute, seed, observer, answers=request.answers) for target in targets
    ]
    return [measurement.run() for measurement in measurements]


def _judge(results: Sequence[ModelResults], rows: EvalRows, observer: Observer) -> JudgeScores | None:
    """The judge's scores against the baseline's answers, or the base model's where there is no baseline."""
    settings = results[0].target.recipe.evaluation.judge
    if settings.base_url is None:
        return None
    from neftcli.evaluation.comparison import JudgeScores
    from neftcli.evaluation.judge import AnswerPair, find_length_matched, judge_pairs
    from neftcli.evaluation.report import instruction

    opponent = results[1]
    pairs = [
        AnswerPair(instruction(example), ours.text, theirs.text, split_prompt_and_reference(example)[1])
        for example, ours, theirs in zip(rows.examples, results[0].answers, opponent.answers, strict=True)
    ]
    judged_models = f"{results[0].target.name} against {opponent.target.name}"
    begun = time.perf_counter()

    def advance(done: int, total: int) -> None:
        elapsed = time.perf_counter() - begun
        rate = done / elapsed if elapsed else 0.0
        remaining = (total - done) / rate if rate else 0.0
        observer.notify(
            PhaseProgress(PhaseId.JUDGING, done, total, elapsed, remaining, rate, "verdicts", subject=judged_models)
        )

    place = _judge_folder(results[0].target)
    with lock_results(place, observer):
        judged = judge_pairs(pairs, settings, place / "verdicts.jsonl", advance)
    return JudgeScores(
        opponent.target.role,
        tuple(one.score for one in judged),
        tuple(find_length_matched(pairs)),
        tuple(len(pair.answer) - len(pair.opponent) for pair in pairs),
        tuple(one.verdicts for one in judged),
    )


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """What ends an evaluation early, in words that say what is kept."""
    kept = f"what was measured so far is kept beside {folder}"
    try:
        yield
    except KeyboardInterrupt:
        raise Preempted(Problem(f"stopped; {kept}", hint="the same command again goes on from there")) from None
    except InputError:  # nothing was measured, so nothing stays of it, but for an earlier report
        if not (folder / "report.json").is_file():
            for name in (QUESTION, LOG):
                remove(folder / name)
            with suppress(OSError):  # something else lies there, or the folder is a link
                for empty in (folder, *folder.parents[:2]):
                    empty.rmdir()
        raise
    except NeftError:
        raise
    except OSError as error:
        raise NeftError(
            Problem(
                f"a file can't be read or written; {kept}",
                f"{error.strerror or error}{': ' + str(error.filename) if error.filename else ''}",
                "free space, or the file's rights, then the same command again",
            )
        ) from error
    except Exception as error:
        from neftcli.system.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        raise NeftError(
            Problem(
                f"there was not enough memory to load a model, or for one row alone; {kept}",
                first_line(error),
                "--set evaluation.generation.max_new_tokens=64, shorter rows, or a machine with more memory",
            )
        ) from error
