"""The trainer: TRL's SFTTrainer with neft's differences, each with its reason. The only file that imports trl.

Hugging Face's own NEFTune stays off: the noise of `neftcli.neftune` is attached around `train()`.
"""

from __future__ import annotations

import math
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft.optimizers import create_loraplus_optimizer
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer, pack_dataset

from neftcli.data.dataset import RecordBatches
from neftcli.data.tokens import IGNORE_INDEX
from neftcli.errors import NonFiniteLossError, Problem, TrainingError
from neftcli.kernels.attention import use_document_attention
from neftcli.kernels.cross_entropy import fused_linear_cross_entropy, supports_fused_cross_entropy
from neftcli.kernels.lora import fusable_lora_layers, fused_lora
from neftcli.models.adapters import lora_config
from neftcli.models.freezing import freeze_layers
from neftcli.models.new_tokens import find_token_layers, new_token_ids
from neftcli.models.pissa import adapter_weights, load_converted, save_converted
from neftcli.neftune import measure_strength, paired
from neftcli.runs.checkpoints import RUN_STATE
from neftcli.runs.directory import BEST_MODEL, METRICS, RECIPE
from neftcli.system.device import deterministic_operations
from neftcli.system.distributed import COLLECTIVE_TIMEOUT, all_gather_object, rank, world_size
from neftcli.system.files import atomic_write, fsync_path, link_or_copy_folder
from neftcli.training.failures import raise_if_full
from neftcli.training.progress import count_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neftcli.data.dataset import TokenDataset
    from neftcli.data.splits import Indices
    from neftcli.neftune import Noise, Strength
    from neftcli.recipe.schema import Recipe, Training
    from neftcli.runs.checkpoints import CheckpointFolder
    from neftcli.system.device import ComputeConfig
    from neftcli.training.resume import RunState

LOG_ROWS = 20
"""Log rows of a run if training.logging_steps is not set."""
DECAY_RATIO = 0.1
"""Share of the steps in which the learning rate of warmup_stable_decay falls."""
PACKED_AT_ONCE = 10_000
"""Rows packed at once: a multiple of TRL's batches of 1000, so that the same rows are packed together."""
MAX_PROBED_ROWS = 8
"""Maximum rows of the batch on which the noise is measured."""


class NeftTrainer(SFTTrainer):
    """SFTTrainer with deterministic steps, a check for finite losses, and verifiable checkpoints.

    Args:
        recipe: The resolved recipe; its batching is not "auto".
        compute: Device and precision.
        model: The model without adapters; they are added here after seeding, so they always start with equal weights.
        tokenizer: Its tokenizer, with a pad token.
        rows: Tokenised training rows.
        checkpoints: The run's checkpoints.
        run_state: State that checkpoints store in addition to the trainer's own.
    """

    def __init__(
        self,
        recipe: Recipe,
        compute: ComputeConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: TokenDataset,
        checkpoints: CheckpointFolder,
        run_state: RunState,
    ) -> None:
        training = recipe.training
        is_packed = training.batching == "packed"
        freeze_layers(model, training.freeze)
        new_tokens = new_token_ids(tokenizer, recipe) if recipe.adapter.type == "lora" else []
        trained_tokens = {name: new_tokens for name in find_token_layers(model, recipe.adapter) if new_tokens}
        super().__init__(
            model=model,
            args=_arguments(recipe, compute, rows, checkpoints.folder),
            train_dataset=pack_rows(rows, recipe.data.max_length) if is_packed else _dataset(rows.columns()),
            processing_class=tokenizer,
            peft_config=lora_config(recipe.adapter, trained_tokens) if recipe.adapter.type == "lora" else None,
        )
        if trained_tokens:
            self.model.get_output_embeddings().bias = None  # TRL reads it, and peft's wrapper of the layer has none
        self._loraplus_lr_ratio = recipe.adapter.loraplus_lr_ratio if recipe.adapter.type == "lora" else None
        self._initial_adapter = adapter_weights(self.model) if recipe.adapter.uses_pissa() else None
        self._require_precision(compute)
        if recipe.quantization.type != "none":
            _keep_adapters_in_float32(self.model)
        if recipe.neftune.noise == "symmetric" and recipe.neftune.alpha > 0:
            self.data_collator = paired(self.data_collator)  # type: ignore[has-type]
        self._checkpoints, self._run_state = checkpoints, run_state
        self._deterministic, self._fused = training.deterministic, training.fused_layers
        single_process = world_size() == 1
        self._fuses_loss = self._fused and single_process and supports_fused_cross_entropy(_without_adapter(self.model))
        # A compiled model would be compiled again for each replaced layer.
        fuses_lora = self._fused and not training.torch_compile
        self._lora_layers = fusable_lora_layers(self.model) if fuses_lora else ()
        self._buckets: LengthBuckets | None = None
        if training.batching == "bucketed":
            rows_per_step = training.processes * self.args.train_batch_size * self.args.gradient_accumulation_steps
            self._buckets = LengthBuckets(rows.lengths().tolist(), rows_per_step, training.seed)
        self.remove_callback(PrinterCallback)
        self.add_callback(_LoopCallback(self._restore_log_row))

    def _require_precision(self, compute: ComputeConfig) -> None:
        """Check that the trainer computes in the precision that is reported and recorded.

        Raises:
            TrainingError: Its precision is not the recipe's.
        """
        wanted, actual = "bf16" if compute.bfloat16 else "no", str(self.accelerator.mixed_precision)
        if actual != wanted:
            message = "the trainer's mixed precision is not the recipe's"
            raise TrainingError(
                Problem(message, f"{actual} (the recipe: {wanted})", "unset ACCELERATE_MIXED_PRECISION")
            )

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        """Compute one forward and backward pass.

        Raises:
            NonFiniteLossError: The loss is NaN or infinite.
        """
        deterministic = deterministic_operations(self.args.device.type) if self._deterministic else nullcontext()
        attention = use_document_attention(self.model, inputs, fused=self._fused)
        with deterministic, attention, fused_lora(self._lora_layers):
            loss: torch.Tensor = super().training_step(model, inputs, *args)
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLossError(
                Problem(
                    f"the loss became {float(loss)} in step {self.state.global_step + 1}",
                    f"learning rate {self._get_learning_rate():.3g}, precision {'bf16' if self.args.bf16 else 'fp32'}",
                    f"--learning-rate {self.args.learning_rate / 10:.1g}",
                )
            )
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Compute the mean negative log-likelihood of the labels in nats; of all labels of the step if it accumulates.

        TRL's own loss also measures entropy and accuracy at each step, and its head is slow without a GPU.
        """
        if self._fuses_loss:
            with self.accelerator.autocast():
                total = fused_linear_cross_entropy(_without_adapter(model), inputs)
        else:
            total = -model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum()
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
        else:  # of all processes, whose gradients will be averaged
            total = total * self.accelerator.num_processes
        mask = inputs.get("attention_mask")
        self._total_train_tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimiser; with LoRA+ the B matrices have a learning rate of their own."""
        if self._loraplus_lr_ratio is None:
            optimizer: torch.optim.Optimizer = super().create_optimizer(model)
            return optimizer
        optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        rate = settings.pop("lr")
        self.optimizer = optimizer = create_loraplus_optimizer(
            self.model,
            optimizer_class,
            lr=rate,
            loraplus_lr_ratio=self._loraplus_lr_ratio,
            loraplus_lr_embedding=rate,
            loraplus_weight_decay=self.args.weight_decay,
            **settings,
        )
        return optimizer

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        return self._buckets or super()._get_train_sampler(train_dataset)

    def measure_noise(self, noise: Noise) -> Strength:
        """Measure the strength of the noise at the first layer, on the first rows."""
        rows = [self.train_dataset[index] for index in range(min(MAX_PROBED_ROWS, len(self.train_dataset)))]
        batch = self._prepare_inputs(self.data_collator(rows))
        with use_document_attention(self.model, batch, fused=self._fused):
            return measure_strength(self.model, batch, noise)

    def load_weights(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint, without optimiser and states."""
        self._load_from_checkpoint(str(checkpoint))
        self.accelerator.wait_for_everyone()  # the main process may move the folder

    def load_model(self, folder: Path) -> None:
        """Load the weights that `save_model_files` wrote."""
        if self._initial_adapter is None:
            self.load_weights(folder)
            return
        load_converted(self.model, folder)
        self.accelerator.wait_for_everyone()

    def save_model_files(self, folder: Path) -> None:
        """Save the weights of the run's model, or its adapter for the base model, as safetensors."""
        if self._initial_adapter is None:
            save_weights(self.model, folder)
        else:
            save_converted(self.model, folder, self._initial_adapter)

    def save_final_checkpoint(self, step: int) -> None:
        """Save a checkpoint after the last step, `step`, if this process trained it and there is none yet."""
        if self.state.global_step == step and self._checkpoints.latest_complete() != self._checkpoints.path(step):
            self._save_checkpoint(self.model, None)

    def _restore_log_row(self) -> None:
        """Continue the log row that was incomplete at the checkpoint; transformers begins a new one."""
        unlogged = self._run_state.unlogged
        if unlogged is not None:
            self._tr_loss = torch.tensor(unlogged["loss"][rank()], device=self.args.device)
            self._globalstep_last_logged = int(unlogged["since"])
            self._total_train_tokens = int(unlogged["tokens"][rank()])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint; rank 0 writes the manifest after every rank has written its part."""
        step, checkpoints = self.state.global_step, self._checkpoints
        self._run_state.unlogged = {
            "loss": all_gather_object(float(self._tr_loss)),
            "since": self._globalstep_last_logged,
            "tokens": all_gather_object(self._total_train_tokens),
        }
        self.state.stateful_callbacks[RUN_STATE] = self._run_state.to_json()
        try:
            if self.args.should_save:
                checkpoints.create(step)
            self.accelerator.wait_for_everyone()
            super(SFTTrainer, self)._save_checkpoint(model, trial)  # TRL would only add a model card
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                atomic_write(checkpoints.path(step) / RECIPE, self._run_state.recipe_yaml)
                self._add_best_model(checkpoints.path(step))
                if (metrics := checkpoints.folder.parent / METRICS).is_file():
                    fsync_path(metrics)
                checkpoints.publish(step, {**self._run_state.manifest, "processes": world_size()})
            self.accelerator.wait_for_everyone()
        except BaseException as error:
            try:
                raise_if_full(error, checkpoints.folder)
            finally:
                if self.args.should_save:
                    checkpoints.discard(step)
            raise

    def _add_best_model(self, checkpoint: Path) -> None:
        """Add the best weights so far to a checkpoint, so that a run resumed from it selects the same ones.

        They are one folder further down: transformers reads a folder with an adapter as a second adapter.
        """
        best = self._checkpoints.folder.parent / BEST_MODEL
        if best.is_dir():
            (checkpoint / BEST_MODEL).mkdir()
            link_or_copy_folder(best, checkpoint / BEST_MODEL / BEST_MODEL)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the weights or the adapter, without the pickled arguments, which can contain a token."""
        if self.args.should_save:
            save_weights(self.model, Path(output_dir or self.args.output_dir), state_dict)


class _LoopCallback(TrainerCallback):
    """Work at the beginning of training and of each epoch, within transformers' loop."""

    def __init__(self, restore_log_row: Callable[[], None]) -> None:
        self._restore_log_row = restore_log_row

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the incomplete log row of a resumed run."""
        self._restore_log_row()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Set the epoch of the data loader, which determines the order of the rows.

        If several processes resume in the middle of an epoch, transformers sets it through one wrapper too many to
        reach a sampler that is not accelerate's.
        """
        train_dataloader.set_epoch(int(state.epoch or 0))


class LengthBuckets(LengthGroupedSampler):
    """Sampler that puts rows of similar length next to each other, so that batches have few pads.

    transformers' sampler shuffles the rows and sorts them by length within groups of 50 steps (fewer for small sets).
    Its order depends on the global random state at the beginning of an epoch, which a run that resumes within the epoch
    does not have. Here it depends on the seed and the epoch alone.

    Args:
        lengths: Tokens of each row.
        rows: Rows of a step.
        seed: The recipe's `training.seed`.
    """

    def __init__(self, lengths: list[int], rows: int, seed: int) -> None:
        super().__init__(rows, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the order of an epoch; the data loader calls this before each epoch."""
        self.generator.manual_seed(self.seed + epoch)


def save_weights(model: Any, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
    """Save a model, or an adapter without its model, as safetensors."""
    # No embedding is resized here; peft would ask the hub for the base model's size to make sure.
    options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    with plain_generation_settings(model):
        model.save_pretrained(folder, state_dict=state_dict, **options)


@contextmanager
def plain_generation_settings(model: Any) -> Iterator[None]:
    """Give the model transformers' default generation settings within the block.

    transformers loads contradictory settings, which many published models have, but rejects them when it saves, at the
    end of a run. `models/settings_files.py` writes the base model's own.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None:
        yield
        return
    model.generation_config = type(settings)()
    try:
        yield
    finally:
        model.generation_config = settings


def _without_adapter(model: Any) -> Any:
    """Return the causal model without peft's wrapper; its layers keep their adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _keep_adapters_in_float32(model: Any) -> None:
    """Undo TRL's cast of a quantised model's adapters to bfloat16, which would round small steps away."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()


def _dataset(table: Any) -> Dataset:
    """Wrap a table for the trainer; without a fingerprint `datasets` would pickle all of it to compute one."""
    return Dataset(table, fingerprint="rows")


def pack_rows(rows: TokenDataset, max_length: int) -> Dataset:
    """Pack rows as TRL does, PACKED_AT_ONCE at a time; TRL would hold all of them in memory."""
    table = rows.columns()
    with closing(RecordBatches()) as packed:
        for start in range(0, len(rows), PACKED_AT_ONCE):
            part = pack_dataset(_dataset(table.slice(start, PACKED_AT_ONCE)), max_length, "bfd")
            for batch in part.data.to_batches():
                packed.append(batch)
        return _dataset(packed.table())


def _arguments(recipe: Recipe, compute: ComputeConfig, rows: TokenDataset, folder: Path) -> SFTConfig:
    training = recipe.training
    total = num_training_steps(recipe, rows.lengths())
    return SFTConfig(
        output_dir=str(folder),
        run_name=folder.parent.name,  # for trackers
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate(),
        lr_scheduler_type=training.lr_scheduler_type,
        lr_scheduler_kwargs=_schedule_settings(training, total),
        warmup_steps=_warmup_steps(total, training.warmup_ratio),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=training.optim,
        bf16=compute.bfloat16,
        use_cpu=compute.device == "cpu",
        # TRL recomputes activations by default, which takes a third more time and is needed only if memory is short.
        activation_checkpointing=training.gradient_checkpointing,
        torch_compile=training.torch_compile,
        packing=False,  # the rows are packed already
        padding_free=training.batching in ("padding_free", "packed"),
        max_length=None,  # the rows are truncated already
        neftune_noise_alpha=None,
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=training.logging_steps or max(1, total // LOG_ROWS),
        logging_nan_inf_filter=False,
        save_strategy="no",  # `callbacks.py` saves by steps, minutes and signals,
        eval_strategy="no",  # and evaluates with the same definition of loss as `neft eval`
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=compute.device == "cuda",
        # Otherwise the buckets in which gradients are summed change after a process's first step, and with them the
        # order of sums of three or more: a resumed run would differ in the last bits.
        ddp_find_unused_parameters=True,
        ddp_timeout=int(COLLECTIVE_TIMEOUT.total_seconds()),
        remove_unused_columns=True,
    )


def _schedule_settings(training: Training, total: int) -> dict[str, float] | None:
    """Return the settings of a schedule of the learning rate that has an end above 0."""
    if training.lr_scheduler_type == "cosine_with_min_lr":
        return {"min_lr_rate": training.min_lr_ratio}
    if training.lr_scheduler_type == "warmup_stable_decay":
        return {"num_decay_steps": math.ceil(total * DECAY_RATIO), "min_lr_ratio": training.min_lr_ratio}
    return None


def _warmup_steps(total: int, ratio: float) -> int:
    """Return the steps over which the learning rate rises; 0 if it would be less than one step.

    The learning rate of the first warmup step is 0, so a single warmup step would train nothing.
    """
    return math.ceil(total * ratio) if total * ratio >= 1 else 0


def num_training_steps(recipe: Recipe, lengths: Sequence[int] | Indices, *, whole: bool = False) -> int:
    """Count the optimiser steps of a run.

    Args:
        recipe: The resolved recipe.
        lengths: Tokens of each training row.
        whole: Ignore training.max_steps.
    """
    training = recipe.training
    if training.max_steps and not whole:
        return training.max_steps
    rows = len(lengths)
    if training.batching == "packed":
        rows = 0
        for start in range(0, len(lengths), PACKED_AT_ONCE):
            part = [[0] * length for length in lengths[start : start + PACKED_AT_ONCE]]
            rows += len(pack_dataset(Dataset.from_dict({"input_ids": part}), recipe.data.max_length, "bfd"))
    return count_steps(training, math.ceil(rows / training.per_device_train_batch_size))
