"""Assembles the SFTTrainer. The only file that imports trl.

TRL does the training; what differs from its defaults is said here, with the reason. Hugging Face's own NEFTune stays
off: the noise of `neftcli.neftune` is attached around `train()`.
"""

from __future__ import annotations

import math
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer, pack_dataset

from neftcli.data.dataset import RecordBatches
from neftcli.data.tokens import IGNORE_INDEX
from neftcli.errors import NonFiniteLossError, Problem, TrainingError
from neftcli.kernels.attention import use_document_attention
from neftcli.kernels.cross_entropy import fused_linear_cross_entropy, supports_fused_cross_entropy
from neftcli.kernels.lora import fusable_lora_layers, fused_lora
from neftcli.neftune import paired
from neftcli.runs.directory import RECIPE
from neftcli.system.device import reproducible
from neftcli.system.distributed import PATIENCE, all_gather_object, rank, world_size
from neftcli.system.files import atomic_write, fsync_path
from neftcli.training.failures import raise_if_full
from neftcli.training.length_buckets import LengthBuckets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from neftcli.data.dataset import TokenDataset
    from neftcli.data.splits import Indices
    from neftcli.recipe.schema import Adapter, Recipe
    from neftcli.runs.checkpoints import Checkpoints
    from neftcli.system.device import ComputeConfig

LOG_ROWS = 20
PIECE = 10_000
"""Rows packed at once: a multiple of the thousand that TRL packs at once, so that the same rows are put together."""


class Trainer(SFTTrainer):
    """SFTTrainer that stops at a loss that is no number, and whose checkpoints verify.

    Attributes:
        checkpoints: Where checkpoints are kept.
        facts: What they are of, for their manifests.
        deterministic: Forward and backward passes give the same bits each time.
        fused: Use the attention kernels of `kernels/attention.py` if they are supported.
        sums_labels: `kernels/cross_entropy.py` computes the loss, not TRL.
        low_rank: The layers that `kernels/lora.py` computes, not peft.
        buckets: The order of the rows where they are bucketed by length.
        unlogged: What the next log row had summed up at the last checkpoint, and the tokens seen in all, by process.
    """

    deterministic: bool
    fused: bool
    sums_labels: bool
    low_rank: Sequence[Any]
    buckets: LengthBuckets | None
    checkpoints: Checkpoints
    facts: Mapping[str, Any]
    unlogged: Mapping[str, Any]

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        """One forward and backward pass.

        Raises:
            NonFiniteLossError: The loss is NaN or infinite.
        """
        repeated = reproducible(self.args.device.type) if self.deterministic else nullcontext()
        with repeated, use_document_attention(self.model, inputs, fused=self.fused), fused_lora(self.low_rank):
            loss: torch.Tensor = super().training_step(model, inputs, *args)
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLossError(
                Problem(
                    f"the loss became {float(loss)} in update {self.state.global_step + 1}",
                    f"learning rate {self._get_learning_rate():.3g}, precision {'bf16' if self.args.bf16 else 'fp32'}",
                    f"--learning-rate {self.args.learning_rate / 10:.1g}",
                )
            )
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean negative log-likelihood of the labels, in nats; over the whole update where gradients are added up.

        TRL's own also measures entropy and accuracy at each step, and its head is slow without a GPU.
        """
        if self.sums_labels:
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

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        return self.buckets or super()._get_train_sampler(train_dataset)

    def restore_log_row(self, unlogged: Mapping[str, Any]) -> None:
        """Goes on with the log row of a checkpoint; the trainer itself begins a new one."""
        loss, tokens = unlogged["loss"][rank()], unlogged["tokens"][rank()]
        self._tr_loss = torch.tensor(loss, device=self.args.device)
        self._globalstep_last_logged = int(unlogged["since"])
        self._total_train_tokens = int(tokens)

    def load_weights(self, checkpoint: Path) -> None:
        """The weights of a checkpoint behind the last update, with nothing left to train."""
        self._load_from_checkpoint(str(checkpoint))

    def save_final_checkpoint(self, step: int) -> None:
        """A checkpoint behind the last update, `step`, where this process did it and none was saved there."""
        if self.state.global_step == step and self.checkpoints.latest() != self.checkpoints.place(step):
            self._save_checkpoint(self.model, None)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves all that the run goes on from; rank 0 writes the manifest when every rank has written its part."""
        step = self.state.global_step
        self.unlogged = {
            "loss": all_gather_object(float(self._tr_loss)),
            "since": self._globalstep_last_logged,
            "tokens": all_gather_object(self._total_train_tokens),
        }
        try:
            if self.args.should_save:
                self.checkpoints.begin(step)
            self.accelerator.wait_for_everyone()
            super(SFTTrainer, self)._save_checkpoint(model, trial)  # TRL would only add a model card
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                atomic_write(self.checkpoints.place(step) / RECIPE, self.facts["recipe"])
                if (metrics := self.checkpoints.folder.parent / "metrics.jsonl").is_file():
                    fsync_path(metrics)
                facts = {key: value for key, value in self.facts.items() if key != "recipe"}
                self.checkpoints.publish(step, {**facts, "processes": world_size()})
            self.accelerator.wait_for_everyone()
        except BaseException as error:
            try:
                raise_if_full(error, self.checkpoints.folder)
            finally:
                if self.args.should_save:
                    self.checkpoints.discard(step)
            raise

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Saves weights or adapter alone; the pickled arguments, which can hold a token, are left out."""
        if self.args.should_save:
            save_weights(self.model, Path(output_dir or self.args.output_dir), state_dict)


def save_weights(model: Any, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
    """Saves a model, or its adapter alone, as safetensors."""
    # No embedding is resized here; peft would ask the hub for the base model's size to make sure.
    options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    with plain_generation_settings(model):
        model.save_pretrained(folder, state_dict=state_dict, **options)


@contextmanager
def plain_generation_settings(model: Any) -> Iterator[None]:
    """Give the model transformers' default generation settings within the block.

    transformers loads contradictory settings, which many published models have, and then rejects them when saving, at
    the end of a run. `models/saving.py` writes the base model's own.
    """
    own = getattr(model, "generation_config", None)
    if own is None:
        yield
        return
    model.generation_config = type(own)()
    try:
        yield
    finally:
        model.generation_config = own


def _without_adapter(model: Any) -> Any:
    """The causal model, its layers with their adapters, without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _require_precision(trainer: Trainer, compute: ComputeConfig) -> None:
    """Check that the trainer computes in the precision that is reported and recorded.

    Raises:
        TrainingError: Its precision is not the recipe's.
    """
    wanted, found = "bf16" if compute.bfloat16 else "no", str(trainer.accelerator.mixed_precision)
    if found != wanted:
        said = "the trainer's mixed precision is not the recipe's"
        raise TrainingError(Problem(said, f"{found} (the recipe: {wanted})", "unset ACCELERATE_MIXED_PRECISION"))


def build_trainer(
    recipe: Recipe,
    compute: ComputeConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: TokenDataset,
    checkpoints: Checkpoints,
    facts: Mapping[str, Any],
    callback: TrainerCallback,
) -> Trainer:
    """The trainer of a recipe, ready to train.

    Args:
        recipe: The resolved recipe.
        compute: Device and arithmetic.
        model: Without adapters; the trainer puts them on after seeding, so that they start alike.
        tokenizer: With a pad token.
        rows: Tokenised training rows.
        checkpoints: Where checkpoints are kept.
        facts: What they are of.
        callback: Is told of every step.
    """
    trainer = Trainer(
        model=model,
        args=_arguments(recipe, compute, rows, checkpoints.folder),
        train_dataset=_packed(rows, recipe.data.max_length)
        if recipe.training.batching == "packed"
        else _dataset(rows.columns()),
        processing_class=tokenizer,
        peft_config=_lora(recipe.adapter) if recipe.adapter.type == "lora" else None,
        callbacks=[callback],
    )
    _require_precision(trainer, compute)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16 and recipe.quantization.type != "none":
            # TRL casts the adapters of quantised models to bfloat16, where small updates are rounded away.
            parameter.data = parameter.data.float()
    trainer.checkpoints, trainer.facts = checkpoints, facts
    trainer.buckets = None
    if recipe.training.batching == "bucketed":
        rows_of_an_update = (
            recipe.training.processes * trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps
        )
        trainer.buckets = LengthBuckets(rows.lengths().tolist(), rows_of_an_update, recipe.training.seed)
    trainer.deterministic = recipe.training.deterministic
    trainer.fused = recipe.training.fused_layers
    single = trainer.fused and world_size() == 1
    trainer.sums_labels = single and supports_fused_cross_entropy(_without_adapter(trainer.model))
    # A compiled model would be compiled again for each layer that is exchanged.
    own_layers = trainer.fused and not recipe.training.torch_compile
    trainer.low_rank = fusable_lora_layers(trainer.model) if own_layers else ()
    trainer.remove_callback(PrinterCallback)
    if recipe.neftune.noise == "symmetric" and recipe.neftune.alpha > 0:
        trainer.data_collator = paired(trainer.data_collator)
    return trainer


def _dataset(table: Any) -> Dataset:
    """A table as the trainer reads it; without a fingerprint all of it would be pickled for one."""
    return Dataset(table, fingerprint="rows")


def _packed(rows: TokenDataset, max_length: int) -> Dataset:
    """Rows as TRL packs them, piece by piece; it would keep all of them in memory."""
    table = rows.columns()
    with closing(RecordBatches()) as packed:
        for start in range(0, len(rows), PIECE):
            piece = pack_dataset(_dataset(table.slice(start, PIECE)), max_length, "bfd")
            for batch in piece.data.to_batches():
                packed.append(batch)
        return _dataset(packed.table())


def _arguments(recipe: Recipe, compute: ComputeConfig, rows: TokenDataset, folder: Path) -> SFTConfig:
    training = recipe.training
    total = num_training_steps(recipe, rows.lengths())
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate(),
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=_warmup_steps(total, training.warmup_ratio),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=training.optim,
        bf16=compute.bfloat16,
        use_cpu=compute.device == "cpu",
        # TRL recomputes activations by default; that costs a third of the time and is only needed without the memory.
        activation_checkpointing=training.gradient_checkpointing,
        torch_compile=training.torch_compile,
        packing=False,  # they are packed already, if they are to be
        padding_free=training.batching in ("padding_free", "packed"),
        max_length=None,  # and cut
        neftune_noise_alpha=None,
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=training.logging_steps or max(1, total // LOG_ROWS),
        logging_nan_inf_filter=False,
        save_strategy="no",  # `watch.py` says when, by updates, minutes and signals,
        eval_strategy="no",  # and evaluates, by the one definition of loss that the whole tool uses
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=compute.device == "cuda",
        # Else the buckets in which gradients are summed change behind the first update of a process, and with them the
        # order of the sums of three or more: a run that is gone on with would differ in the last bits.
        ddp_find_unused_parameters=True,
        ddp_timeout=int(PATIENCE.total_seconds()),
        remove_unused_columns=True,
    )


def _warmup_steps(total: int, ratio: float) -> int:
    """Updates over which the learning rate rises; none in runs so short that the first update would be all of them.

    The first of them has a learning rate of 0, so one alone would only lose an update.
    """
    return math.ceil(total * ratio) if total * ratio >= 1 else 0


def num_training_steps(recipe: Recipe, lengths: Sequence[int] | Indices, *, whole: bool = False) -> int:
    """Updates of the optimiser in all.

    Args:
        recipe: The resolved recipe.
        lengths: Tokens of each training row.
        whole: As if training.max_steps did not end them early.
    """
    training = recipe.training
    if training.max_steps and not whole:
        return training.max_steps
    rows = len(lengths)
    if training.batching == "packed":
        pieces = (lengths[start : start + PIECE] for start in range(0, rows, PIECE))
        rows = sum(
            len(pack_dataset(Dataset.from_dict({"input_ids": [[0] * n for n in piece]}), recipe.data.max_length, "bfd"))
            for piece in pieces
        )
    batches = math.ceil(math.ceil(rows / training.per_device_train_batch_size) / training.processes)  # of each
    return math.ceil(training.num_train_epochs * math.ceil(batches / training.gradient_accumulation_steps))


def _lora(adapter: Adapter) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=adapter.target_modules
        if isinstance(adapter.target_modules, str)
        else list(adapter.target_modules),
        modules_to_save=list(adapter.modules_to_save) or None,
    )
