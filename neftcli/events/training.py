"""Events and their parts about a run, from the plan to the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class ModelReady:
    """The model is loaded, with its adapters if it has any.

    Attributes:
        name: Alias, hub id or path, as given.
        source: Origin of the weights.
        method: Training method: full, LoRA r16 or QLoRA r16.
        parameters: All parameters.
        trainable: Trainable parameters.
        precision: Precision of the matrix products.
        device: Name of the device.
    """

    id: ClassVar[str] = "model.ready"

    name: str
    source: str
    method: str
    parameters: int
    trainable: int
    precision: str
    device: str


@dataclass(frozen=True, slots=True)
class NoiseMeasured:
    """NEFTune is attached, and its strength is measured on the first batch.

    Attributes:
        alpha: NEFTune's alpha.
        kind: Distribution of the noise: uniform, gaussian or symmetric.
        length: Length in the noise scale: tokens or padded.
        schedule: Schedule of alpha.
        ratio: RMS of the noise over the RMS of the signal at the input of layer 0; 0 for alpha 0.
        embedding_scale: Factor that the architecture applies before the noise.
        layer_gain: Factor that the architecture applies after the noise.
    """

    id: ClassVar[str] = "noise.ready"

    alpha: float
    kind: str
    length: str
    schedule: str
    ratio: float
    embedding_scale: float
    layer_gain: float


@dataclass(frozen=True, slots=True)
class TrainingStarted:
    """The first step is about to begin.

    Attributes:
        run: Folder of the run.
        total_steps: Steps in all.
        epochs: Epochs in all.
    """

    id: ClassVar[str] = "training.started"

    run: str
    total_steps: int
    epochs: float


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """A step is done.

    Attributes:
        step: Steps done.
        total_steps: Steps in all.
        elapsed: Seconds since training began.
        remaining: Estimated seconds left.
    """

    id: ClassVar[str] = "training.progress"

    step: int
    total_steps: int
    elapsed: float
    remaining: float


@dataclass(frozen=True, slots=True)
class StepLogged:
    """A row of the training log.

    Attributes:
        step: Steps done.
        epoch: Epochs done.
        loss: Mean loss of the steps since the last row, with noise, in nats per token.
        learning_rate: Learning rate of the last step.
        grad_norm: Norm of its gradient before clipping.
        tokens_per_second: Tokens per second since the last row: all tokens of the rows, with and without loss, but no
            padding.
        memory_bytes: Peak memory so far: of the GPU, or of the process on a CPU; with several processes, of rank 0.
    """

    id: ClassVar[str] = "training.step"

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Losses without noise, in nats per token.

    Attributes:
        step: Steps done; 0 for the model before training.
        held_out_loss: Loss on the held-out split; None if it has no rows.
        train_loss: Loss on the probe rows of the training split; None if there are none.
    """

    id: ClassVar[str] = "training.evaluated"

    step: int
    held_out_loss: float | None
    train_loss: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out prompt and its answers.

    Attributes:
        prompt: The prompt.
        reference: Reference answer.
        base: Answer of the base model.
        tuned: Answer of the tuned model.
    """

    prompt: str
    reference: str
    base: str
    tuned: str


@dataclass(frozen=True, slots=True)
class PairedRun:
    """A run with the same recipe except for the noise.

    Attributes:
        run: Its folder.
        alpha: Its alpha.
        exists: True if the run exists and is finished.
    """

    run: str
    alpha: float
    exists: bool


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run is complete and its model is saved.

    Attributes:
        run: Folder of the run.
        seconds: Wall time, that of earlier commands included.
        base_held_out_loss: Held-out loss before training.
        held_out_loss: Held-out loss of the tuned model.
        base_train_loss: Loss on the probe rows of the training split before training.
        train_loss: The same of the tuned model, without noise.
        samples: Answers before and after training.
        alpha: NEFTune's alpha.
        paired_run: The run to compare this one with; None if there is none.
        earlier_seconds: The part of `seconds` before the run was resumed; 0 if it was not.
    """

    id: ClassVar[str] = "training.finished"

    run: str
    seconds: float
    base_held_out_loss: float | None
    held_out_loss: float | None
    base_train_loss: float | None
    train_loss: float | None
    samples: tuple[Sample, ...] = ()
    alpha: float = 0.0
    paired_run: PairedRun | None = None
    earlier_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RecipeResolved:
    """The recipe of a dry run is resolved.

    Attributes:
        recipe: The recipe as YAML, with every option.
    """

    id: ClassVar[str] = "recipe.resolved"

    recipe: str


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The plan of a dry run: steps, parameters and estimated memory.

    Attributes:
        model: Origin of the weights.
        method: Training method: full, LoRA r16 or QLoRA r16.
        device: Name of the device.
        precision: Precision of the matrix products.
        total_steps: Steps in all; None if the data could not be counted.
        parameters: All parameters.
        trainable: Trainable parameters.
        weights_bytes: Bytes of the weights.
        gradients_bytes: Bytes of the gradients.
        optimizer_bytes: Bytes of the optimizer state.
        activations_bytes: Bytes of the activations and the logits.
        libraries_bytes: Measured bytes of the libraries; 0 on a GPU.
        total_bytes: Bytes in all; of all processes of the machine if they share its memory.
        available_bytes: Free bytes of the device.
        keeps_freed: True if freed memory is kept for the next step, so that a long run needs more.
    """

    id: ClassVar[str] = "training.plan"

    model: str
    method: str
    device: str
    precision: str
    total_steps: int | None
    parameters: int
    trainable: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    libraries_bytes: int
    total_bytes: int
    available_bytes: int
    keeps_freed: bool
