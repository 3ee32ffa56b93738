"""What one model does on the rows: its losses, its answers, its task scores; each kept on disk as it comes."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.tokens import TokenRow, split_prompt_and_reference, tokenize, tokenize_prompt
from neftcli.errors import DataError, NeftError, Problem
from neftcli.evaluation.answer_metrics import AnswerMetrics, measure_answer
from neftcli.evaluation.cache import Result, ResultCache, lock_results
from neftcli.evaluation.generation import Answer, iter_answers
from neftcli.evaluation.loss import RowLoss, iter_losses
from neftcli.evaluation.tasks import TaskResult, run_tasks
from neftcli.events import Notice, Observer, Phase, PhaseId, PhaseProgress
from neftcli.models.limits import (
    embedding_size,
    max_prompt_length,
    require_embeddings,
    require_positions,
)
from neftcli.models.loading import load_config
from neftcli.recipe.schema import TaskSettings

if TYPE_CHECKING:
    from neftcli.evaluation.held_out import EvalRows
    from neftcli.evaluation.targets import EvalTarget
    from neftcli.recipe.schema import Evaluation
    from neftcli.system.device import ComputeConfig

ONLY_SAMPLED = ("seed", "batch_size", "temperature", "top_p")  # greedy answers depend on none of them


@dataclass(frozen=True)
class ModelResults:
    """What one model did, example by example.

    Attributes:
        subject: The model.
        rows: The tokens of each example; None where it holds no answer, and so has no loss.
        losses: Likewise, its loss.
        answers: Its answers; empty where none were asked for.
        metrics: What was measured of each answer.
        tasks: Benchmark tasks.
    """

    subject: EvalTarget
    rows: tuple[TokenRow | None, ...]
    losses: tuple[RowLoss | None, ...]
    answers: tuple[Answer, ...] = ()
    metrics: tuple[AnswerMetrics, ...] = ()
    tasks: tuple[TaskResult, ...] = ()


class Progress:
    """Tells how far a part is, with its rate and the time that is left."""

    def __init__(self, phase: PhaseId, subject: str, known: int, total: int, unit: str, observer: Observer) -> None:
        self._phase, self._subject, self._known, self._total = phase, subject, known, total
        self._unit, self._observer = unit, observer
        self._begun, self._amount = time.perf_counter(), 0
        observer.notify(PhaseProgress(phase, known, total, 0.0, 0.0, 0.0, unit, subject))

    def add(self, done: int, amount: int) -> None:
        """`done` items are done in all, and `amount` more of the unit."""
        self._amount += amount
        elapsed = time.perf_counter() - self._begun
        remaining = elapsed / max(1, done - self._known) * (self._total - done)
        rate = self._amount / elapsed if elapsed else 0.0
        self._observer.notify(
            PhaseProgress(self._phase, done, self._total, elapsed, remaining, rate, self._unit, self._subject)
        )


@dataclass(frozen=True, slots=True)
class CachedTask:
    """The results of a task, as they are stored; several if it is a group."""

    results: tuple[TaskResult, ...]


class ModelEvaluator:
    """Measures one model on the rows; the model is loaded when the first number is not known yet.

    Making one checks what can be checked without the weights.

    Args:
        subject: What is measured.
        rows: On what.
        settings: How.
        compute: Where and in which arithmetic.
        seed: Of sampled answers.
        observer: Is told how far it is.
        answers: Generate answers, too.
        model: The model where it is loaded already.
        known: Rows with their losses by this model, in the order of `rows`, where they were measured just now.

    Raises:
        InputError: The model can't be found, is not what it was, or has too few positions for the rows.
    """

    def __init__(
        self,
        subject: EvalTarget,
        rows: EvalRows,
        settings: Evaluation,
        compute: ComputeConfig,
        seed: int,
        observer: Observer,
        *,
        answers: bool = True,
        model: Any = None,
        known: Sequence[tuple[TokenRow, RowLoss]] = (),
    ) -> None:
        self.subject, self.rows, self.settings, self.compute = subject, rows, settings, compute
        self.seed, self.observer, self._model, self._known = seed, observer, model, known
        self.observer.notify(Phase(PhaseId.LOADING_TOKENIZER, self.subject.name))
        self._chat = subject.load_chat_format(rows.row_format, observer)
        self._tokenizer = self._chat.tokenizer
        self._identity = subject.identity(compute) | {
            "tokenizer": _sha256(self._tokenizer.backend_tokenizer.to_str()),
            "stops": sorted(self._chat.stop_token_ids),
        }
        config = load_config(subject.reference, subject.recipe.model.trust_remote_code)
        self._scored = self._token_rows()
        lost = sum(bool(example.answer() or example.text) for example in rows.examples) - len(self._scored)
        if lost and not self._scored:
            raise DataError(
                Problem(
                    f"{rows.source}: no token would carry loss, so there is no held-out loss",
                    f"{lost} row{'' if lost == 1 else 's'} whose question alone fills data.max_length "
                    f"{rows.data.max_length}",
                    f"--max-length {rows.data.max_length * 4}",
                )
            )
        if lost:
            have = "row has no loss: its" if lost == 1 else "rows have no loss: their"
            observer.notify(Notice(f"{subject.name}: {lost} {have} question alone fills data.max_length"))
        self._require_embedded(config)
        require_positions(config, max((len(row.input_ids) for row in self._scored.values()), default=0))
        self._room = max_prompt_length(config, settings.generation.max_new_tokens) if answers else None
        self._prompts = [tokenize_prompt(self._chat, example) for example in rows.examples] if answers else []

    def _require_embedded(self, config: Any) -> None:
        """Reject rows with a token that the model has no embedding for; without an answer the question is checked."""
        vocabulary = embedding_size(config)
        scored = ((row.location, row.input_ids) for row in self._scored.values())
        questions = (example for place, example in enumerate(self.rows.examples) if place not in self._scored)
        prompts = ((example.location, tokenize_prompt(self._chat, example)) for example in questions)
        require_embeddings(scored, self._tokenizer, vocabulary)
        require_embeddings(prompts, self._tokenizer, vocabulary)

    def run(self) -> ModelResults:
        """All of it."""
        with lock_results(self.subject.home / "evaluation", self.observer):
            losses = self._losses()
            answers = self._answers()
            tasks = [result for name in self.settings.tasks for result in self._task(name)]
        self._model = None
        gc.collect()  # a cycle may hold it still
        references = [split_prompt_and_reference(example)[1] or None for example in self.rows.examples]
        pairs = zip(answers, references, strict=True) if answers else ()
        places = range(len(self.rows.examples))
        return ModelResults(
            self.subject,
            tuple(map(self._scored.get, places)),
            tuple(map(losses.get, places)),
            tuple(answers),
            tuple(measure_answer(answer.text, reference) for answer, reference in pairs),
            tuple(tasks),
        )

    def _loaded(self) -> Any:
        if self._model is None:
            self.observer.notify(Phase(PhaseId.LOADING_MODEL, self.subject.name))
            self._model = self.subject.load(self.compute)
        return self._model

    def _store(self, kind: str, result: type[Result], depends_on: dict[str, Any]) -> ResultCache[Result]:
        return ResultCache(self.subject.home / "evaluation", kind, result, {"model": self._identity, **depends_on})

    def _token_rows(self) -> dict[int, TokenRow]:
        """Place to tokens, of the examples that hold an answer of which something is left within data.max_length."""
        examples, data = self.rows.examples, self.rows.data
        places = [place for place, example in enumerate(examples) if example.answer() or example.text]
        chosen = [examples[place] for place in places]
        tokens = tokenize(self._chat, chosen, data.max_length, data.loss_on)
        return {place: row for place, row in zip(places, tokens, strict=True) if row.loss_tokens()}

    def _losses(self) -> dict[int, RowLoss]:
        scored = self._scored
        rows_of = [[place, row.input_ids, row.labels] for place, row in scored.items()]
        store = self._store("losses", RowLoss, {"rows": rows_of})
        pairs = zip(scored.items(), self._known, strict=False)
        store.add({place: loss for (place, row), (known, loss) in pairs if row == known})
        missing = [place for place in scored if place not in store.found]
        if missing:
            model = self._loaded()
            progress = Progress(
                PhaseId.COMPUTING_LOSSES, self.subject.name, len(store.found), len(scored), "rows", self.observer
            )
            size = self.settings.per_device_eval_batch_size
            rows = [scored[place] for place in missing]
            for batch in iter_losses(model, rows, size, self.compute.autocast(), self.observer):
                _require_finite(self.subject.name, [loss for _, loss in batch])
                store.add({missing[index]: loss for index, loss in batch})
                progress.add(len(store.found), len(batch))
        return {place: replace(store.found[place], where=row.location) for place, row in scored.items()}

    def _answers(self) -> list[Answer]:
        chosen = asdict(self.settings.generation) | {"seed": self.seed}
        if not self.settings.generation.do_sample:
            chosen = {name: value for name, value in chosen.items() if name not in ONLY_SAMPLED}
        store = self._store("answers", Answer, {"prompts": self._prompts, "settings": chosen})
        if len(store.found) < len(self._prompts):
            self._generate(store)
        return [store.found[place] for place in range(len(self._prompts))]

    def _generate(self, store: ResultCache[Answer]) -> None:
        model, prompts = self._loaded(), self._prompts
        if cut := sum(self._room is not None and len(prompt) > self._room for prompt in prompts):
            self.observer.notify(
                Notice(f"{cut} prompts lose their beginning: the model has {self._room} positions for one")
            )
        progress = Progress(
            PhaseId.GENERATING_ANSWERS, self.subject.name, len(store.found), len(prompts), "tokens", self.observer
        )
        batches = iter_answers(
            model,
            self._chat,
            prompts,
            self.settings.generation,
            self.compute.autocast(),
            self._room,
            known=frozenset(store.found),
            seed=self.seed,
            observer=self.observer,
        )
        for batch in batches:
            if batch:
                store.add(dict(batch))
                progress.add(len(store.found), sum(answer.tokens for _, answer in batch))

    def _task(self, name: str) -> list[TaskResult]:
        """The results of one task, several where it is a group. Those of a file of one's own are not kept.

        What such a file includes and reads can't be told from outside.
        """
        kept = not Path(name).expanduser().is_file()
        settings = self.settings.task_settings
        asked: dict[str, Any] = {"task": name, "lm_eval": metadata.version("lm_eval")}
        if settings != TaskSettings():
            asked["settings"] = asdict(settings)
        if settings.apply_chat_template:
            asked["chat_template"] = self._tokenizer.chat_template
        store = self._store("task", CachedTask, asked) if kept else None
        if store is not None and 0 in store.found:
            return list(store.found[0].results)
        model = self._loaded()
        self.observer.notify(Phase(PhaseId.RUNNING_TASK, f"{self.subject.name}, {name}"))
        size = self.settings.per_device_eval_batch_size
        autocast = self.compute.autocast()
        results = run_tasks(model, self._tokenizer, [name], size, autocast, self.observer, settings)
        if store is not None:
            store.add({0: CachedTask(tuple(results))})
        return results


def _require_finite(name: str, losses: Sequence[RowLoss]) -> None:
    """Checks that every loss is a number.

    Raises:
        NeftError: One is not; the model's weights are broken.
    """
    broken = [loss for loss in losses if not math.isfinite(loss.negative_log_likelihood)]
    if broken:
        raise NeftError(
            Problem(
                f"{name}: the loss of a row is no number, so its weights are broken",
                f"{broken[0].negative_log_likelihood} in {broken[0].where}",
                "another model; if a run's training ended so, a smaller --learning-rate",
            )
        )


def _sha256(text: str) -> str:
    return sha256(text.encode()).hexdigest()
