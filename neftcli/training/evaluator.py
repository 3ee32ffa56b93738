"""Measurements of a run's model without noise: losses, and answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from neftcli.data.tokens import split_prompt_and_reference, tokenize_prompt
from neftcli.events import Evaluated, Observer, Phase, PhaseId
from neftcli.models.limits import max_prompt_length
from neftcli.system import distributed
from neftcli.training.collectives import split_across_processes
from neftcli.training.resume import LossEvaluation

if TYPE_CHECKING:
    from neftcli.data.tokens import TokenRow
    from neftcli.evaluation.generation import Answer
    from neftcli.evaluation.loss import RowLoss
    from neftcli.recipe.schema import Generation, Recipe
    from neftcli.rows.example import Example
    from neftcli.training.assets import Assets
    from neftcli.training.signals import StopSignal


class Evaluator:
    """Measures the model before, during and after training, always the same way and without noise.

    Args:
        recipe: The resolved recipe.
        assets: Rows, tokenizer and device.
        observer: Receives the phases.
        stop: A requested stop ends a measurement at once.
    """

    def __init__(self, recipe: Recipe, assets: Assets, observer: Observer, stop: StopSignal) -> None:
        self._recipe, self._assets, self._observer, self._stop = recipe, assets, observer, stop

    def evaluate(self, model: Any, step: int) -> LossEvaluation:
        """Measure the loss of the held-out rows and of the probe rows, and metrics of answers; each process a part.

        Raises:
            StopRequested: A stop was requested during the measurement; raised in all processes.
        """
        from neftcli.evaluation.loss import RowLoss, mean_loss, row_losses

        settings, prepared = self._recipe.evaluation, self._assets.prepared
        self._observer.notify(Phase(PhaseId.EVALUATING if step else PhaseId.EVALUATING_BASE))

        def measure(rows: Sequence[TokenRow]) -> Sequence[RowLoss]:
            with self._stop.interruptible():
                autocast = self._assets.compute.autocast()
                return row_losses(model, rows, settings.per_device_eval_batch_size, autocast, self._observer)

        held_out = split_across_processes(prepared.held_out, measure, RowLoss)
        probe = split_across_processes(prepared.train[: settings.probe_rows], measure, RowLoss)
        metrics = self._measure_answers(model)
        return LossEvaluation(Evaluated(step, mean_loss(held_out), mean_loss(probe), metrics), held_out)

    def _measure_answers(self, model: Any) -> dict[str, float | None]:
        """Answer the first held-out prompts greedily, and return the metrics of evaluation.during.

        Raises:
            StopRequested: A stop was requested before the last answer; raised in all processes.
        """
        settings = self._recipe.evaluation
        if not settings.during:
            return {}
        from neftcli.evaluation.generation import Answer
        from neftcli.metrics.answer_means import mean_answer_metrics

        examples = self._assets.prepared.held_out_examples[: settings.during_rows]
        greedy = replace(settings.generation, do_sample=False)
        self._observer.notify(Phase(PhaseId.GENERATING_ANSWERS))

        def answer(part: Sequence[Example]) -> Sequence[Answer]:
            with self._stop.interruptible():
                return self._generate(model, part, greedy)

        answers = split_across_processes(examples, answer, Answer)
        references = [split_prompt_and_reference(example)[1] for example in examples]
        return mean_answer_metrics(list(dict.fromkeys(settings.during)), answers, references)

    def generate_answers(self, model: Any, phase: PhaseId) -> list[str]:
        """Generate answers to the first held-out prompts on rank 0; other ranks return an empty list."""
        settings = self._recipe.evaluation
        examples = self._assets.prepared.held_out_examples[: settings.samples]
        if not examples or not distributed.is_main_process():
            return []
        self._observer.notify(Phase(phase))
        return [answer.text for answer in self._generate(model, examples, settings.generation)]

    def _generate(self, model: Any, examples: Sequence[Example], generation: Generation) -> list[Answer]:
        """Generate the answer to each prompt in this process."""
        from neftcli.evaluation.generation import generate_answers

        assets = self._assets
        return generate_answers(
            model,
            assets.chat,
            [tokenize_prompt(assets.chat, example) for example in examples],
            generation,
            assets.compute.autocast(),
            max_prompt_length(model.config, generation.max_new_tokens),
            self._recipe.training.seed,
            self._observer,
        )
