"""Plots of a sweep over alpha, each as PNG and SVG: a metric against alpha, and learning curves.

Sized for print: one column (88 mm) if few arms are drawn, otherwise the page (180 mm), with text of 8 to 9 points.
The colours are those of Okabe and Ito (Color Universal Design, 2008), ordered so that neighbours differ in grey; a
marker or a dash pattern repeats what the colour shows. Values that are not finite are left out, with a note below.
"""

from __future__ import annotations

import itertools
import math
import textwrap
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#56B4E9", "#D55E00", "#CC79A7")
# 8 markers and 5 dash patterns: 40 different pairs, even without colour.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
GREY = "0.45"
SEED_MARKS: dict[str, Any] = {"marker": "o", "markersize": 3.2, "markerfacecolor": "white", "linestyle": "none"}
COLUMN_WIDTH, PAGE_WIDTH = 88.0, 180.0  # mm
DPI = 300
FONT_SIZE = 9.0  # points
MANY_ENTRIES = 8  # with more arms the figure has the page's width, with more legend entries a smaller type
MAX_REFERENCE_LINES = 4  # horizontal lines of alpha 0 that can be distinguished
ENLARGED_BELOW = 0.4  # if the second half takes less of the range than this, it gets its own panel
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # part of matplotlib, so widths are the same on every machine
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "legend.handlelength": 2.8,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon", "text.parse_math"), False),
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "0.9",
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "neft",
}
_style_lock = threading.Lock()  # matplotlib's settings are global to the process


@dataclass(frozen=True, slots=True)
class ArmPoints:
    """One arm of a sweep: a mean over seeds, its interval, and the seeds.

    Attributes:
        alpha: Noise strength.
        label: Other swept options, such as "learning_rate 1e-05", or an empty string.
        value: Mean over seeds.
        low: Lower end of its 95 % interval; None if there is none.
        high: Upper end.
        seeds: Value of each seed, in the same order in all arms; None if it is not measured.
    """

    alpha: float
    label: str
    value: float
    low: float | None
    high: float | None
    seeds: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """Learning curve of a cell.

    Attributes:
        alpha: Noise strength.
        label: Other swept options, or an empty string.
        seed: Seed of the cell.
        steps: Step of each measurement, ascending.
        values: Measured values.
    """

    alpha: float
    label: str
    seed: int
    steps: tuple[int, ...]
    values: tuple[float, ...]


def plot_metric(
    folder: Path, stem: str, metric: str, unit: str, better: str, points: Sequence[ArmPoints]
) -> list[Path]:
    """Plot a metric against alpha, with intervals and single seeds, to `stem`.png and `stem`.svg.

    Args:
        folder: Folder of the files; created if missing.
        stem: Name of the files.
        metric: Name of the metric.
        unit: Its unit, or an empty string.
        better: "lower" or "higher"; "none" if neither is better.
        points: The arms, in any order.

    Raises:
        OSError: The folder can't be written.
    """
    with plot_style():
        return _write(metric_figure(metric, unit, better, points), folder, stem)


def plot_curves(folder: Path, stem: str, title: str, unit: str, curves: Sequence[Curve]) -> list[Path]:
    """Plot learning curves to `stem`.png and `stem`.svg: one panel per label, one style per alpha.

    Thin lines are seeds; a thick line is the mean over the seeds of an arm, at the steps that all of them have.

    Args:
        folder: Folder of the files; created if missing.
        stem: Name of the files.
        title: Name of the metric.
        unit: Its unit, or an empty string.
        curves: Curves of the cells, in any order.

    Raises:
        OSError: The folder can't be written.
    """
    with plot_style():
        return _write(curves_figure(title, unit, curves), folder, stem)


def metric_figure(metric: str, unit: str, better: str, points: Sequence[ArmPoints]) -> Figure:
    """Return the figure of a metric: values and intervals over alpha, with a point for each seed."""
    alphas = sorted({point.alpha for point in points})
    labels = list(dict.fromkeys(point.label for point in points))
    width = COLUMN_WIDTH if len(alphas) * len(labels) <= MANY_ENTRIES else PAGE_WIDTH
    figure = _figure(width, 70.0)
    axes = figure.add_subplot()
    positions, gap = _place_alphas(axes, alphas, len(labels), width)
    slot = gap * min(0.7 / max(1, len(labels)), 0.2 * len(alphas))
    for number, label in enumerate(labels):
        shift = (number - (len(labels) - 1) / 2) * slot
        arms = sorted((point for point in points if point.label == label), key=lambda point: point.alpha)
        _draw_arms(axes, [(positions[arm.alpha] + shift, arm) for arm in arms], slot, number)
        for arm in arms:
            if arm.alpha == 0 and math.isfinite(arm.value) and len(labels) <= MAX_REFERENCE_LINES:
                colour = GREY if len(labels) == 1 else COLOURS[number % len(COLOURS)]
                axes.axhline(arm.value, color=colour, linewidth=0.6, zorder=1, gid=f"alpha-0-{number}")
    drawn: list[float] = []
    for point in points:
        drawn += (point.value, *_seeds(point), *_interval(point))
    _scale(axes, [value for value in drawn if math.isfinite(value)])
    direction = "" if better == "none" else f"\n{better} is better"
    axes.set_ylabel(textwrap.fill(f"{metric} ({unit})" if unit else metric, 34) + direction)
    entries = _metric_legend(axes, labels, any(len(_seeds(point)) > 1 for point in points))
    _finish(figure, entries, _missing(points))
    return figure


def _draw_arms(axes: Axes, arms: Sequence[tuple[float, ArmPoints]], slot: float, number: int) -> None:
    """Draw the arms of a label, each centred on its x position in a slot of width `slot`."""
    colour = COLOURS[number % len(COLOURS)]
    for position, arm in arms:
        if ends := _interval(arm):
            gid = f"interval-{number}-{_number(arm.alpha)}"
            axes.plot([position] * 2, ends, color=colour, marker="_", linewidth=1.0, gid=gid)
    means = [(position, arm.value) for position, arm in arms if math.isfinite(arm.value)]
    axes.plot(*zip(*means, strict=True), zorder=4, gid=f"mean-{number}", **_marks(number))
    if any(len(_seeds(arm)) > 1 for _, arm in arms):
        # Each seed has the same distance from the interval at every alpha, so that it can be recognised.
        step = 0.32 * slot / math.ceil(max(len(arm.seeds) for _, arm in arms) / 2)
        singles = [
            (position + step * (seed // 2 + 1) * (1 if seed % 2 else -1), value)
            for position, arm in arms
            for seed, value in enumerate(arm.seeds)
            if value is not None and math.isfinite(value)
        ]
        axes.plot(*zip(*singles, strict=True), color=colour, zorder=5, gid=f"seeds-{number}", **SEED_MARKS)


def _metric_legend(axes: Axes, labels: Sequence[str], several: bool) -> list[Line2D]:
    """Return the legend: the labels, and the meaning of the marks that were drawn; `several` if seeds were."""
    colour = COLOURS[0] if len(labels) == 1 else GREY
    blank = "mean over seeds" if several else "one seed"
    if len(labels) > 1:
        blank = "as in the recipe"
    meanings = {
        "interval": _entry("95 % interval", color=colour, marker="|", markersize=9, linestyle="none"),
        "seeds": _entry("single seed", color=colour, **SEED_MARKS),
        "alpha": _entry("level of alpha 0", color=GREY, linewidth=0.6),
    }
    drawn = {str(line.get_gid()).split("-")[0] for line in axes.lines}
    arms = [_entry(label or blank, **_marks(number)) for number, label in enumerate(labels)]
    return arms + [entry for kind, entry in meanings.items() if kind in drawn]


def curves_figure(title: str, unit: str, curves: Sequence[Curve]) -> Figure:
    """Return the figure of curves over steps."""
    from matplotlib.ticker import MaxNLocator

    alphas = sorted({curve.alpha for curve in curves})
    shown, enlarged = _panels(curves)
    columns = 2 if len(shown) == 4 else min(len(shown), 3)
    rows = math.ceil(len(shown) / columns)
    figure = _figure(PAGE_WIDTH, 80.0 if rows == 1 else 60.0 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(shown) :]:
        axes.remove()
    for position, (axes, (heading, chosen)) in enumerate(zip(grid, shown, strict=False)):
        for number, alpha in enumerate(alphas):
            _draw_seeds(axes, [curve for curve in chosen if curve.alpha == alpha], number)
        axes.set_title(textwrap.fill(heading, 80 // columns))
        if position + columns >= len(shown):
            axes.set_xlabel("step")
        if position and not enlarged:
            axes.sharex(grid[0])
            axes.tick_params(labelleft=position % columns == 0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        _scale(axes, _finite(chosen if enlarged else curves))
    figure.supylabel(f"{title} ({unit})" if unit else title, fontsize=FONT_SIZE)
    count, finite = sum(len(curve.values) for curve in curves), len(_finite(curves))
    note = f"Values that are not finite are left out: {count - finite} of {count}." if finite < count else ""
    _finish(figure, [_entry(f"alpha {_number(alpha)}", **_marks(number)) for number, alpha in enumerate(alphas)], note)
    return figure


def _panels(curves: Sequence[Curve]) -> tuple[list[tuple[str, list[Curve]]], bool]:
    """Return the heading and curves of each panel; and True if the second half of the steps has its own panel.

    It is if the first steps take most of the range of values.
    """
    labels = list(dict.fromkeys(curve.label for curve in curves)) or [""]
    panels = [(label, [curve for curve in curves if curve.label == label]) for label in labels]
    half = max((step for curve in curves for step in curve.steps), default=0) / 2
    late = []
    for curve in curves:
        kept = sum(step < half for step in curve.steps)
        late.append(replace(curve, steps=curve.steps[kept:], values=curve.values[kept:]))
    values, ends = _finite(curves), _finite(late)
    if len(labels) == 1 and ends and max(ends) - min(ends) < ENLARGED_BELOW * (max(values) - min(values)):
        label = f"{labels[0]}, " if labels[0] else ""
        return [(f"{label}all steps", panels[0][1]), (f"{label}second half, enlarged", late)], True
    return panels, False


def _draw_seeds(axes: Axes, curves: Sequence[Curve], number: int) -> None:
    """Draw an arm: its seeds thin, their mean thick and with a few markers."""
    curves_by_step = [
        {step: value for step, value in zip(curve.steps, curve.values, strict=True) if math.isfinite(value)}
        for curve in curves
    ]
    if len(curves_by_step) > 1:
        colour = COLOURS[number % len(COLOURS)]
        for seed in curves_by_step:
            points = zip(*sorted(seed.items()), strict=True)
            axes.plot(*points, color=colour, linewidth=0.5, alpha=0.45, gid=f"seed-{number}")
    shared = sorted(set.intersection(*map(set, curves_by_step))) if curves_by_step else []
    means = [math.fsum(seed[step] for seed in curves_by_step) / len(curves_by_step) for step in shared]
    every = max(1, len(means) // 6)
    start = number * every // 4 % every  # the markers of the arms are at different steps
    axes.plot(shared, means, linewidth=1.6, markevery=(start, every), zorder=3, gid=f"mean-{number}", **_marks(number))


def _marks(number: int) -> dict[str, Any]:
    """Return colour, marker and dash pattern of an arm."""
    colour, marker, dash = (values[number % len(values)] for values in (COLOURS, MARKERS, DASHES))
    return {"color": colour, "marker": marker, "linestyle": dash}


def _entry(text: str, **marks: Any) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=text, **marks)


def _place_alphas(axes: Axes, alphas: Sequence[float], labels: int, width: float) -> tuple[dict[float, float], float]:
    """Return the x position of each alpha, to scale if there is room, otherwise even; and the smallest gap."""
    names = [_number(alpha) for alpha in alphas]
    room = width / 25.4 * 72 - 70  # points, without the y axis
    name = max(map(len, names), default=1) * 0.65 * FONT_SIZE + 4
    span = alphas[-1] - alphas[0] if alphas else 0.0
    gap = min((after - before for before, after in itertools.pairwise(alphas)), default=1.0)
    to_scale = not span or room * gap / (span + gap) >= max(name, 5.0 * labels)
    positions, gap = (list(alphas), gap) if to_scale else ([float(position) for position in range(len(alphas))], 1.0)
    axes.set_xticks(positions, names, rotation=90 if room < name * len(alphas) and not to_scale else 0)
    if positions:
        axes.set_xlim(positions[0] - 0.5 * gap, positions[-1] + 0.5 * gap)
    axes.set_xlabel("NEFTune alpha" if to_scale else "NEFTune alpha (not to scale)")
    return dict(zip(alphas, positions, strict=True)), gap


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Set limits that include all values, and ticks with all their digits, without an offset next to the axis."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter, StrMethodFormatter

    if not values:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", va="center")
        return
    low, high = _limits(values)
    size = max(abs(low), abs(high))
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    if 1e-3 <= size < 1e6:
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    else:
        digits = 2 + max(0, math.ceil(math.log10(size / (high - low))))
        axes.yaxis.set_major_formatter(StrMethodFormatter(f"{{x:.{digits}e}}"))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of the values with a margin; of values that differ by rounding only, 1 % of their size."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    margin = 0.06 * (high - low) if high - low > 1e-9 * size else (0.01 * size or 1.0)
    return low - margin, high + margin


def _finite(curves: Sequence[Curve]) -> list[float]:
    return [value for curve in curves for value in curve.values if math.isfinite(value)]


def _missing(points: Sequence[ArmPoints]) -> str:
    """Return a note that lists the arms with a value that is not finite, or an empty string."""
    arms = [point for point in points if not all(map(math.isfinite, (point.value, *_seeds(point))))]
    names = "; ".join(f"alpha {_number(arm.alpha)} {arm.label}".strip() for arm in arms)
    return f"Values that are not finite are left out: {names}." if names else ""


def _seeds(arm: ArmPoints) -> tuple[float, ...]:
    """Return the values of the measured seeds."""
    return tuple(value for value in arm.seeds if value is not None)


def _interval(arm: ArmPoints) -> tuple[float, ...]:
    """Return both ends of the interval; an empty tuple if one is missing or not finite."""
    ends = tuple(end for end in (arm.low, arm.high) if end is not None and math.isfinite(end))
    return ends if len(ends) == 2 else ()


def _number(alpha: float) -> str:
    short = f"{alpha:g}"
    return short if float(short) == alpha else repr(alpha)


@contextmanager
def plot_style() -> Iterator[None]:
    """Apply matplotlib's defaults and `STYLE`, regardless of the user's settings, which are restored afterwards."""
    import matplotlib.style

    with _style_lock, warnings.catch_warnings(), matplotlib.style.context(STYLE, after_reset=True):
        warnings.filterwarnings("ignore", "Glyph")  # the PNG has a box; the SVG has the character
        yield


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure without pyplot; width and height are in millimetres."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 25.4, height / 25.4), dpi=DPI, layout="constrained")


def _finish(figure: Figure, entries: Sequence[Line2D], note: str) -> None:
    """Add a legend above and a note below, and increase the height of the figure accordingly."""
    width, height = figure.get_size_inches()
    size = 8.0 if len(entries) <= MANY_ENTRIES else 7.0
    for entry in entries:
        entry.set_label(textwrap.fill(str(entry.get_label()), int(72 * width / (0.62 * size)) - 8))
    for columns in (5, 4, 3, 2, 1):
        legend = figure.legend(handles=entries, loc="outside upper center", ncols=columns, fontsize=size)
        if legend.get_window_extent().width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    height += legend.get_window_extent().height / figure.dpi
    if note:
        text = textwrap.fill(note, int(72 * width / (0.58 * 7)))
        figure.supxlabel(text, fontsize=7, x=0.01, ha="left")
        height += (text.count("\n") + 1) * 9 / 72
    figure.set_size_inches(width, height)


def _write(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write the figure as PNG and SVG, atomically; the same figure gives identical bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    for path, metadata in zip(paths, ({"Software": None}, {"Date": None, "Creator": None}), strict=True):
        drawn = BytesIO()
        figure.savefig(drawn, format=path.suffix[1:], metadata=metadata)
        atomic_write(path, drawn.getvalue())
    return paths
