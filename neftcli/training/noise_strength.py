"""How strong the noise is on the first batch, told before training begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neftcli.events import NoiseMeasured, Notice, Observer
from neftcli.kernels.attention import use_document_attention
from neftcli.neftune import Strength, measure_strength

if TYPE_CHECKING:
    from neftcli.neftune import Noise
    from neftcli.recipe.schema import Neftune

ROWS = 8
"""Rows of the batch, at most."""


def report_noise_strength(trainer: Any, noise: Noise, settings: Neftune, observer: Observer) -> float:
    """Measures the noise on the first rows, tells of it, and returns its RMS over the signal's at layer 0.

    Args:
        trainer: Ready to train.
        noise: As it is attached.
        settings: The recipe's.
        observer: Is told of the measurement, and of what should be known of it.
    """
    strength = Strength(0.0, 1.0, 1.0, 0.0, 1.0)
    if settings.alpha > 0:
        rows = [trainer.train_dataset[index] for index in range(min(ROWS, len(trainer.train_dataset)))]
        batch = trainer._prepare_inputs(trainer.data_collator(rows))
        with use_document_attention(trainer.model, batch, fused=trainer.fused):
            strength = measure_strength(trainer.model, batch, noise)
    observer.notify(
        NoiseMeasured(
            settings.alpha,
            settings.noise,
            settings.length,
            settings.schedule,
            strength.ratio,
            strength.embedding_scale,
            strength.layer_gain,
        )
    )
    for warning in strength.warnings(settings.alpha):
        observer.notify(Notice(warning))
    return strength.ratio
