"""The mathematics of the noise, as pure functions.

    x'[t, :] = x[t, :] + alpha / sqrt(L d) * u[t, :]

with L the number of real tokens of the document that token t belongs to, d the embedding width, and u[t, i]
independent draws from Uniform(-1, 1). So |noise| <= alpha / sqrt(L d), its variance is alpha^2 / (3 L d), and the
expected norm of a whole document's noise is about alpha / sqrt(3).
"""

from hashlib import blake2b
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NoiseKind = Literal["uniform", "gaussian", "symmetric"]
Schedule = Literal["constant", "linear_warmup", "linear_decay"]


def generator_seed(seed: int, rank: int, step: int, forward: int) -> int:
    """A 63-bit seed for one forward pass, far from those of its neighbours.

    Args:
        seed: The run's seed.
        rank: The process among those that train together.
        step: Updates of the optimiser so far.
        forward: Forward passes so far within this update (gradient accumulation).
    """
    digest = blake2b(f"{seed}/{rank}/{step}/{forward}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def directions(kind: NoiseKind, tokens: int, width: int, generator: torch.Generator) -> Float[Tensor, "tokens width"]:
    """Draws u, one row a real token, before any scaling; the same for every alpha.

    uniform: Uniform(-1, 1), variance 1/3. gaussian: Normal(0, 1/3), the same variance and no bound. symmetric:
    +1 or -1 for the first half of the tokens and its negative for the second half, which holds the same rows again
    (SymNoise, arXiv 2312.01523; its variance is 1, three times the uniform noise's).
    """
    draw = torch.empty(tokens, width, device=generator.device)
    if kind == "uniform":
        return draw.uniform_(-1.0, 1.0, generator=generator)
    if kind == "gaussian":
        return draw.normal_(0.0, 3.0**-0.5, generator=generator)
    half = draw[: tokens // 2].bernoulli_(0.5, generator=generator).mul_(2.0).sub_(1.0)
    draw[tokens // 2 :] = -half
    return draw


def scales(lengths: Int[Tensor, "batch time"], alpha: float, width: int) -> Float[Tensor, "batch time"]:
    """The bound alpha / sqrt(L d) for each token, 0 where `lengths` is 0 (pads).

    Computed in float32 from whole numbers: bfloat16 can't hold every length above 256.
    """
    scale = alpha / torch.sqrt(lengths.clamp(min=1).float() * width)
    return scale.masked_fill(lengths == 0, 0.0)


def sample_noise(
    lengths: Int[Tensor, "batch time"], alpha: float, width: int, kind: NoiseKind, generator: torch.Generator
) -> Float[Tensor, "batch time width"]:
    """The noise of one batch, 0 at pads.

    Only real tokens draw, in the order of the batch. So a document gets the same noise whether its batch is padded
    on the left, on the right, or laid end to end without padding.
    """
    batch, time = lengths.shape
    real: Bool[Tensor, "batch*time"] = (lengths > 0).flatten()
    scale = scales(lengths, alpha, width).flatten()
    tokens = int(real.sum())
    draw = directions(kind, tokens, width, generator)
    if tokens == batch * time:
        return draw.mul_(scale[:, None]).view(batch, time, width)
    noise = draw.new_zeros(batch * time, width)
    noise[real] = draw.mul_(scale[real][:, None])
    return noise.view(batch, time, width)


def scheduled_alpha(alpha: float, schedule: Schedule, step: int, total_steps: int) -> float:
    """Alpha at an update: constant, from 0 at the first update to alpha at the last, or the reverse.

    Args:
        alpha: The full alpha.
        schedule: How it moves.
        step: Updates done so far, from 0.
        total_steps: Updates of the whole run.
    """
    if schedule == "constant":
        return alpha
    share = min(step / max(total_steps - 1, 1), 1.0)
    return alpha * (share if schedule == "linear_warmup" else 1.0 - share)
