"""Puts the noise on a model, exactly once, and takes it off again.

Two kinds of hook do it. A pre-hook on every module around the embedding (the model, its adapter wrappers, the
decoder) reads the attention mask, position ids and cumulative lengths on their way in; a hook behind the embedding
adds the noise. Nothing of the model is replaced, so adapters, tied weights, quantised layers, checkpointing of
activations and compiled models work as they are.
"""

import inspect
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from neftcli.errors import NeftuneError, Problem
from neftcli.neftune.lengths import document_lengths, padded_lengths
from neftcli.neftune.noise import NoiseKind, Schedule, generator_seed, sample_noise, scheduled_alpha

MARK = "_neft_noise"
HUGGING_FACE_MARK = "neftune_noise_alpha"


class Noise:
    """The noise of one model while it is attached.

    Attributes:
        alpha: The full alpha; the one place where it is held.
        step: Updates of the optimiser so far. A trainer sets it through `begin_step`, so that a resumed run
            draws what the uninterrupted one would have drawn.
        forced: Noise even outside training mode; only to measure its strength.
    """

    def __init__(
        self,
        alpha: float,
        kind: NoiseKind = "uniform",
        length: str = "tokens",
        schedule: Schedule = "constant",
        total_steps: int | None = None,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        self.alpha, self.kind, self.length, self.schedule = alpha, kind, length, schedule
        self.total_steps, self.seed, self.rank = total_steps, seed, rank
        self.step = 0
        self.forced = False
        self._forward = -1
        self._told = False
        self._forward_of: dict[int, int] = {}
        self._layout: dict[str, Tensor | None] = {}

    def begin_step(self, step: int) -> None:
        """Tells that update number `step` (from 0) begins."""
        self.step, self._forward, self._told = step, -1, True
        self._forward_of.clear()

    def clear_layout(self) -> None:
        """Lets go of the last batch."""
        self._layout = {}

    def current_alpha(self) -> float:
        """Alpha at this update, by the schedule; the full one while its strength is measured."""
        if self.forced:
            return self.alpha
        return scheduled_alpha(self.alpha, self.schedule, self.step, self.total_steps or 1)

    def record_layout(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: remembers how the batch is laid out."""
        given = {**dict(zip(_parameter_names(module), args, strict=False)), **kwargs}
        if given.get("input_ids") is None:
            return
        self._layout = {
            "input_ids": given["input_ids"],
            "attention_mask": given.get("attention_mask"),
            "position_ids": given.get("position_ids"),
            "cumulative_lengths": given.get("cu_seq_lens_q"),
        }

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the generator's seed changes every step; the rest of the model is still compiled
    def add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the embedding: adds the noise in training mode."""
        if not (module.training or self.forced):
            return output
        if hasattr(module, HUGGING_FACE_MARK):
            raise _twice("Hugging Face's own noise was switched on meanwhile", "leave neftune_noise_alpha unset")
        if self.schedule != "constant" and not self._told:
            raise NeftuneError(
                Problem(
                    f"schedule {self.schedule} needs to know which update it is",
                    "begin_step was never called",
                    "noise.begin_step(step) before each update, from a trainer's callback",
                )
            )
        alpha = self.current_alpha()
        forward = self._number_of_this_pass(args[0])
        if alpha == 0.0:
            return output
        generator = torch.Generator(output.device)
        generator.manual_seed(generator_seed(self.seed, self.rank, self.step, forward))
        noise = sample_noise(self._lengths(args[0], output), alpha, output.shape[-1], self.kind, generator)
        return (output.to(torch.promote_types(output.dtype, torch.float32)) + noise).to(output.dtype)

    def _number_of_this_pass(self, token_ids: Tensor) -> int:
        """Counts a new batch; a checkpointed embedding runs again on its own and must see the noise it saw."""
        recomputing = torch._C._current_graph_task_id() != -1
        if recomputing and token_ids.data_ptr() in self._forward_of:
            return self._forward_of[token_ids.data_ptr()]
        self._forward += 1
        self._forward_of[token_ids.data_ptr()] = self._forward
        return self._forward

    @contextmanager
    def force(self) -> Iterator[None]:
        """Noise without training mode and without moving the count of forward passes."""
        forward, known, told = self._forward, dict(self._forward_of), self._told
        self.forced = self._told = True
        try:
            yield
        finally:
            self._forward, self._forward_of, self._told, self.forced = forward, known, told, False

    def _lengths(self, token_ids: Tensor, output: Float[Tensor, "batch time width"]) -> Int[Tensor, "batch time"]:
        shape = (output.shape[0], output.shape[1])
        layout = self._layout
        mask, positions = layout.get("attention_mask"), layout.get("position_ids")
        boundaries = layout.get("cumulative_lengths")
        known = layout.get("input_ids")
        if known is None or known.shape != token_ids.shape or not torch.equal(known, token_ids):
            raise NeftuneError(
                Problem(
                    "NEFTune needs the batch's layout: the embedding ran outside the model's own forward pass",
                    f"token ids of shape {tuple(token_ids.shape)}",
                    "call the model itself with input_ids and attention_mask",
                )
            )
        if mask is not None and (not isinstance(mask, Tensor) or tuple(mask.shape) != shape):
            if positions is None and boundaries is None:
                received = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
                raise NeftuneError(
                    Problem(
                        "NEFTune needs each document's length: the attention mask must be (batch, time)",
                        f"{received} for token ids of shape {shape}",
                        "pass a two-dimensional attention_mask, or position_ids that restart",
                    )
                )
            mask = None
        if positions is not None and positions.dim() != 2:  # several axes (images): not a count of tokens
            positions = None
        lengths = document_lengths(shape, mask, positions, boundaries, output.device)
        if self.kind == "symmetric":
            _require_pairs(token_ids, lengths)
        return lengths if self.length == "tokens" else padded_lengths(lengths)


@contextmanager
def neftune(
    model: nn.Module,
    alpha: float,
    *,
    noise: NoiseKind = "uniform",
    length: str = "tokens",
    schedule: Schedule = "constant",
    total_steps: int | None = None,
    seed: int = 0,
    rank: int | None = None,
) -> Iterator[Noise]:
    """NEFTune on `model` within the `with` block: x + alpha / sqrt(L d) * u on the token embeddings.

    Attach after the trainer is built, to `trainer.model`, so that adapters are in their place.

    Args:
        model: A transformers causal language model, with or without adapters, wrapped for several devices or not.
        alpha: The noise alpha of the paper (5, 10, 15); 0 changes no bit of a run.
        noise: "uniform" (the paper), "gaussian" of equal variance, or "symmetric" (SymNoise; wrap the trainer's
            collator with `paired`; each step costs twice).
        length: "tokens", each document's real length, or "padded", the batch's width (Hugging Face's scaling).
        schedule: "constant", "linear_warmup" or "linear_decay" over `total_steps`.
        total_steps: Updates of the whole run; needed by a schedule that moves.
        seed: Seed of the noise's own generator; the global one is never drawn from.
        rank: This process among those that train together; by default torch.distributed's.

    Yields:
        The `Noise`; a trainer calls its `begin_step` before every update.

    Raises:
        NeftuneError: alpha is negative or not finite, an option is unknown, or noise is attached already.
    """
    _check(alpha, noise, length, schedule, total_steps)
    while not hasattr(model, "get_input_embeddings") and isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner  # DistributedDataParallel
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    if hasattr(embedding, MARK):
        raise _twice("this model has NEFTune noise attached already", "leave the first `with neftune(...)` block")
    if hasattr(embedding, HUGGING_FACE_MARK):
        raise _twice("Hugging Face's own noise is on", "leave neftune_noise_alpha unset")
    if rank is None:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    state = Noise(float(alpha), noise, length, schedule, total_steps, seed, rank)
    handles: list[RemovableHandle] = []
    setattr(embedding, MARK, state)
    _forget_compiled()
    try:
        for module in _around(model, embedding):
            handles.append(module.register_forward_pre_hook(state.record_layout, with_kwargs=True))
        handles.append(embedding.register_forward_hook(state.add))
        yield state
    finally:
        for handle in handles:
            handle.remove()
        delattr(embedding, MARK)
        state.clear_layout()
        _forget_compiled()


def _forget_compiled() -> None:
    """A model compiled before the hooks came or went would run on without noticing them."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _around(model: nn.Module, embedding: nn.Module) -> list[nn.Module]:
    """The modules around the embedding, from the model inwards."""
    path = next(name for name, module in model.named_modules() if module is embedding)
    parts = path.split(".")[:-1]
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]


def _parameter_names(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)


def _require_pairs(token_ids: Int[Tensor, "batch time"], lengths: Int[Tensor, "batch time"]) -> None:
    real = torch.stack([token_ids[lengths > 0], lengths[lengths > 0]])
    half = real.shape[1] // 2
    if real.shape[1] % 2 or not torch.equal(real[:, :half], real[:, half:]):
        raise NeftuneError(
            Problem(
                "symmetric noise needs every row twice in a batch, all rows and then all rows again",
                f"a batch of shape {tuple(token_ids.shape)} whose halves differ",
                "trainer.data_collator = paired(trainer.data_collator)",
            )
        )


def _check(alpha: float, noise: str, length: str, schedule: str, total_steps: int | None) -> None:
    problems = []
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha < 0:
        problems.append(Problem("alpha must be a finite number, 0 or more", repr(alpha), "alpha=5.0"))
    if noise not in get_args(NoiseKind):
        problems.append(Problem(f"noise must be one of {', '.join(get_args(NoiseKind))}", repr(noise)))
    if length not in ("tokens", "padded"):
        problems.append(Problem("length must be one of tokens, padded", repr(length)))
    if schedule not in get_args(Schedule):
        problems.append(Problem(f"schedule must be one of {', '.join(get_args(Schedule))}", repr(schedule)))
    elif schedule != "constant" and (not total_steps or total_steps < 1):
        problems.append(Problem(f"schedule {schedule} needs total_steps", repr(total_steps), "total_steps=1000"))
    if problems:
        raise NeftuneError(*problems)


def _twice(received: str, remedy: str) -> NeftuneError:
    return NeftuneError(Problem("noise must be attached exactly once", received, remedy))
