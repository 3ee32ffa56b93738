"""`neft answer`: the answers to all rows of a data set, in a file.

Answers are generated in the batches of an evaluation, the longest prompts first, and appended to `OUT.partial` as they
come. When all are there, OUT is written in the order of the rows. `OUT.settings.json` holds everything that the answers
depend on, so that a stopped command resumes, and answers of different models or settings never share a file.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from neftcli.data.mixture import EvalExamples, read_eval_examples
from neftcli.data.sources import is_hub_id, require_local_source
from neftcli.data.tokens import split_prompt_and_reference, tokenize_prompt
from neftcli.errors import OUT_OF_MEMORY, Checks, InputError, NeftError, Preempted, Problem, first_line
from neftcli.evaluation.cache import IndexedLine, append_lines, read_complete_lines
from neftcli.evaluation.held_out import eval_data
from neftcli.events import (
    AnswersWritten,
    EvaluationDataReady,
    Notice,
    Observer,
    Phase,
    PhaseId,
    RowsSource,
    StopReason,
)
from neftcli.inference.reasoning import add_opening_marker, begins_with_reasoning
from neftcli.inference.setup import MODEL_OPTIONS, check_targets, resolve_answering_target
from neftcli.rows.example import Example, Turn
from neftcli.runs.directory import RECIPE, RECORD, format_json_line
from neftcli.runs.schemas import RecordedCount, parse_json
from neftcli.system.files import (
    atomic_write,
    read_json_object,
    remove,
    require_no_link,
    require_short_name,
    temporary_name,
)
from neftcli.system.libraries import capture_library_output, prepare_libraries
from neftcli.system.locks import acquire_lock
from neftcli.system.paths import expand_home
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.data.chat import ChatFormat
    from neftcli.evaluation.generation import Answer
    from neftcli.evaluation.targets import EvalTarget
    from neftcli.recipe.yaml_file import Layer

ROW_OPTIONS = (*MODEL_OPTIONS, "data.config", "data.columns", "data.sample_by", "data.streaming")
"""Recipe options that `neft answer` uses."""
RUN_FILES = (RECORD, RECIPE)
"""Files by which a folder is known to be a run."""
PARTIAL, SETTINGS, LOCK = ".partial", ".settings.json", ".lock"
"""Endings of the files next to the answers."""
MAX_CHANGES = 5
MAX_SETTING_SHOWN = 40
"""Maximum characters of a setting in a message."""


class AnswerLine(TypedDict):
    """A line of the file of answers, as far as it is read again."""

    index: RecordedCount
    completion: str
    stop: str
    tokens: RecordedCount


@dataclass(frozen=True)
class AnswerRequest:
    """Arguments of `neft answer`.

    Attributes:
        target: A run or a model.
        dataset: Source of the rows.
        out: File of the answers.
        split: Split of the source; None for its default.
        max_rows: Answer the first N rows; None for all.
        overrides: Recipe options from the command line.
        seed: Seed of sampling; None for the run's.
    """

    target: str
    dataset: str
    out: Path
    split: str | None = None
    max_rows: int | None = None
    overrides: tuple[Layer, ...] = ()
    seed: int | None = None


def answer_rows(request: AnswerRequest, observer: Observer) -> AnswersWritten:
    """Answer every row of a data set, and write the answers to a file; a stopped command resumes.

    Raises:
        InputError: The model, the rows or the file can't be used; nothing was started.
        Preempted: KeyboardInterrupt; answers so far are kept.
    """
    started = time.perf_counter()
    prepare_libraries()
    checks = Checks()
    with checks:
        files = AnswerFiles(expand_home(str(request.out)), request.dataset)
    with checks:
        target = resolve_answering_target(request.target, request.overrides, ROW_OPTIONS)
    with checks:
        require_local_source(request.dataset)
    checks.raise_errors()
    check_targets([target], observer, reads_hub=is_hub_id(request.dataset))
    typed = [path for layer in request.overrides for path in layer if path.startswith("data.")]
    rows = _read_rows(request, target, typed, observer)
    observer.notify(Phase(PhaseId.LOADING_LIBRARIES))
    with files.lock(), _explain_errors(files), capture_library_output(Path(os.devnull)):
        written = _answer(request, target, rows, files, observer, started)
    observer.notify(written)
    return written


class AnswerFiles:
    """The file of answers and the files next to it.

    Args:
        out: The file of answers.
        dataset: Source of the rows, which it must not be.

    Raises:
        InputError: The file is a folder or a link, or its folder doesn't exist.
    """

    def __init__(self, out: Path, dataset: str) -> None:
        self.out = out
        self.partial = out.with_name(out.name + PARTIAL)
        self.settings = out.with_name(out.name + SETTINGS)
        self._lock = out.with_name(out.name + LOCK)
        if out.is_dir():
            raise InputError(Problem("--out must be a file", f"{out}, a folder", f"--out {out}/answers.jsonl"))
        if not out.parent.is_dir():
            hint = f"mkdir -p {shlex.quote(str(out.parent))}"
            raise InputError(Problem("--out: the folder does not exist", str(out.parent), hint))
        if out.exists() and out.resolve() == expand_home(dataset).resolve():
            raise InputError(Problem("--out would replace the questions", str(out), "--out answers.jsonl"))
        inside = (folder for folder in out.resolve().parents if all((folder / name).is_file() for name in RUN_FILES))
        if (run := next(inside, None)) is not None:
            message = f"--out: {out} is inside the run {run.name}, whose files only `neft train` and `neft eval` write"
            hint = f"--out {shlex.quote(str(run.parent / out.name))}"
            raise InputError(Problem(message, hint=hint))
        try:
            require_short_name(out, temporary_name(self.settings.name))
        except OSError as error:
            hint = "--out FILE    with a shorter name"
            raise InputError(Problem(f"--out: {out} can't be written", error.strerror or str(error), hint)) from None
        for file in (out, self.partial, self.settings, self._lock):
            require_no_link(file)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the files; a killed process releases its lock.

        Raises:
            InputError: Another process writes to them, or they can't be written.
        """
        from filelock import Timeout

        try:
            lock = acquire_lock(self._lock, other_folder="--out FILE")
        except Timeout:
            message = f"{self.out}: another process is writing these answers"
            raise InputError(Problem(message, hint="wait until it has ended")) from None
        except OSError as error:
            raise InputError(Problem(f"{self.out} can't be written", error.strerror or str(error))) from None
        try:
            yield
        finally:
            with suppress(OSError):
                remove(self._lock)
            lock.release()

    def begin(self, settings: Mapping[str, Any]) -> dict[int, Answer]:
        """Prepare the files for answers that depend on these settings; return the answers that are there already.

        Raises:
            InputError: The file holds other answers, or was not written by `neft answer`.
        """
        existing = [file for file in (self.out, self.partial, self.settings) if file.exists()]
        before = read_json_object(self.settings)
        if existing and before.keys() != settings.keys():
            message = f"{existing[0]}: this file was not written by neft answer"
            got = f"{self.settings.name} {'holds something else' if self.settings.exists() else 'is missing'}"
            raise InputError(Problem(message, got, "--out FILE    for a new file"))
        if not self.out.exists() and not self.partial.exists():
            atomic_write(self.settings, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
            return {}
        if changes := _find_changes(before, settings):
            message = f"{self.out} holds answers of another model, to other rows or with other settings"
            raise InputError(Problem(message, "; ".join(changes[:MAX_CHANGES]), self._hint_to_start_again()))
        total = settings["rows"]["rows"]
        return self._read_finished(total) if self.out.exists() else self._read_partial(total)

    def _hint_to_start_again(self) -> str:
        """Return a hint that names neft's own files, as far as they exist."""
        own = (self.out, self.settings, self.partial)
        names = " ".join(shlex.quote(str(file)) for file in own if file.exists())
        return f"--out FILE for a new file, or rm {names}    to start again"

    def _read_partial(self, total: int) -> dict[int, Answer]:
        """Return the answers of a stopped command; damaged lines are ignored, and their rows answered again."""
        from neftcli.evaluation.generation import Answer

        answers: dict[int, Answer] = {}
        for line in read_complete_lines(self.partial):
            with suppress(ValueError):
                index = parse_json(line, IndexedLine)["index"]
                if index < total:
                    answers[index] = parse_json(line, Answer)
        return answers

    def _read_finished(self, total: int) -> dict[int, Answer]:
        """Return the answers of a finished command.

        Raises:
            InputError: The file was changed so that it is not an answer to each row any more.
        """
        from neftcli.evaluation.generation import Answer

        answers: dict[int, Answer] = {}
        lines = self.out.read_bytes().splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                written = parse_json(line, AnswerLine)
            except ValueError:
                raise self._changed(number, "no JSON object with index, completion, stop and tokens") from None
            index = written["index"]
            if index >= total or index in answers:
                reason = "a second time" if index in answers else f"for {count_noun(total, 'row')}"
                raise self._changed(number, f"index {index} {reason}")
            truncated = written["stop"] == StopReason.MAX_NEW_TOKENS
            answers[index] = Answer(written["completion"], written["tokens"], truncated)
        if len(answers) < total:
            raise self._changed(len(lines), f"the file ends after {len(answers)} of {count_noun(total, 'row')}")
        return answers

    def _changed(self, line: int, got: str) -> InputError:
        message = f"{self.out}, line {line}: this file was changed: a line for each row is expected"
        return InputError(Problem(message, got, self._hint_to_start_again()))

    def describe_kept(self) -> str:
        """Return which answers are on disk."""
        if self.out.exists():
            return f"all answers are in {self.out}"
        if self.partial.exists() and self.partial.stat().st_size:
            return f"answers so far are kept in {self.partial}"
        return "there are no answers yet"

    def append(self, answers: Mapping[int, Answer]) -> None:
        """Append answers; they are on disk when this returns."""
        append_lines(self.partial, ({"index": index, **asdict(answer)} for index, answer in answers.items()))

    def finish(self, lines: Iterator[str]) -> None:
        """Write the file of answers unless it is there, and remove the partial one."""
        if not self.out.exists():
            atomic_write(self.out, "".join(lines))
        remove(self.partial)


def _read_rows(request: AnswerRequest, target: EvalTarget, typed: Sequence[str], observer: Observer) -> EvalExamples:
    """Read the rows, with or without answers, in their order."""
    observer.notify(Phase(PhaseId.READING_DATA))
    rows = read_eval_examples(eval_data(target.recipe.data, request.dataset, request.split, typed))
    examples = rows.examples[: request.max_rows] if request.max_rows else rows.examples
    observer.notify(
        EvaluationDataReady(
            source=RowsSource(request.dataset, rows.sources[0].split),
            format=rows.row_format,
            rows_read=rows.rows_read,
            rows=len(examples),
            with_answer=sum(bool(example.answer() or example.text) for example in examples),
            trained_on=0,
            repeated=0,
            skipped={reason: tuple(locations) for reason, locations in rows.skipped.items()},
            unread_columns=dict(rows.notes.unread_columns),
            unread_turn_keys=dict(rows.notes.unread_turn_keys),
            dropped_turns=dict(rows.notes.shortened),
            remarks=dict(rows.notes.remarks),
            sources=rows.sources,
        )
    )
    return EvalExamples(examples, rows.row_format, rows.rows_read, rows.skipped, rows.notes, rows.sources)


def _answer(
    request: AnswerRequest,
    target: EvalTarget,
    rows: EvalExamples,
    files: AnswerFiles,
    observer: Observer,
    started: float,
) -> AnswersWritten:
    """Generate the answers that are missing, and write the file."""
    from neftcli.evaluation.generation import iter_answers
    from neftcli.evaluation.measurement import effective_settings, model_identity
    from neftcli.evaluation.progress import ProgressReporter
    from neftcli.models.limits import embedding_size, max_prompt_length, require_embeddings
    from neftcli.models.loading import load_config
    from neftcli.models.new_tokens import extended_size

    compute = target.compute_config()
    observer.notify(Phase(PhaseId.LOADING_TOKENIZER, target.name))
    chat = target.load_chat_format(rows.row_format, observer)
    config = load_config(target.reference, target.recipe.model.trust_remote_code)
    generation = target.recipe.evaluation.generation
    limit = max_prompt_length(config, generation.max_new_tokens)
    prompts = [tokenize_prompt(chat, example) for example in rows.examples]
    locations = [example.location for example in rows.examples]
    vocabulary = extended_size(embedding_size(config), chat.tokenizer, target.recipe)
    require_embeddings(zip(locations, prompts, strict=True), chat.tokenizer, vocabulary)
    seed = target.recipe.training.seed if request.seed is None else request.seed
    settings = {
        "model": {"name": target.name, **model_identity(target, chat, compute)},
        "generation": effective_settings(generation, seed),
        "rows": {"source": request.dataset, "rows": len(prompts), "sha256": _hash_rows(prompts, rows)},
    }
    answers = files.begin(json.loads(json.dumps(settings)))
    earlier = len(answers)
    if earlier < len(prompts):
        too_long = 0 if limit is None else sum(len(prompt) > limit for prompt in prompts)
        if too_long:
            lost = count_noun(too_long, "prompt lost its beginning", "prompts lost their beginning")
            observer.notify(Notice(f"{lost}: the model has room for {limit} tokens"))
        observer.notify(Phase(PhaseId.LOADING_MODEL, target.name))
        model = target.load(compute)
        progress = ProgressReporter(PhaseId.GENERATING_ANSWERS, target.name, earlier, len(prompts), observer)
        batches = iter_answers(
            model,
            chat,
            prompts,
            generation,
            compute.autocast(),
            limit,
            known=frozenset(answers),
            seed=seed,
            observer=observer,
        )
        for batch in batches:
            new = {index: answer for index, answer in batch if index not in answers}
            files.append(new)
            answers |= new
            if new:
                progress.add(len(answers), sum(answer.tokens for answer in new.values()))
    files.finish(_lines(chat, rows, answers))
    return AnswersWritten(
        target.column(),
        str(files.out),
        len(prompts),
        earlier,
        sum(answer.truncated for answer in answers.values()),
        sum(answer.tokens for answer in answers.values()),
        time.perf_counter() - started,
    )


def _lines(chat: ChatFormat, rows: EvalExamples, answers: Mapping[int, Answer]) -> Iterator[str]:
    """Yield a line for each row, in order."""
    for index, example in enumerate(rows.examples):
        answer = answers[index]
        stop = StopReason.MAX_NEW_TOKENS if answer.truncated else StopReason.STOP_TOKEN
        text = add_opening_marker(answer.text) if begins_with_reasoning(chat, example) else answer.text
        written = {"completion": text, "stop": stop, "tokens": answer.tokens}
        yield format_json_line({"index": index, **_describe_row(example), **written})


def _describe_row(example: Example) -> dict[str, Any]:
    """Return the location, the prompt and the reference answer of a row, with the keys of prompt/completion rows."""
    prompt, reference = split_prompt_and_reference(example)
    described: dict[str, Any] = {"location": example.location, "prompt": prompt}
    if example.turns:
        asked = example.turns[:-1] if example.answer() else example.turns
        described["prompt"] = [_describe_turn(turn) for turn in asked]
    if example.tools:
        described["tools"] = json.loads(example.tools)
    if reference:
        described["reference"] = reference
    return described


def _describe_turn(turn: Turn) -> dict[str, Any]:
    content = "\n\n".join(filter(None, (turn.content, turn.context)))
    described: dict[str, Any] = {"role": turn.role, "content": content}
    if turn.reasoning:
        described["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        described["tool_calls"] = json.loads(turn.tool_calls)
    if turn.name:
        described["name"] = turn.name
    if turn.tool_call_id:
        described["tool_call_id"] = turn.tool_call_id
    return described


def _hash_rows(prompts: Sequence[Sequence[int]], rows: EvalExamples) -> str:
    """Return the SHA-256 of the prompts' tokens and of everything that is written about the rows."""
    digest = sha256()
    for prompt, example in zip(prompts, rows.examples, strict=True):
        digest.update(json.dumps([list(prompt), _describe_row(example)]).encode())
    return digest.hexdigest()


def _find_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ, such as "generation.seed 1, was 0"."""
    changes = []
    for section, values in after.items():
        earlier = before.get(section)
        earlier = earlier if isinstance(earlier, dict) else {}
        for name in {**earlier, **values}:
            if earlier.get(name) != values.get(name):
                changes.append(f"{section}.{name} {_shorten(values.get(name))}, was {_shorten(earlier.get(name))}")
    return changes


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_SETTING_SHOWN else f"{text[:MAX_SETTING_SHOWN]}..."


@contextmanager
def _explain_errors(files: AnswerFiles) -> Iterator[None]:
    """Turn errors that end the command early into messages that say which answers are kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise Preempted(Problem(f"stopped; {files.describe_kept()}", hint="the same command resumes")) from None
    except NeftError:
        raise
    except OSError as error:
        got = str(error.strerror or error)
        got += f": {error.filename}" if error.filename else ""
        hint = "free disk space, or fix the file's permissions, then run the same command again"
        raise NeftError(Problem(f"a file can't be read or written; {files.describe_kept()}", got, hint)) from error
    except Exception as error:
        from neftcli.system.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        message = f"out of memory while loading the model, or with a single row; {files.describe_kept()}"
        hint = "--max-new-tokens 64, shorter rows, or a machine with more memory"
        raise NeftError(Problem(message, first_line(error), hint, code=OUT_OF_MEMORY)) from error
