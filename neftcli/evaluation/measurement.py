"""Evaluation of one model on the rows: its losses, answers and task results, each cached on disk as it is computed."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib import metadata
from typing import TYPE_CHECKING, Any

from neftcli.data.tokens import TokenRow, split_prompt_and_reference, tokenize, tokenize_prompt
from neftcli.errors import DataError, NeftError, Problem
from neftcli.evaluation.cache import Result, ResultCache, lock_results
from neftcli.evaluation.generation import Answer, iter_answers
from neftcli.evaluation.loss import RowLoss, iter_losses
from neftcli.evaluation.progress import ProgressReporter
from neftcli.evaluation.task_files import is_task_file
from neftcli.evaluation.tasks import TaskResult, run_tasks
from neftcli.events import Notice, Observer, Phase, PhaseId
from neftcli.metrics.answer_metrics import AnswerMetrics, measure_answer
from neftcli.models.limits import (
    embedding_size,
    max_prompt_length,
    require_embeddings,
    require_positions,
)
from neftcli.models.loading import load_config
from neftcli.models.new_tokens import extended_size
from neftcli.recipe.schema import TaskSettings
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.data.chat import ChatFormat
    from neftcli.evaluation.held_out import EvalRows
    from neftcli.evaluation.targets import EvalTarget
    from neftcli.recipe.schema import Evaluation, Generation
    from neftcli.system.device import ComputeConfig

SAMPLING_ONLY = ("seed", "batch_size", "temperature", "top_p")  # greedy answers do not depend on them


@dataclass(frozen=True)
class ModelResults:
    """Results of one model, row by row.

    Attributes:
        target: The model.
        rows: Tokens of each row; None if the row has no answer, and so no loss.
        losses: Loss of each row; None if it has none.
        answers: Answer to each row; empty if none were generated.
        metrics: Metrics of each answer.
        tasks: Results of the benchmark tasks.
    """

    target: EvalTarget
    rows: tuple[TokenRow | None, ...]
    losses: tuple[RowLoss | None, ...]
    answers: tuple[Answer, ...] = ()
    metrics: tuple[AnswerMetrics, ...] = ()
    tasks: tuple[TaskResult, ...] = ()


def model_identity(target: EvalTarget, chat: ChatFormat, compute: ComputeConfig) -> dict[str, Any]:
    """Return everything about a model that its results depend on."""
    return target.identity(compute) | {
        "tokenizer": _sha256(chat.tokenizer.backend_tokenizer.to_str()),
        "stops": sorted(chat.stop_token_ids),
    }


def effective_settings(generation: Generation, seed: int) -> dict[str, Any]:
    """Return the settings that answers depend on: of greedy decoding, without those of sampling."""
    settings = asdict(generation) | {"seed": seed}
    if generation.do_sample:
        return settings
    return {name: value for name, value in settings.items() if name not in SAMPLING_ONLY}


@dataclass(frozen=True, slots=True)
class CachedTask:
    """The cached results of a task; several if it is a group."""

    results: tuple[TaskResult, ...]


class ModelEvaluator:
    """Evaluates one model on the rows; the model is loaded when a result is not in the cache.

    The constructor checks what can be checked without the weights.

    Args:
        target: The model.
        rows: The rows.
        settings: The recipe's `evaluation`.
        compute: Device and precision.
        seed: Seed of sampled answers.
        observer: Receives progress and notices.
        answers: Generate answers.
        model: The model, if it is already loaded.
        known: Rows with their losses by this model, in the order of `rows`, if they are already known.

    Raises:
        InputError: The model can't be found, has changed, or has too few positions for the rows.
    """

    def __init__(
        self,
        target: EvalTarget,
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
        self.target, self.rows, self.settings, self.compute = target, rows, settings, compute
        self.seed, self.observer, self._model, self._known = seed, observer, model, known
        self.observer.notify(Phase(PhaseId.LOADING_TOKENIZER, self.target.name))
        self._chat = target.load_chat_format(rows.row_format, observer)
        self._tokenizer = self._chat.tokenizer
        self._identity = model_identity(target, self._chat, compute)
        config = load_config(target.reference, target.recipe.model.trust_remote_code)
        self._token_rows = self._tokenize_rows()
        with_answer = sum(bool(example.answer() or example.text) for example in rows.examples)
        without_loss = with_answer - len(self._token_rows)
        if without_loss and not self._token_rows:
            raise DataError(
                Problem(
                    f"{rows.source.describe()}: no token would have a loss, so there is no held-out loss",
                    f"{count_noun(without_loss, 'row')} whose prompt alone fills data.max_length "
                    f"{rows.data.max_length}",
                    f"--max-length {rows.data.max_length * 4}",
                )
            )
        if without_loss:
            have = count_noun(without_loss, "row has no loss: its", "rows have no loss: their")
            observer.notify(Notice(f"{target.name}: {have} prompt alone fills data.max_length"))
        self._require_embeddings(config)
        require_positions(config, max((len(row.input_ids) for row in self._token_rows.values()), default=0))
        self._max_prompt_length = max_prompt_length(config, settings.generation.max_new_tokens) if answers else None
        self._prompts = [tokenize_prompt(self._chat, example) for example in rows.examples] if answers else []

    def run(self) -> ModelResults:
        """Compute all results that are not cached, and return all."""
        with lock_results(self.target.home / "evaluation", self.observer):
            losses = self._compute_losses()
            answers = self._compute_answers()
            tasks = [result for name in self.settings.tasks for result in self._compute_task(name)]
        if self._model is not None:
            self._model = None
            gc.collect()  # a reference cycle may still hold it
        metrics = []
        if answers:
            for example, answer in zip(self.rows.examples, answers, strict=True):
                reference = split_prompt_and_reference(example)[1] or None
                metrics.append(measure_answer(answer.text, reference))
        indices = range(len(self.rows.examples))
        return ModelResults(
            self.target,
            tuple(self._token_rows.get(index) for index in indices),
            tuple(losses.get(index) for index in indices),
            tuple(answers),
            tuple(metrics),
            tuple(tasks),
        )

    def _tokenize_rows(self) -> dict[int, TokenRow]:
        """Tokenize the rows with an answer, by index; without rows of whose answer data.max_length leaves nothing."""
        examples, data = self.rows.examples, self.rows.data
        indices = [index for index, example in enumerate(examples) if example.answer() or example.text]
        rows = tokenize(self._chat, [examples[index] for index in indices], data.max_length, data.loss_on)
        return {index: row for index, row in zip(indices, rows, strict=True) if row.loss_tokens()}

    def _require_embeddings(self, config: Any) -> None:
        """Reject rows with a token that the model has no embedding for; of rows without a loss, check the prompt."""
        vocabulary = extended_size(embedding_size(config), self._tokenizer, self.target.recipe)
        rows = [(row.location, row.input_ids) for row in self._token_rows.values()]
        prompts = (
            (example.location, tokenize_prompt(self._chat, example))
            for index, example in enumerate(self.rows.examples)
            if index not in self._token_rows
        )
        require_embeddings(rows, self._tokenizer, vocabulary)
        require_embeddings(prompts, self._tokenizer, vocabulary)

    def _load_model(self) -> Any:
        """Return the model, loaded at the first call."""
        if self._model is None:
            self.observer.notify(Phase(PhaseId.LOADING_MODEL, self.target.name))
            self._model = self.target.load(self.compute)
        return self._model

    def _open_cache(self, kind: str, result: type[Result], depends_on: dict[str, Any]) -> ResultCache[Result]:
        return ResultCache(self.target.home / "evaluation", kind, result, {"model": self._identity, **depends_on})

    def _compute_losses(self) -> dict[int, RowLoss]:
        """Return the losses by index of the row."""
        rows = self._token_rows
        tokens = [[index, row.input_ids, row.labels] for index, row in rows.items()]
        cache = self._open_cache("losses", RowLoss, {"rows": tokens})
        known = zip(rows.items(), self._known, strict=False)
        cache.add({index: loss for (index, row), (known_row, loss) in known if row == known_row})
        missing = [index for index in rows if index not in cache.results]
        if missing:
            model = self._load_model()
            progress = ProgressReporter(
                PhaseId.COMPUTING_LOSSES, self.target.name, len(cache.results), len(rows), self.observer
            )
            batch_size = self.settings.per_device_eval_batch_size
            missing_rows = [rows[index] for index in missing]
            for batch in iter_losses(model, missing_rows, batch_size, self.compute.autocast(), self.observer):
                _require_finite(self.target.name, [loss for _, loss in batch])
                cache.add({missing[position]: loss for position, loss in batch})
                progress.add(len(cache.results), len(batch))
        return {index: replace(cache.results[index], location=row.location) for index, row in rows.items()}

    def _compute_answers(self) -> list[Answer]:
        settings = effective_settings(self.settings.generation, self.seed)
        cache = self._open_cache("answers", Answer, {"prompts": self._prompts, "settings": settings})
        if any(index not in cache.results for index in range(len(self._prompts))):
            self._generate_missing(cache)
        return [cache.results[index] for index in range(len(self._prompts))]

    def _generate_missing(self, cache: ResultCache[Answer]) -> None:
        model, prompts, limit = self._load_model(), self._prompts, self._max_prompt_length
        too_long = 0 if limit is None else sum(len(prompt) > limit for prompt in prompts)
        if too_long:
            lost = count_noun(too_long, "prompt lost its beginning", "prompts lost their beginning")
            self.observer.notify(Notice(f"{lost}: the model has room for {limit} tokens"))
        progress = ProgressReporter(
            PhaseId.GENERATING_ANSWERS, self.target.name, len(cache.results), len(prompts), self.observer
        )
        batches = iter_answers(
            model,
            self._chat,
            prompts,
            self.settings.generation,
            self.compute.autocast(),
            limit,
            known=frozenset(cache.results),
            seed=self.seed,
            observer=self.observer,
        )
        for batch in batches:
            if batch:
                cache.add(dict(batch))
                progress.add(len(cache.results), sum(answer.tokens for _, answer in batch))

    def _compute_task(self, name: str) -> list[TaskResult]:
        """Run one task, or take its results from the cache; several if it is a group.

        Results of a task file are not cached, because the files that it includes and reads are not known.
        """
        settings = self.settings.task_settings
        cache = None
        if not is_task_file(name):
            depends_on: dict[str, Any] = {"task": name, "lm_eval": metadata.version("lm_eval")}
            if settings != TaskSettings():
                depends_on["settings"] = asdict(settings)
            if settings.apply_chat_template:
                depends_on["chat_template"] = self._tokenizer.chat_template
            cache = self._open_cache("task", CachedTask, depends_on)
            if 0 in cache.results:
                return list(cache.results[0].results)
        model = self._load_model()
        self.observer.notify(Phase(PhaseId.RUNNING_TASK, f"{self.target.name}, {name}"))
        batch_size = self.settings.per_device_eval_batch_size
        autocast = self.compute.autocast()
        results = run_tasks(model, self._tokenizer, [name], batch_size, autocast, self.observer, settings)
        if cache is not None:
            cache.add({0: CachedTask(tuple(results))})
        return results


def _require_finite(name: str, losses: Sequence[RowLoss]) -> None:
    """Check that every loss is finite.

    Raises:
        NeftError: One is not, so the model's weights are broken.
    """
    broken = [loss for loss in losses if not math.isfinite(loss.negative_log_likelihood)]
    if broken:
        raise NeftError(
            Problem(
                f"{name}: the loss of a row is not a finite number, so the weights are broken",
                f"{broken[0].negative_log_likelihood} in {broken[0].location}",
                "evaluate another model; if a run's training ended like this, train with a smaller --learning-rate",
            )
        )


def _sha256(text: str) -> str:
    return sha256(text.encode()).hexdigest()
