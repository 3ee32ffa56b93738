"""The laws of NEFTune in a real trl SFTTrainer, and Hugging Face's hook measured the same way.

Oracle: document k consists of token id FIRST + k alone, so the token ids that reach the embedding tell by themselves
which document each token belongs to, whatever the trainer did to the rows. For each document, in float64, with L the
number of its tokens in the data set and d the embedding's width:

    |noise| <= alpha / sqrt(L d), nearly reached, and exactly 0 at pads

The noise is what layer 0 of a Llama receives minus what the bare table gives, both read by hooks of this file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer

from neftcli.errors import NeftuneError
from neftcli.neftune import Noise, neftune, paired
from neftcli.neftune.callback import NeftuneCallback
from tests.tiny import FAMILIES, HIDDEN, Family, save_tiny, tiny_model, tiny_tokenizer

ALPHA = 5.0
FIRST = 4  # the first token id that is no special token
LENGTHS = (40, 13, 24, 51, 31, 12, 20, 37)

pytestmark = [
    # peft 0.21 reads a property that transformers 5.23 has renamed, on every get_peft_model.
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers.modeling_utils"
    ),
]
each_adapter = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])

# Batch layouts of trl by name. `max_length` None: nothing is truncated.
COLLATIONS: dict[str, dict[str, Any]] = {
    "padded": {"max_length": None},
    "padding_free": {"padding_free": True, "max_length": None},
    "packing": {"packing": True, "packing_strategy": "bfd", "max_length": 64},
}


@dataclass
class Seen:
    """One forward pass: the token ids, the table's clean vectors and what layer 0 receives."""

    token_ids: np.ndarray
    clean: Tensor
    received: Tensor

    @property
    def noise(self) -> np.ndarray:
        """The noise of each token, in float64."""
        return (self.received.double() - self.clean.double()).numpy()

    @property
    def documents(self) -> list[int]:
        """The numbers of the documents in this batch."""
        return [int(token) - FIRST for token in np.unique(self.token_ids) if token >= FIRST]


@dataclass
class Watch:
    """Records the tensors between the embedding and layer 0 of a model in training mode."""

    passes: list[Seen] = field(default_factory=list)
    random_states: list[Tensor] = field(default_factory=list)

    def hook(self, model: nn.Module) -> None:
        """Registered before any noise, so that the first hook sees the clean vectors."""
        embedding, layer = (
            model.get_input_embeddings(),
            next(m for m in model.modules() if isinstance(m, nn.ModuleList)),
        )
        latest: list[tuple[Tensor, Tensor]] = []

        def behind_the_table(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            latest[:] = [(args[0].detach().clone(), output.detach().clone())]

        def before_the_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module.training and latest:  # nothing is latest while a checkpointed layer is recomputed
                token_ids, clean = latest.pop()
                received = args[0] if args else kwargs["hidden_states"]
                self.passes.append(Seen(token_ids.numpy(), clean, received.detach().clone()))
                self.random_states.append(torch.get_rng_state())

        embedding.register_forward_hook(behind_the_table)
        layer[0].register_forward_pre_hook(before_the_layer, with_kwargs=True)


def rows(lengths: tuple[int, ...] = LENGTHS) -> Dataset:
    """Tokenised documents, each of one token id."""
    documents = [[FIRST + number] * length for number, length in enumerate(lengths)]
    return Dataset.from_list([{"input_ids": tokens, "labels": tokens} for tokens in documents])


Build = Callable[..., tuple[SFTTrainer, Watch]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build a trainer with a recorder on its model."""

    def build_trainer(
        model: nn.Module | None = None,
        *,
        lora: bool = False,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **options: Any,
    ) -> tuple[SFTTrainer, Watch]:
        config = {
            "max_length": None,
            "output_dir": str(tmp_path),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "activation_checkpointing": False,
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "seed": 3,
        }
        trainer = SFTTrainer(
            model=tiny_model("llama") if model is None else model,
            args=SFTConfig(**{**config, **options}),
            train_dataset=rows() if train_dataset is None else train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
            callbacks=callbacks,
        )
        watch = Watch()
        watch.hook(trainer.model)
        return trainer, watch

    return build_trainer


class BeginStep(TrainerCallback):
    """Begins each step of the noise, as neft's trainer does."""

    noise: Noise | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin the step before its micro-batches."""
        if self.noise is not None:
            self.noise.begin_step(state.global_step)


def bound(length: int) -> float:
    return float(np.float64(ALPHA) / np.sqrt(np.float64(length) * np.float64(HIDDEN)))


def assert_limit(values: np.ndarray, limit: float) -> None:
    """Check that no value exceeds the limit, and one nearly reaches it."""
    # Subtracting float32 vectors of size 0.1 leaves an error of 1e-8. 700 draws miss the last 2 % with p < 1e-6.
    assert values.size >= 700
    assert 0.98 * limit < np.abs(values).max() <= limit * (1 + 1e-6) + 1e-7
    error = 5 * np.sqrt(0.8 / values.size) / 2
    assert np.sqrt(np.mean(values**2)) == pytest.approx(limit / np.sqrt(3), rel=error)


def assert_own_lengths(watch: Watch) -> None:
    """Check that each document has the bound of its length, and pads have no noise."""
    for seen in watch.passes:
        assert len(seen.documents) > 1
        for number in seen.documents:
            mine = seen.token_ids == FIRST + number
            assert mine.sum() == LENGTHS[number], "trl kept the document whole"
            assert_limit(seen.noise[mine], bound(LENGTHS[number]))
        pads = torch.from_numpy(seen.token_ids < FIRST)
        assert torch.equal(seen.received[pads], seen.clean[pads])


def assert_batch_width(watch: Watch) -> None:
    """Check that every token, including pads, has the bound of the batch's width: Hugging Face's scaling."""
    for seen in watch.passes:
        for number in seen.documents:
            assert_limit(seen.noise[seen.token_ids == FIRST + number], bound(seen.token_ids.shape[1]))
        pads = seen.token_ids < FIRST
        assert np.abs(seen.noise[pads]).sum(axis=1).all()


# The bound of each document, and what Hugging Face's hook does instead


@pytest.mark.parametrize("collation", COLLATIONS)
@each_adapter
def test_noise_of_each_document_has_the_bound_of_its_length(build: Build, collation: str, lora: bool) -> None:
    trainer, watch = build(lora=lora, **COLLATIONS[collation])
    with neftune(trainer.model, ALPHA, seed=1):
        trainer.train()
    assert len(watch.passes) == 2
    shapes = [seen.token_ids.shape for seen in watch.passes]
    assert all((shape[0] == 4) == (collation == "padded") for shape in shapes)
    if collation == "padded":
        assert any((seen.token_ids < FIRST).any() for seen in watch.passes)
    assert_own_lengths(watch)


@pytest.mark.parametrize("collation", COLLATIONS)
@each_adapter
def test_hugging_faces_hook_scales_by_the_width_of_the_batch(build: Build, collation: str, lora: bool) -> None:
    """The reason for a separate implementation: neftune_noise_alpha=5 is weaker with padding and with packing."""
    trainer, watch = build(lora=lora, neftune_noise_alpha=ALPHA, **COLLATIONS[collation])
    trainer.train()
    assert len(watch.passes) == 2
    assert_batch_width(watch)
    shortest = min(LENGTHS[number] for number in watch.passes[0].documents)
    assert watch.passes[0].token_ids.shape[1] > 2 * shortest, "so its bound is at least 1.4 times too low"


@pytest.mark.parametrize("collation", COLLATIONS)
def test_length_padded_equals_hugging_faces_scaling_except_at_pads(build: Build, collation: str) -> None:
    trainer, watch = build(**COLLATIONS[collation])
    with neftune(trainer.model, ALPHA, length="padded"):
        trainer.train()
    for seen in watch.passes:
        for number in seen.documents:
            assert_limit(seen.noise[seen.token_ids == FIRST + number], bound(seen.token_ids.shape[1]))
        assert not seen.noise[seen.token_ids < FIRST].any()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])
@pytest.mark.parametrize("collation", COLLATIONS)
def test_noise_of_every_family_has_the_bound_of_its_documents(build: Build, family: Family, collation: str) -> None:
    # These scale, shift or pre-multiply their embeddings, so the noise is read right behind the table.
    trainer, _ = build(tiny_model(family), max_steps=1, **COLLATIONS[collation])
    table = trainer.model.get_input_embeddings()
    clean: list[Tensor] = []
    seen: list[Seen] = []
    table.register_forward_hook(lambda _m, _a, output: clean.append(output.detach().clone()))
    with neftune(trainer.model, ALPHA):
        table.register_forward_hook(
            lambda _m, args, output: seen.append(Seen(args[0].numpy(), clean[-1], output.detach().clone()))
        )
        trainer.train()
    assert len(seen) == 1
    assert_own_lengths(Watch(seen))


# bitsandbytes 0.50 imports torch.utils.mkldnn, which uses what torch 2.13 itself deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning:torch.jit")
@pytest.mark.parametrize("collation", COLLATIONS)
def test_noise_with_four_bit_weights_has_the_bound_of_its_documents(
    build: Build, collation: str, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "model", "llama")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, quantization_config=config, device_map="cpu"
    )
    trainer, watch = build(model, lora=True, **COLLATIONS[collation])
    with neftune(trainer.model, ALPHA):
        trainer.train()
    assert len(watch.passes) == 2
    assert_own_lengths(watch)


# Alpha 0, and what the arms of a sweep share


def weights(trainer: SFTTrainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def losses(trainer: SFTTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@each_adapter
def test_alpha_zero_is_bit_identical_and_alpha_five_shares_order_and_dropout(build: Build, lora: bool) -> None:
    arms = []
    for alpha in (None, 0.0, ALPHA):
        trainer, watch = build(tiny_model("llama", attention_dropout=0.2), lora=lora, max_steps=4)
        if alpha is None:
            trainer.train()
        else:
            with neftune(trainer.model, alpha):
                trainer.train()
        arms.append((trainer, watch, torch.get_rng_state()))
    (plain, plain_watch, plain_state), (zero, zero_watch, zero_state), (five, five_watch, five_state) = arms
    assert losses(zero) == losses(plain)
    assert len(losses(zero)) == 4
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(zero)[name]), name
    assert losses(five) != losses(plain)
    for watch, state in ((zero_watch, zero_state), (five_watch, five_state)):
        assert torch.equal(state, plain_state)
        assert all(map(torch.equal, watch.random_states, plain_watch.random_states))
        for left, right in zip(watch.passes, plain_watch.passes, strict=True):
            np.testing.assert_array_equal(left.token_ids, right.token_ids)


@pytest.mark.slow
def test_evaluation_between_steps_has_no_noise(build: Build) -> None:
    def evaluated(alpha: float) -> list[float]:
        # Without learning only the noise could move the loss.
        trainer, _ = build(eval_dataset=rows(), eval_strategy="steps", eval_steps=1, learning_rate=0.0)
        with neftune(trainer.model, alpha):
            trainer.train()
        return [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]

    assert len(evaluated(ALPHA)) == 2
    assert evaluated(ALPHA) == evaluated(0.0)


# Steps, accumulation, resuming


@pytest.mark.slow
def test_noise_differs_between_micro_batches_and_steps_and_repeats_with_the_seed(build: Build) -> None:
    same = [{"input_ids": [FIRST] * 20, "labels": [FIRST] * 20}] * 16

    def run(seed: int, **options: Any) -> list[np.ndarray]:
        callback = BeginStep()
        trainer, watch = build(
            train_dataset=Dataset.from_list(same),
            callbacks=[callback],
            gradient_accumulation_steps=2,
            learning_rate=0.0,
        )
        with neftune(trainer.model, ALPHA, seed=seed, **options) as callback.noise:
            trainer.train()
        return [seen.noise for seen in watch.passes]

    first = run(1)
    assert len(first) == 4, "two steps of two micro-batches"
    for left in range(4):
        for right in range(left):
            assert (first[left] != first[right]).mean() > 0.99
    assert all(map(np.array_equal, first, run(1)))
    assert not any(map(np.array_equal, first, run(2)))
    assert not any(map(np.array_equal, first, run(1, rank=1)))


@pytest.mark.slow
def test_noise_of_a_resumed_run_is_the_same(build: Build, tmp_path: Path) -> None:
    def run(resume: str | None = None) -> tuple[SFTTrainer, Watch]:
        callback = BeginStep()
        trainer, watch = build(
            tiny_model("llama", attention_dropout=0.2),
            callbacks=[callback],
            max_steps=4,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=2,
            save_strategy="steps",
            save_steps=2,
        )
        with neftune(trainer.model, ALPHA, schedule="linear_decay", total_steps=4) as callback.noise:
            trainer.train(resume_from_checkpoint=resume)
        return trainer, watch

    whole, whole_watch = run()
    resumed, resumed_watch = run(str(tmp_path / "checkpoint-2"))
    assert (len(whole_watch.passes), len(resumed_watch.passes)) == (8, 4)
    for left, right in zip(whole_watch.passes[4:], resumed_watch.passes, strict=True):
        np.testing.assert_array_equal(left.token_ids, right.token_ids)
        assert torch.equal(left.received, right.received)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


@pytest.mark.slow
@each_adapter
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_activation_checkpointing_trains_the_same_weights(build: Build, lora: bool, reentrant: bool) -> None:
    def run(**options: Any) -> tuple[dict[str, Tensor], Watch]:
        trainer, watch = build(tiny_model("llama", attention_dropout=0.2), lora=lora, **options)
        with neftune(trainer.model, ALPHA):
            trainer.train()
        return weights(trainer), watch

    plain, _ = run()
    options = {"use_reentrant": reentrant}
    checkpointed, watch = run(activation_checkpointing=True, activation_checkpointing_kwargs=options)
    assert_own_lengths(watch)
    for name, value in plain.items():
        assert torch.equal(value, checkpointed[name]), name


# Symmetric noise


@pytest.mark.parametrize("collation", COLLATIONS)
def test_symmetric_noise_has_both_signs_of_the_bound(build: Build, collation: str) -> None:
    trainer, watch = build(**COLLATIONS[collation])
    trainer.data_collator = paired(trainer.data_collator)
    with neftune(trainer.model, ALPHA, noise="symmetric"):
        trainer.train()
    for seen in watch.passes:
        for number in seen.documents:
            noise = seen.noise[seen.token_ids == FIRST + number]
            assert len(noise) == 2 * LENGTHS[number]
            np.testing.assert_allclose(np.abs(noise), bound(LENGTHS[number]), rtol=1e-6)
            first, second = np.split(noise, 2)
            np.testing.assert_allclose(first, -second, atol=1e-7)
        assert not seen.noise[seen.token_ids < FIRST].any()


def test_symmetric_noise_rejects_unpaired_batches(build: Build) -> None:
    trainer, _ = build()
    with (
        pytest.raises(NeftuneError, match=r"paired\(trainer.data_collator\)"),
        neftune(trainer.model, ALPHA, noise="symmetric"),
    ):
        trainer.train()


def test_paired_without_noise_changes_neither_loss_nor_gradients(build: Build) -> None:
    single, _ = build(max_steps=3)
    single.train()
    double, _ = build(max_steps=3)
    double.data_collator = paired(double.data_collator)
    with neftune(double.model, 0.0, noise="symmetric"):
        double.train()
    assert losses(double) == pytest.approx(losses(single), rel=1e-5)
    for name, value in weights(single).items():
        torch.testing.assert_close(weights(double)[name], value, rtol=0, atol=1e-5)


# Exactly once


class Stop(TrainerCallback):
    """Interrupt training after a step, as Ctrl-C does."""

    def __init__(self) -> None:
        self.armed = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raise once."""
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt


@pytest.mark.slow
def test_neftune_adds_noise_once_after_an_interrupted_training(build: Build) -> None:
    trainer, watch = build(callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt), neftune(trainer.model, ALPHA):
        trainer.train()
    interrupted = len(watch.passes)
    trainer.train()  # clean now
    assert all(not seen.noise.any() for seen in watch.passes[interrupted:])
    clean = len(watch.passes)
    with neftune(trainer.model, ALPHA):
        trainer.train()
    assert interrupted >= 1
    assert len(watch.passes) > clean > interrupted
    assert_own_lengths(Watch(watch.passes[:interrupted] + watch.passes[clean:]))


@each_adapter
def test_neftune_rejects_hugging_faces_hook(build: Build, lora: bool) -> None:
    trainer, watch = build(lora=lora, neftune_noise_alpha=5.0)
    with pytest.raises(NeftuneError, match="Hugging Face"), neftune(trainer.model, ALPHA):
        trainer.train()
    assert watch.passes == []


# NeftuneCallback


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("collation", COLLATIONS)
@each_adapter
def test_neftune_callback_equals_the_context(build: Build, collation: str, lora: bool) -> None:
    """The same noise at every step, and none after training."""
    begin = BeginStep()
    trainer, expected = build(lora=lora, callbacks=[begin], **COLLATIONS[collation])
    with neftune(trainer.model, ALPHA, schedule="linear_decay", total_steps=2, seed=3) as begin.noise:
        trainer.train()
    callback = NeftuneCallback(ALPHA, schedule="linear_decay")
    other, watch = build(lora=lora, callbacks=[callback], **COLLATIONS[collation])
    other.train()
    assert_same_weights(weights(trainer), weights(other))
    for one, two in zip(expected.passes, watch.passes, strict=True):
        assert torch.equal(one.received, two.received)
    other.model.train()
    other.model(input_ids=torch.tensor([[FIRST] * 8]), attention_mask=torch.ones(1, 8))
    assert not watch.passes[-1].noise.any()


def test_neftune_callback_alpha_zero_is_bit_identical(build: Build) -> None:
    plain, _ = build()
    plain.train()
    trainer, _ = build(callbacks=[NeftuneCallback(0.0)])
    trainer.train()
    assert_same_weights(weights(plain), weights(trainer))


def test_neftune_callback_resumes_with_the_same_noise(build: Build, tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / "run")}
    whole, _ = build(callbacks=[NeftuneCallback(ALPHA)], **options)
    whole.train()
    resumed, _ = build(callbacks=[NeftuneCallback(ALPHA)], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert_same_weights(weights(whole), weights(resumed))


def test_neftune_callback_after_an_exception(build: Build) -> None:
    """The noise stays attached, which the next training and `detach` remove."""

    class Fail(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("planted")

    callback = NeftuneCallback(ALPHA)
    trainer, watch = build(callbacks=[callback, Fail()])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="planted"):
            trainer.train()
    callback.detach()
    trainer.model(input_ids=torch.tensor([[FIRST] * 8]), attention_mask=torch.ones(1, 8))
    assert not watch.passes[-1].noise.any()


def test_neftune_callback_rejects_invalid_options(build: Build) -> None:
    trainer, _ = build(callbacks=[NeftuneCallback(-1.0)])
    with pytest.raises(NeftuneError, match="alpha must be a finite number"):
        trainer.train()
