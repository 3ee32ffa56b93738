"""The formulas of NEFTune's noise, as pure functions.

    x'[t, :] = x[t, :] + alpha / sqrt(L d) * u[t, :]

with the embedding x[t, :] of token t, the number L of real tokens of the document that token t belongs to, the
embedding width d, and independent draws u[t, i] from Uniform(-1, 1). Hence |noise| <= alpha / sqrt(L d), the variance
is alpha^2 / (3 L d), and the expected norm of a whole document's noise is about alpha / sqrt(3).
"""

from hashlib import blake2b
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NoiseKind = Literal["uniform", "gaussian", "symmetric"]
Schedule = Literal["constant", "linear_warmup", "linear_decay"]


def sample_noise(
    lengths: Int[Tensor, "batch time"], alpha: float, width: int, kind: NoiseKind, generator: torch.Generator
) -> Float[Tensor, "batch time width"]:
    """Sample the noise alpha / sqrt(L d) * u of one batch, 0 at pads.

    Only real tokens draw, in the order of the batch. So a document gets the same noise if its batch is padded on the
    left, padded on the right, or has no padding.

    Args:
        lengths: L of each token, 0 at pads.
        alpha: Noise scale.
        width: Embedding width d.
        kind: Distribution of u.
        generator: Generator on the device of `lengths`.
    """
    batch, time = lengths.shape
    real: Bool[Tensor, "batch*time"] = (lengths > 0).flatten()
    scale = noise_scale(lengths, alpha, width).flatten()
    tokens = int(real.sum())
    directions = sample_directions(kind, tokens, width, generator)
    if tokens == batch * time:
        return directions.mul_(scale[:, None]).view(batch, time, width)
    noise = directions.new_zeros(batch * time, width)
    noise[real] = directions.mul_(scale[real][:, None])
    return noise.view(batch, time, width)


def noise_scale(lengths: Int[Tensor, "batch time"], alpha: float, width: int) -> Float[Tensor, "batch time"]:
    """Compute alpha / sqrt(L d) for each token, 0 if its length is 0 (pads).

    Computed in float32 from integers: bfloat16 can't represent every length above 256.
    """
    scale = alpha / torch.sqrt(lengths.clamp(min=1).float() * width)
    return scale.masked_fill(lengths == 0, 0.0)


def sample_directions(
    kind: NoiseKind, tokens: int, width: int, generator: torch.Generator
) -> Float[Tensor, "tokens width"]:
    """Sample u, one row per real token; it doesn't depend on alpha.

    uniform: Uniform(-1, 1), variance 1/3. gaussian: Normal(0, 1/3), the same variance without a bound. symmetric: +1 or
    -1 for the first half of the tokens, and the negative for the second half, which holds the same rows again
    (SymNoise, arXiv 2312.01523); its variance is 1, three times that of uniform noise.
    """
    directions = torch.empty(tokens, width, device=generator.device)
    if kind == "uniform":
        return directions.uniform_(-1.0, 1.0, generator=generator)
    if kind == "gaussian":
        return directions.normal_(0.0, 3.0**-0.5, generator=generator)
    half = directions[: tokens // 2].bernoulli_(0.5, generator=generator).mul_(2.0).sub_(1.0)
    directions[tokens // 2 :] = -half
    return directions


def generator_seed(seed: int, rank: int, step: int, forward: int) -> int:
    """Return a 63-bit seed for one forward pass, uncorrelated with those of other passes.

    Args:
        seed: Seed of the run.
        rank: Rank of this process.
        step: Optimiser steps done so far.
        forward: Forward passes done so far within this step (gradient accumulation).
    """
    digest = blake2b(f"{seed}/{rank}/{step}/{forward}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def scheduled_alpha(alpha: float, schedule: Schedule, step: int, total_steps: int) -> float:
    """Return alpha at a step: constant, rising from 0 at the first step to alpha at the last, or falling.

    Args:
        alpha: The full alpha.
        schedule: Schedule of alpha.
        step: Optimiser steps done so far, from 0.
        total_steps: Optimiser steps of the whole run.
    """
    if schedule == "constant":
        return alpha
    progress = min(step / max(total_steps - 1, 1), 1.0)
    return alpha * (progress if schedule == "linear_warmup" else 1.0 - progress)
