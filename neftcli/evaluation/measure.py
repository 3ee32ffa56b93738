"""What one model does on the rows: its losses, its answers, its task scores; each kept on disk as it comes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.prepare import loss_on_answers
from neftcli.data.tokens import TokenRow, prompt_and_reference, render_prompt, tokenize
from neftcli.errors import NeftError, Problem
from neftcli.evaluation.generation import Answer, answers_as_they_come
from neftcli.evaluation.loss import RowLoss, row_losses
from neftcli.evaluation.metrics import AnswerMetrics
from neftcli.evaluation.metrics import measure as measure_answer
from neftcli.evaluation.store import Store, alone
from neftcli.evaluation.tasks import TaskResult, run_tasks
from neftcli.events import Advance, Notice, Observer, Phase
from neftcli.models.by_recipe import longest_prompt, require_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neftcli.evaluation.rows import Rows
    from neftcli.evaluation.subjects import Subject
    from neftcli.machine.device import Machine
    from neftcli.recipe.schema import Evaluation


ONLY_SAMPLED = ("seed", "batch_size", "temperature", "top_p")  # greedy answers depend on none of them


@dataclass(frozen=True)
class Results:
    """What one model did, example by example.

    Attributes:
        subject: The model.
        rows: The tokens of each example; None where it holds no answer, and so has no loss.
        losses: Likewise, its loss.
        answers: Its answers; empty where none were asked for.
        metrics: What was measured of each answer.
        tasks: Benchmark tasks.
    """

    subject: Subject
    rows: tuple[TokenRow | None, ...]
    losses: tuple[RowLoss | None, ...]
    answers: tuple[Answer, ...] = ()
    metrics: tuple[AnswerMetrics, ...] = ()
    tasks: tuple[TaskResult, ...] = ()


@dataclass
class Measurement:
    """Measures one model on the rows; the model is loaded when the first number is not known yet.

    Attributes:
        subject: What is measured.
        rows: On what.
        settings: How.
        machine: Where and in which arithmetic.
        seed: Of sampled answers.
        observer: Is told how far it is.
    """

    subject: Subject
    rows: Rows
    settings: Evaluation
    machine: Machine
    seed: int
    observer: Observer
    _model: Any = field(default=None, init=False)

    def run(self, *, answers: bool) -> Results:
        """All of it; with `answers` false only losses and tasks."""
        self._tell("loading the tokenizer")
        tokenizer = self.subject.load_tokenizer(self.rows.layout, self.observer)
        identity = self.subject.identity(self.machine) | {"tokenizer": _sha256(tokenizer.backend_tokenizer.to_str())}
        with alone(self.subject.home / "evaluation", self.observer):
            rows, losses = self._losses(tokenizer, identity)
            found = self._answers(tokenizer, identity) if answers else []
            tasks = self._tasks(tokenizer, identity)
        self._model = None
        references = [prompt_and_reference(example)[1] or None for example in self.rows.examples]
        metrics = [measure_answer(one.text, text) for one, text in zip(found, references, strict=True)] if found else []
        return Results(self.subject, rows, losses, tuple(found), tuple(metrics), tuple(tasks))

    def _tell(self, what: str) -> None:
        self.observer.notify(Phase(f"{self.subject.name}: {what}"))

    def _loaded(self) -> Any:
        if self._model is None:
            self._tell("loading the model")
            self._model = self.subject.load(self.machine)
        return self._model

    def _store(self, kind: str, depends_on: dict[str, Any]) -> Store:
        return Store(self.subject.home / "evaluation", kind, depends_on)

    def _losses(
        self, tokenizer: PreTrainedTokenizerBase, identity: dict[str, Any]
    ) -> tuple[tuple[TokenRow | None, ...], tuple[RowLoss | None, ...]]:
        examples = self.rows.examples
        with_answer = [place for place, example in enumerate(examples) if example.answer() or example.text]
        chosen = [examples[place] for place in with_answer]
        only_answers = loss_on_answers(self.rows.data, self.rows.layout)
        tokens = list(tokenize(tokenizer, chosen, self.rows.data.max_length, only_answers))
        scored = {place: row for place, row in zip(with_answer, tokens, strict=True) if row.loss_tokens()}
        store = self._store(
            "losses", {"model": identity, "rows": [[p, r.input_ids, r.labels] for p, r in scored.items()]}
        )
        missing = [place for place in scored if place not in store.found]
        if missing:
            model = self._loaded()
            require_positions(model.config, max(len(scored[place].input_ids) for place in missing))
            self._tell(f"loss of {len(missing)} rows")
            size = self.settings.per_device_eval_batch_size
            losses = row_losses(
                model, [scored[place] for place in missing], size, self.machine.autocast(), self.observer
            )
            _require_finite(self.subject.name, losses)
            store.add({place: asdict(loss) for place, loss in zip(missing, losses, strict=True)})
        places = range(len(examples))
        kept = {place: RowLoss(**{key: store.found[place][key] for key in RowLoss.__slots__}) for place in scored}
        return tuple(map(scored.get, places)), tuple(map(kept.get, places))

    def _answers(self, tokenizer: PreTrainedTokenizerBase, identity: dict[str, Any]) -> list[Answer]:
        generation = self.settings.generation
        prompts = [render_prompt(tokenizer, example) for example in self.rows.examples]
        chosen = asdict(generation)
        if not generation.do_sample:  # a greedy answer depends on neither
            chosen = {
                name: value for name, value in chosen.items() if name not in ("batch_size", "temperature", "top_p")
            }
        depends_on = {"model": identity, "prompts": prompts, "settings": chosen}
        store = self._store("answers", depends_on | ({"seed": self.seed} if generation.do_sample else {}))
        if len(store.found) < len(prompts):
            self._generate(tokenizer, prompts, store)
        return [
            Answer(**{name: store.found[place][name] for name in Answer.__slots__}) for place in range(len(prompts))
        ]

    def _generate(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], store: Store) -> None:
        model = self._loaded()
        generation = self.settings.generation
        room = longest_prompt(model.config, generation.max_new_tokens)
        cut = sum(
            room is not None and len(ids) > room for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]
        )
        if cut:
            self.observer.notify(Notice(f"{cut} prompts lose their beginning: the model has {room} positions for one"))
        begun, tokens, known = time.perf_counter(), 0, len(store.found)
        part = f"{self.subject.name}: answers"
        self.observer.notify(Advance(part, known, len(prompts), 0.0, 0.0, 0.0, "tokens"))
        batches = answers_as_they_come(
            model,
            tokenizer,
            prompts,
            generation,
            self.machine.autocast(),
            room,
            known=frozenset(store.found),
            seed=self.seed,
            observer=self.observer,
        )
        for batch in batches:
            if not batch:
                continue
            store.add({place: asdict(answer) for place, answer in batch})
            tokens += sum(answer.tokens for _, answer in batch)
            elapsed, done = time.perf_counter() - begun, len(store.found)
            remaining = elapsed / max(1, done - known) * (len(prompts) - done)
            self.observer.notify(Advance(part, done, len(prompts), elapsed, remaining, tokens / elapsed, "tokens"))

    def _tasks(self, tokenizer: PreTrainedTokenizerBase, identity: dict[str, Any]) -> list[TaskResult]:
        names = self.settings.tasks
        if not names:
            return []
        files = {name: Path(name).read_text("utf-8") for name in names if Path(name).is_file()}
        store = self._store("tasks", {"model": identity, "tasks": list(names), "files": files})
        if not store.found or len(store.found) < store.found[0]["of"]:  # a group of tasks gives several results
            model = self._loaded()
            self._tell(f"tasks {', '.join(names)}")
            size = self.settings.per_device_eval_batch_size
            results = run_tasks(model, tokenizer, names, size, self.machine.autocast())
            store.add({place: asdict(result) | {"of": len(results)} for place, result in enumerate(results)})
        kept = [store.found[place] for place in range(len(store.found))]
        return [TaskResult(**{key: _tuple(one[key]) for key in TaskResult.__slots__}) for one in kept]


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
                f"{broken[0].negative_log_likelihood} in {broken[0].where}, and in {len(broken) - 1} other rows",
                "another model, or --set training.precision=float32 when it is trained",
            )
        )


def _sha256(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _tuple(value: Any) -> Any:
    """JSON's list as the tuple that it was."""
    return tuple(value) if isinstance(value, list) else value
