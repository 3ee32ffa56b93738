"""What a run tells, from its plan to its end."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModelReady:
    """The model is loaded and its adapters, if any, are on it.

    Attributes:
        name: Alias, id or path as it was given.
        source: Where the weights come from.
        method: full, LoRA r16, QLoRA r16.
        parameters: All parameters.
        trainable: Those that are trained.
        precision: Arithmetic of the matrix products.
        device: The device, in words.
    """

    name: str
    source: str
    method: str
    parameters: int
    trainable: int
    precision: str
    device: str


@dataclass(frozen=True, slots=True)
class NoiseMeasured:
    """NEFTune is attached, and its strength was measured on the first batch.

    Attributes:
        alpha: NEFTune's alpha.
        kind: uniform, gaussian or symmetric.
        length: tokens or padded.
        schedule: How alpha moves.
        ratio: RMS of the noise over RMS of the signal at the input of layer 0; 0 for alpha 0.
        embedding_scale: Factor of the architecture before the noise.
        layer_gain: Factor of the architecture behind it.
    """

    alpha: float
    kind: str
    length: str
    schedule: str
    ratio: float
    embedding_scale: float
    layer_gain: float


@dataclass(frozen=True, slots=True)
class TrainingStarted:
    """The first update is about to begin."""

    run: str
    total_steps: int
    epochs: float


@dataclass(frozen=True, slots=True)
class Progress:
    """An update is done. Times in seconds; `remaining` is an estimate."""

    step: int
    total_steps: int
    elapsed: float
    remaining: float


@dataclass(frozen=True, slots=True)
class StepLogged:
    """A log row.

    Attributes:
        step: Updates done.
        epoch: Passes over the training rows done.
        loss: Mean loss of the updates since the last row, with the noise on.
        learning_rate: Learning rate of the last update.
        grad_norm: Norm of its gradient before clipping.
        tokens_per_second: Real tokens (no pads) a second since the last row.
        memory_bytes: Most memory used so far: of the GPU where there is one, else of the process; of several the first.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Losses without noise, in nats a token with loss; None where there are no such rows."""

    step: int
    held_out_loss: float | None
    train_loss: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out prompt and its answers."""

    prompt: str
    reference: str
    base: str
    tuned: str


@dataclass(frozen=True, slots=True)
class PairedRun:
    """The run that another is compared with: the same but for the noise.

    Attributes:
        run: Its folder.
        alpha: Its alpha.
        exists: It is there and finished.
    """

    run: str
    alpha: float
    exists: bool


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run is complete and its model saved.

    Attributes:
        run: The run's folder.
        seconds: Wall time in all.
        base_held_out_loss: Of the model before training.
        held_out_loss: Of the tuned model.
        base_train_loss: Of the model before training, on the probe rows.
        train_loss: Of the tuned model on the probe rows, noise off.
        samples: Answers before and after.
        alpha: NEFTune's alpha, for what to type next.
        paired_run: What to compare it with, likewise.
    """

    run: str
    seconds: float
    base_held_out_loss: float | None
    held_out_loss: float | None
    base_train_loss: float | None
    train_loss: float | None
    samples: tuple[Sample, ...] = field(default=())
    alpha: float = 0.0
    paired_run: PairedRun | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """The recipe with every option in force, as YAML."""

    recipe: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do.

    Attributes:
        model: Where the weights come from.
        method: full, LoRA r16, QLoRA r16.
        device: The device, in words.
        precision: Arithmetic of the matrix products.
        updates: Updates of the optimiser in all; None where the data could not be counted.
        parameters: All parameters.
        trainable: Those that are trained.
        weights_bytes: Estimated bytes of the weights,
        gradients_bytes: of their gradients,
        optimizer_bytes: of the optimiser,
        activations_bytes: of what is kept for the backward pass and of the logits,
        libraries_bytes: of the libraries, measured; 0 on a GPU,
        total_bytes: and of all of these, in all processes of the machine where they share its memory.
        available_bytes: Bytes free on the device now.
        keeps_freed: Freed memory is kept for the next update, so that a long run needs more.
    """

    model: str
    method: str
    device: str
    precision: str
    updates: int | None
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
