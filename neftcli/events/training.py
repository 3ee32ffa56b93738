"""Events and their parts about a run, from the plan to the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from neftcli.wording import count_noun


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Origin of a model's weights.

    Attributes:
        kind: hub, package, folder or gguf; run for a run of neft.
        location: Hub id, name of the package, or path.
        revision: Branch, tag or commit on the hub; None if there is none.
    """

    kind: str
    location: str
    revision: str | None = None

    def describe(self) -> str:
        """Return the origin for display."""
        if self.kind == "hub":
            return f"{self.location}{'@' + self.revision if self.revision else ''} on the hub"
        return f"installed package {self.location}" if self.kind == "package" else self.location


@dataclass(frozen=True, slots=True)
class Device:
    """The processors that a model runs on.

    Attributes:
        type: cpu, cuda or mps.
        name: Name of the GPU as its driver gives it; empty for a CPU or an Apple GPU.
        threads: CPU threads of each process; None on a GPU.
        processes: Number of processes, each with a device of its own.
    """

    type: str
    name: str = ""
    threads: int | None = None
    processes: int = 1

    def describe(self) -> str:
        """Return the device for display: "CPU, 2 threads" or "4 x NVIDIA H200"."""
        name = self.name or {"cpu": "CPU", "mps": "Apple GPU"}.get(self.type, "GPU")
        if self.threads is not None:
            name += f", {count_noun(self.threads, 'thread')}"
        return name if self.processes == 1 else f"{self.processes} x {name}"


@dataclass(frozen=True, slots=True)
class Method:
    """Training method.

    Attributes:
        type: full, lora, lora_int8 or qlora.
        r: Rank of the adapter; None for full fine-tuning.
    """

    type: str
    r: int | None = None

    def describe(self) -> str:
        """Return the method for display: "full", "LoRA r16", "LoRA r16 on int8" or "QLoRA r16"."""
        names = {"lora": f"LoRA r{self.r}", "lora_int8": f"LoRA r{self.r} on int8", "qlora": f"QLoRA r{self.r}"}
        return names.get(self.type, self.type)


@dataclass(frozen=True, slots=True)
class ModelReady:
    """The model is loaded, with its adapters if it has any.

    Attributes:
        name: Alias, hub id or path, as given.
        source: Origin of the weights.
        method: Training method.
        parameters: All parameters.
        trainable: Trainable parameters.
        precision: Precision of the matrix products: bf16 or fp32.
        device: The device.
    """

    id: ClassVar[str] = "model.ready"

    name: str
    source: ModelSource
    method: Method
    parameters: int
    trainable: int
    precision: str
    device: Device


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
    """Losses without noise, in nats per token, and metrics of answers.

    Attributes:
        step: Steps done; 0 for the model before training.
        held_out_loss: Loss on the held-out split; None if it has no rows.
        train_loss: Loss on the probe rows of the training split; None if there are none.
        answer_metrics: Metrics of answers to held-out prompts, by id, as in evaluation.during; a value is None if no
            answer has one.
    """

    id: ClassVar[str] = "training.evaluated"

    step: int
    held_out_loss: float | None
    train_loss: float | None
    answer_metrics: dict[str, float | None] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """Return the value of the held-out loss or of a metric of answers; None if it has none."""
        return self.held_out_loss if metric == "held_out_loss" else self.answer_metrics.get(metric)


@dataclass(frozen=True, slots=True)
class TrackerOpened:
    """The run, or the verdict of an evaluation or a sweep, is reported to an experiment tracker.

    Attributes:
        tracker: Id of the tracker, as in training.report_to.
        location: Folder or URL of the results.
        view: Command that shows them; empty if the location is a page.
    """

    id: ClassVar[str] = "tracker.opened"

    tracker: str
    location: str
    view: str


@dataclass(frozen=True, slots=True)
class ModelSelected:
    """Training is over, and evaluations during training have selected the model or ended the training.

    Attributes:
        step: Step whose weights become the run's model.
        held_out_loss: Held-out loss at this step; if it selected the step, it is lower than that of new rows.
        last_step: Last step that was trained.
        last_held_out_loss: Held-out loss after it.
        total_steps: Steps of the whole recipe.
        keep: last, or best if evaluations selected the step.
        patience: Evaluations without improvement that ended the training early; None if it ran to the end.
        metric: Id of the metric that was compared, training.best_metric.
        value: Its value at the step; if it selected the step, it is better than that of new rows.
        last_value: Its value after the last step.
    """

    id: ClassVar[str] = "training.selected"

    step: int
    held_out_loss: float | None
    last_step: int
    last_held_out_loss: float | None
    total_steps: int
    keep: str
    patience: int | None
    metric: str
    value: float | None
    last_value: float | None


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
        base_answer_metrics: Metrics of answers before training, by id, as in evaluation.during.
        answer_metrics: The same of the tuned model.
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
    base_answer_metrics: dict[str, float | None] = field(default_factory=dict)
    answer_metrics: dict[str, float | None] = field(default_factory=dict)


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
        method: Training method.
        device: The device.
        precision: Precision of the matrix products: bf16 or fp32.
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

    model: ModelSource
    method: Method
    device: Device
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
