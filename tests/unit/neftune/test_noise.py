"""The formulas of the noise, against the paper.

Oracle: float64 numpy, written here. For a document of L real tokens, embedding width d and noise scale alpha,

    |noise| <= alpha / sqrt(L d)    variance = alpha^2 / (3 L d)    mean = 0    E |noise of a document|^2 = alpha^2 / 3

Statistical tolerances are five standard errors, so a correct implementation fails for about one seed in 2 million;
the seeds are fixed.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.neftune.noise import generator_seed, noise_scale, sample_directions, sample_noise, scheduled_alpha

FLOAT32 = 1e-6  # relative: the formula in float32 takes four roundings of 6e-8 each


def bound(length: int, width: int, alpha: float) -> float:
    return float(np.float64(alpha) / np.sqrt(np.float64(length) * np.float64(width)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lengths_of(rows: list[list[int]]) -> torch.Tensor:
    """The length of each token's document, from rows of document lengths without pads."""
    return torch.tensor([[length for length in row for _ in range(length)] for row in rows])


def draws(length: int, width: int, alpha: float, kind: str, least: int) -> np.ndarray:
    """At least `least` values of the noise of one document, from consecutive seeds."""
    lengths = lengths_of([[length]])
    times = math.ceil(least / (length * width))
    drawn = [sample_noise(lengths, alpha, width, kind, generator(seed)).double().numpy() for seed in range(times)]
    return np.concatenate(drawn)


@pytest.mark.parametrize("alpha", [0.5, 5.0, 10.0, 15.0])
@pytest.mark.parametrize(("length", "width"), [(1, 64), (7, 64), (20, 32), (300, 16)])
def test_sample_noise_uniform_stays_within_its_bound_and_nearly_reaches_it(
    alpha: float, length: int, width: int
) -> None:
    drawn = np.abs(draws(length, width, alpha, "uniform", least=2_000))
    # The largest of 2,000 uniform draws is below 0.99 of the bound with probability 0.99^2000 = 2e-9.
    assert drawn.max() <= bound(length, width, alpha) * (1 + FLOAT32)
    assert drawn.max() > 0.99 * bound(length, width, alpha)


@pytest.mark.parametrize("width", [32, 64])
def test_sample_noise_packed_documents_have_their_own_bound(width: int) -> None:
    documents = [64, 130, 257, 500]
    noise = sample_noise(lengths_of([documents]), 5.0, width, "uniform", generator()).double().numpy()[0]
    start = 0
    for length in documents:
        largest = np.abs(noise[start : start + length]).max()
        assert 0.99 * bound(length, width, 5.0) < largest <= bound(length, width, 5.0) * (1 + FLOAT32)
        start += length


@pytest.mark.parametrize(("kind", "variance_of_square"), [("uniform", 0.8), ("gaussian", 2.0)])
@pytest.mark.parametrize("length", [5, 200])
def test_sample_noise_mean_and_variance(kind: str, variance_of_square: float, length: int) -> None:
    width, alpha, least = 64, 5.0, 200_000
    drawn = draws(length, width, alpha, kind, least)
    variance = np.float64(alpha) ** 2 / (3 * length * width)
    # Standard errors: sqrt(variance / n) of the mean, and relatively sqrt(Var(u^2) / E(u^2)^2 / n) of the variance,
    # where the ratio is 0.8 for uniform draws and 2 for normal ones.
    assert abs(drawn.mean()) < 5 * math.sqrt(variance / drawn.size)
    assert drawn.var() == pytest.approx(variance, rel=5 * math.sqrt(variance_of_square / drawn.size))


@pytest.mark.parametrize("length", [4, 64])
def test_sample_noise_norm_of_a_document(length: int) -> None:
    squares = [
        (sample_noise(lengths_of([[length]]), 5.0, 32, "uniform", generator(seed)).double() ** 2).sum().item()
        for seed in range(200)
    ]
    error = math.sqrt(0.8 / (length * 32 * 200))
    assert np.mean(squares) == pytest.approx(5.0**2 / 3, rel=5 * error)


def test_sample_noise_gaussian_is_not_bounded() -> None:
    # 200,000 normal draws reach beyond 4 standard deviations; uniform ones stop at sqrt(3) of theirs.
    assert np.abs(draws(5, 64, 5.0, "gaussian", 200_000)).max() > 4 * bound(5, 64, 5.0) / math.sqrt(3)


@pytest.mark.parametrize("rows", [[[6], [6]], [[3], [9], [3], [9]], [[4, 7, 4, 7]]])
def test_sample_noise_symmetric_is_the_bound_and_negated_in_the_second_half(rows: list[list[int]]) -> None:
    width = 32
    # Rows of unequal length in one row: sample_noise takes per-token lengths, in the order of the batch.
    lengths = lengths_of([[length for row in rows for length in row]])
    noise = sample_noise(lengths, 5.0, width, "symmetric", generator())[0]
    expected = np.array([bound(int(length), width, 5.0) for length in lengths[0]])
    np.testing.assert_allclose(noise.abs().double().numpy(), np.repeat(expected[:, None], width, 1), rtol=FLOAT32)
    first, second = noise.chunk(2)
    assert torch.equal(first, -second)
    assert torch.count_nonzero(first + second) == 0
    assert first.unique().numel() > 1, "both signs occur"
    # Of n fair signs the mean's standard error is 1 / sqrt(n).
    assert abs(first.sign().mean().item()) < 5 / math.sqrt(first.numel())


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "symmetric"])
def test_sample_noise_pads_are_zero_and_draw_nothing(kind: str) -> None:
    width = 16
    left = torch.tensor([[0, 0, 3, 3, 3], [5, 5, 5, 5, 5], [0, 0, 3, 3, 3], [5, 5, 5, 5, 5]])
    right = torch.tensor([[3, 3, 3, 0, 0], [5, 5, 5, 5, 5], [3, 3, 3, 0, 0], [5, 5, 5, 5, 5]])
    flat = lengths_of([[3, 5, 3, 5]])
    noises = [sample_noise(lengths, 5.0, width, kind, generator()) for lengths in (left, right, flat)]
    for noise, lengths in zip(noises, (left, right, flat), strict=True):
        assert torch.count_nonzero(noise[lengths == 0]) == 0
        assert torch.all(noise[lengths > 0].abs().sum(1) > 0)
        assert torch.equal(noise[lengths > 0], noises[2][0]), "the layout moves the noise and doesn't change it"


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "symmetric"])
def test_sample_noise_has_the_same_directions_for_every_alpha(kind: str) -> None:
    lengths = lengths_of([[6, 6]])
    # Powers of two scale without rounding.
    single, fourfold = (sample_noise(lengths, alpha, 32, kind, generator(3)) for alpha in (2.5, 10.0))
    assert torch.equal(single * 4, fourfold)


@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_sample_noise_of_the_first_document_does_not_depend_on_the_others(kind: str) -> None:
    alone = sample_noise(lengths_of([[6]]), 5.0, 32, kind, generator(1))[0]
    followed = sample_noise(lengths_of([[6, 11, 3]]), 5.0, 32, kind, generator(1))[0]
    assert torch.equal(followed[:6], alone)


@pytest.mark.parametrize("length", [255, 256, 257, 300, 513, 4_097, 131_073])
def test_noise_scale_is_exact_to_float32_for_every_length(length: int) -> None:
    scale = noise_scale(torch.tensor([[length]]), 5.0, 4096)
    assert scale.dtype == torch.float32
    assert scale.item() == pytest.approx(bound(length, 4096, 5.0), rel=FLOAT32)


@settings(deadline=None)
@given(
    documents=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    alpha=st.floats(0.01, 100.0),
    width=st.sampled_from([1, 3, 16, 64]),
    seed=st.integers(0, 2**31),
)
def test_sample_noise_uniform_never_exceeds_the_bound_of_its_document(
    documents: list[int], alpha: float, width: int, seed: int
) -> None:
    lengths = lengths_of([documents])
    noise = sample_noise(lengths, alpha, width, "uniform", generator(seed)).abs().double().numpy()[0]
    limits = np.array([bound(int(length), width, alpha) for length in lengths[0]])
    assert (noise <= limits[:, None] * (1 + FLOAT32)).all()


def test_sample_directions_uses_its_own_generator() -> None:
    before = torch.get_rng_state()
    for kind in ("uniform", "gaussian", "symmetric"):
        assert torch.equal(sample_directions(kind, 8, 16, generator(5)), sample_directions(kind, 8, 16, generator(5)))
        assert not torch.equal(
            sample_directions(kind, 8, 16, generator(5)), sample_directions(kind, 8, 16, generator(6))
        )
    assert torch.equal(torch.get_rng_state(), before)


def test_generator_seed_differs_between_passes_and_is_valid() -> None:
    seeds = [
        generator_seed(seed, rank, step, forward)
        for seed in range(4)
        for rank in range(4)
        for step in (0, 1, 2, 10, 11, 111)
        for forward in range(4)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert generator(max(seeds)).initial_seed() == max(seeds)


@pytest.mark.parametrize(
    ("schedule", "first", "middle", "last"),
    [("constant", 5.0, 5.0, 5.0), ("linear_warmup", 0.0, 2.5, 5.0), ("linear_decay", 5.0, 2.5, 0.0)],
)
def test_scheduled_alpha_at_the_first_middle_and_last_step(
    schedule: str, first: float, middle: float, last: float
) -> None:
    values = [scheduled_alpha(5.0, schedule, step, 11) for step in (0, 5, 10)]
    assert values == [first, middle, last]
    assert scheduled_alpha(5.0, schedule, 12, 11) == last, "a step beyond the last keeps its value"


def test_scheduled_alpha_changes_linearly() -> None:
    warmup = [scheduled_alpha(8.0, "linear_warmup", step, 5) for step in range(5)]
    decay = [scheduled_alpha(8.0, "linear_decay", step, 5) for step in range(5)]
    assert warmup == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert decay == warmup[::-1]
