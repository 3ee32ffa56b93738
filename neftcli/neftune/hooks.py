"""Attach the noise to a model, exactly once, and remove it again.

A forward pre-hook on every module around the embedding (the model, its adapter wrappers, the decoder) records the
attention mask, position ids and cumulative lengths of the batch. A forward hook on the embedding adds the noise. No
part of the model is replaced, so adapters, tied weights, quantised layers, activation checkpointing and compiled models
keep working.
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

NOISE_ATTRIBUTE = "_neft_noise"
"""Attribute of an embedding while noise is attached to it."""
HUGGING_FACE_MARK = "neftune_noise_alpha"
"""Attribute of an embedding while Hugging Face's hook is active."""


class Noise:
    """The noise of one model while it is attached.

    Attributes:
        alpha: The full alpha; it can be changed here, and is stored nowhere else.
        step: Optimiser steps done so far. A trainer sets it through `begin_step`, so that a resumed run draws the same
            noise as an uninterrupted one.
        forced: Add noise in evaluation mode too; only to measure its strength.
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
        self._knows_step = False
        self._forward_of: dict[int, int] = {}
        self._layout: dict[str, Tensor | None] = {}

    def begin_step(self, step: int) -> None:
        """Begin optimiser step number `step`, from 0."""
        self.step, self._forward, self._knows_step = step, -1, True
        self._forward_of.clear()

    def clear_layout(self) -> None:
        """Release the tensors of the last batch."""
        self._layout = {}

    def current_alpha(self) -> float:
        """Return alpha at this step by the schedule, or the full alpha while its strength is measured."""
        if self.forced:
            return self.alpha
        return scheduled_alpha(self.alpha, self.schedule, self.step, self.total_steps or 1)

    def record_layout(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the layout of the batch; a forward pre-hook."""
        arguments = {**dict(zip(_parameter_names(module), args, strict=False)), **kwargs}
        if arguments.get("input_ids") is None:
            return
        self._layout = {
            "input_ids": arguments["input_ids"],
            "attention_mask": arguments.get("attention_mask"),
            "position_ids": arguments.get("position_ids"),
            "cumulative_lengths": arguments.get("cu_seq_lens_q"),
        }

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the seed changes every step; the rest of the model is compiled
    def add_noise(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add the noise in training mode; a forward hook of the embedding."""
        if not (module.training or self.forced):
            return output
        if hasattr(module, HUGGING_FACE_MARK):
            raise _attached_twice(
                "Hugging Face's own noise was switched on meanwhile", "leave neftune_noise_alpha unset"
            )
        if self.schedule != "constant" and not self._knows_step:
            raise NeftuneError(
                Problem(
                    f"schedule {self.schedule} needs the number of the optimiser step",
                    "noise.begin_step was never called",
                    "call noise.begin_step(step) before each step, for example in a trainer's callback",
                )
            )
        alpha = self.current_alpha()
        forward = self._forward_index(args[0])
        if alpha == 0.0:
            return output
        generator = torch.Generator(output.device)
        generator.manual_seed(generator_seed(self.seed, self.rank, self.step, forward))
        noise = sample_noise(self._lengths(args[0], output), alpha, output.shape[-1], self.kind, generator)
        return (output.to(torch.promote_types(output.dtype, torch.float32)) + noise).to(output.dtype)

    def _forward_index(self, token_ids: Tensor) -> int:
        """Return the index of this forward pass within the step.

        If activation checkpointing recomputes the embedding in the backward pass, it must get the same noise again.
        """
        recomputing = torch._C._current_graph_task_id() != -1
        if recomputing and token_ids.data_ptr() in self._forward_of:
            return self._forward_of[token_ids.data_ptr()]
        self._forward += 1
        self._forward_of[token_ids.data_ptr()] = self._forward
        return self._forward

    @contextmanager
    def force(self) -> Iterator[None]:
        """Add noise in evaluation mode within the block, without counting its forward passes."""
        forward, forward_of, knows_step = self._forward, dict(self._forward_of), self._knows_step
        self.forced = self._knows_step = True
        try:
            yield
        finally:
            self._forward, self._forward_of, self._knows_step = forward, forward_of, knows_step
            self.forced = False

    def _lengths(self, token_ids: Tensor, output: Float[Tensor, "batch time width"]) -> Int[Tensor, "batch time"]:
        """Return L of each token of the recorded batch, in the scaling that `length` names.

        Raises:
            NeftuneError: The batch doesn't contain the lengths, or isn't doubled for symmetric noise.
        """
        shape = (output.shape[0], output.shape[1])
        layout = self._layout
        mask, positions = layout.get("attention_mask"), layout.get("position_ids")
        boundaries = layout.get("cumulative_lengths")
        recorded = layout.get("input_ids")
        if recorded is None or recorded.shape != token_ids.shape or not torch.equal(recorded, token_ids):
            raise NeftuneError(
                Problem(
                    "NEFTune needs the layout of the batch: the embedding ran outside the model's forward pass",
                    f"token ids of shape {tuple(token_ids.shape)}",
                    "call the model itself, with input_ids and attention_mask",
                )
            )
        if mask is not None and (not isinstance(mask, Tensor) or tuple(mask.shape) != shape):
            if positions is None and boundaries is None:
                got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
                raise NeftuneError(
                    Problem(
                        "NEFTune needs the length of each document: the attention mask must be (batch, time)",
                        f"{got} for token ids of shape {shape}",
                        "pass a two-dimensional attention_mask, or position_ids that restart",
                    )
                )
            mask = None
        if positions is not None and positions.dim() != 2:  # several axes (images), not token positions
            positions = None
        lengths = document_lengths(shape, mask, positions, boundaries, output.device)
        if self.kind == "symmetric":
            _require_doubled(token_ids, lengths)
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
    """Add NEFTune's noise to the token embeddings of `model` within the block: x + alpha / sqrt(L d) * u.

    Attach it to `trainer.model` after the trainer is built, so that the adapters are part of the model.

    Args:
        model: A transformers causal language model, with or without adapters or a wrapper for several devices.
        alpha: Noise scale (5, 10 and 15 in the paper); with 0 a run is bit-identical to one without NEFTune.
        noise: "uniform" (the paper), "gaussian" of equal variance, or "symmetric" (SymNoise; wrap the trainer's
            collator with `paired`; each step computes twice as much).
        length: "tokens", the real length of each document, or "padded", the width of the batch (Hugging Face's
            scaling).
        schedule: "constant", "linear_warmup" or "linear_decay" over `total_steps`.
        total_steps: Optimiser steps of the whole run; required unless the schedule is constant.
        seed: Seed of the noise. The noise has a generator of its own and doesn't change the global one.
        rank: Rank of this process; by default that of torch.distributed.

    Yields:
        The `Noise`; a trainer calls its `begin_step` before every step.

    Raises:
        NeftuneError: alpha is negative or not finite, an option is unknown, or noise is already attached.
    """
    _validate_options(alpha, noise, length, schedule, total_steps)
    while not hasattr(model, "get_input_embeddings") and isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner  # DistributedDataParallel
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    if hasattr(embedding, NOISE_ATTRIBUTE):
        raise _attached_twice("this model already has NEFTune noise", "leave the first `with neftune(...)` block")
    if hasattr(embedding, HUGGING_FACE_MARK):
        raise _attached_twice("Hugging Face's own noise is on", "leave neftune_noise_alpha unset")
    if rank is None:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    state = Noise(float(alpha), noise, length, schedule, total_steps, seed, rank)
    handles: list[RemovableHandle] = []
    setattr(embedding, NOISE_ATTRIBUTE, state)
    _reset_compiled_models()
    try:
        for module in _enclosing_modules(model, embedding):
            handles.append(module.register_forward_pre_hook(state.record_layout, with_kwargs=True))
        handles.append(embedding.register_forward_hook(state.add_noise))
        yield state
    finally:
        for handle in handles:
            handle.remove()
        delattr(embedding, NOISE_ATTRIBUTE)
        state.clear_layout()
        _reset_compiled_models()


def _reset_compiled_models() -> None:
    """Reset torch.compile: a model that was compiled earlier would ignore added and removed hooks."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _enclosing_modules(model: nn.Module, embedding: nn.Module) -> list[nn.Module]:
    """List the modules that contain the embedding, from the model inwards."""
    path = next(name for name, module in model.named_modules() if module is embedding)
    parts = path.split(".")[:-1]
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]


def _parameter_names(module: nn.Module) -> list[str]:
    """List the parameter names of a module's forward method, in order."""
    return list(inspect.signature(module.forward).parameters)


def _require_doubled(token_ids: Int[Tensor, "batch time"], lengths: Int[Tensor, "batch time"]) -> None:
    """Check that the second half of the batch repeats the first, token by token and length by length."""
    real = torch.stack([token_ids[lengths > 0], lengths[lengths > 0]])
    half = real.shape[1] // 2
    if real.shape[1] % 2 or not torch.equal(real[:, :half], real[:, half:]):
        raise NeftuneError(
            Problem(
                "symmetric noise needs every row twice in a batch: all rows, then all rows again",
                f"a batch of shape {tuple(token_ids.shape)} whose halves differ",
                "trainer.data_collator = paired(trainer.data_collator)",
            )
        )


def _validate_options(alpha: float, noise: str, length: str, schedule: str, total_steps: int | None) -> None:
    """Check the arguments of `neftune`, and report all errors together."""
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


def _attached_twice(got: str, hint: str) -> NeftuneError:
    """Return the error for a second source of noise."""
    return NeftuneError(Problem("noise must be attached exactly once", got, hint))
