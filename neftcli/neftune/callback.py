"""NEFTune as a callback of transformers' Trainer, and so of every trainer that is built on it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from neftcli.neftune.hooks import Noise, neftune
from neftcli.neftune.noise import NoiseKind, Schedule


class NeftuneCallback(TrainerCallback):
    """Adds NEFTune's noise while a trainer trains, and none before or after.

        trainer = SFTTrainer(model, args, train_dataset=rows, callbacks=[NeftuneCallback(alpha=5.0)])

    Each document gets the noise of its own length, whether rows are padded, packed or padding-free. The noise is seeded
    with the trainer's `seed` and the number of the step, so a resumed run draws the noise of an uninterrupted one.

    Args:
        alpha: Noise scale; with 0 a run is bit-identical to one without the callback.
        noise: As in `neftune`; "symmetric" also needs the trainer's collator wrapped with `paired`.
        length: As in `neftune`.
        schedule: As in `neftune`, over all steps of the trainer.

    Attributes:
        options: The arguments above.

    Raises:
        NeftuneError: When training begins: an option is invalid, or Hugging Face's own noise is on.
    """

    def __init__(
        self,
        alpha: float = 5.0,
        *,
        noise: NoiseKind = "uniform",
        length: str = "tokens",
        schedule: Schedule = "constant",
    ) -> None:
        self.options: dict[str, Any] = {"alpha": alpha, "noise": noise, "length": length, "schedule": schedule}
        self._attached = ExitStack()
        self._noise: Noise | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Attach the noise to the trainer's model, with its adapters."""
        self.detach()
        context = neftune(model, **self.options, total_steps=state.max_steps, seed=args.seed)
        self._noise = self._attached.enter_context(context)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seed the noise with the number of the step."""
        if self._noise is not None:
            self._noise.begin_step(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the noise."""
        self.detach()

    def detach(self) -> None:
        """Remove the noise; call it if training ended by an exception and the model is used further."""
        self._attached.close()
        self._noise = None
