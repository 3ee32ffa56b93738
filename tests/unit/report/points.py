"""Planted points of a plot: four alphas with three seeds each."""

from __future__ import annotations

from neftcli.report.plots import ArmPoints

ALPHAS = (0.0, 5.0, 10.0, 15.0)
MEANS = (1.9612, 1.9608, 1.9615, 1.9650)


def arm(alpha: float, mean: float, label: str = "", spread: float = 0.003) -> ArmPoints:
    """Return three seeds around a mean, with an interval."""
    seeds = (mean - spread, mean + spread / 2, mean + spread / 2)
    return ArmPoints(alpha, label, mean, mean - 2 * spread, mean + 2 * spread, seeds)


HELD_OUT = [arm(alpha, mean) for alpha, mean in zip(ALPHAS, MEANS, strict=True)]
