"""Measurements of a run's model: losses without noise, and answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neftcli.data.tokens import tokenize_prompt
from neftcli.events import Evaluated, Observer, Phase, PhaseId
from neftcli.models.limits import max_prompt_length
from neftcli.system import distributed
from neftcli.training.collectives import split_across_processes
from neftcli.training.resume import LossEvaluation

if TYPE_CHECKING:
    from neftcli.data.tokens import TokenRow
    from neftcli.evaluation.loss import RowLoss
    from neftcli.recipe.schema import Recipe
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
        """Measure the loss of the held-out rows and of the probe rows; each process measures a part.

        Raises:
            StopRequested: A stop was requested during the measurement; raised in all processes.
        """
        from neftcli.evaluation.loss import mean_loss, row_losses

        settings, prepared = self._recipe.evaluation, self._assets.prepared
        self._observer.notify(Phase(PhaseId.EVALUATING if step else PhaseId.EVALUATING_BASE))

        def measure(rows: Sequence[TokenRow]) -> Sequence[RowLoss]:
            with self._stop.interruptible():
                autocast = self._assets.compute.autocast()
                return row_losses(model, rows, settings.per_device_eval_batch_size, autocast, self._observer)

        held_out = split_across_processes(prepared.held_out, measure)
        probe = split_across_processes(prepared.train[: settings.probe_rows], measure)
        return LossEvaluation(Evaluated(step, mean_loss(held_out), mean_loss(probe)), held_out)

    def generate_answers(self, model: Any, phase: PhaseId) -> list[str]:
        """Generate answers to the first held-out prompts on rank 0; other ranks return an empty list."""
        from neftcli.evaluation.generation import generate_answers

        settings, assets = self._recipe.evaluation, self._assets
        examples = assets.prepared.held_out_examples[: settings.samples]
        if not examples or not distributed.is_main_process():
            return []
        self._observer.notify(Phase(phase))
        answers = generate_answers(
            model,
            assets.chat,
            [tokenize_prompt(assets.chat, example) for example in examples],
            settings.generation,
            assets.compute.autocast(),
            max_prompt_length(model.config, settings.generation.max_new_tokens),
            self._recipe.training.seed,
            self._observer,
        )
        return [answer.text for answer in answers]
