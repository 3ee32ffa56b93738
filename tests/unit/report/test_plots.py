"""Plots of a sweep.

Oracles: the figure's own artists against the numbers that were given; the SVG read by an XML parser; Pillow for the
PNG; the luminance of the CIE (L* of CIELAB from sRGB) for print in grey; and the same call twice, in threads, and in a
process with other settings of matplotlib.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neftcli.report import plots
from neftcli.report.plots import ArmPoints, Curve, plot_curves, plot_metric
from tests.unit.report.points import ALPHAS, HELD_OUT, MEANS, arm

NAN = math.nan


def curve(alpha: float, seed: int, label: str = "", last_step: int = 54) -> Curve:
    steps = tuple(range(1, last_step + 1))
    return Curve(alpha, label, seed, steps, tuple(2 - step / 60 + seed / 10 + alpha / 1000 for step in steps))


CURVES = [curve(alpha, seed) for alpha in ALPHAS for seed in range(3)]


def metric_figure(points: list[ArmPoints], better: str = "lower") -> Any:
    with plots.plot_style():
        figure = plots.metric_figure("held-out loss", "nats a token", better, points)
        figure.draw_without_rendering()
    return figure


def curves_figure(curves: list[Curve]) -> Any:
    with plots.plot_style():
        figure = plots.curves_figure("training loss", "nats a token", curves)
        figure.draw_without_rendering()
    return figure


def drawn(axes: Any, gid: str) -> list[tuple[float, float]]:
    """Return the points of the lines whose id starts with `gid`."""
    lines = [line for line in axes.lines if str(line.get_gid()).startswith(gid)]
    return [(float(x), float(y)) for line in lines for x, y in zip(*line.get_data(), strict=True)]


def parsed(svg: Path) -> ElementTree.Element:
    return ElementTree.fromstring(svg.read_bytes())  # noqa: S314 - our own file


def texts(svg: Path) -> str:
    """Return all text of an SVG, separated by spaces."""
    return " ".join("".join(node.itertext()) for node in parsed(svg).iter("{http://www.w3.org/2000/svg}text"))


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def ticks(axes: Any) -> list[tuple[float, str]]:
    """Return position and text of the visible ticks."""
    low, high = axes.get_ylim()
    texts = [label.get_text().replace("\N{MINUS SIGN}", "-") for label in axes.get_yticklabels()]
    return [
        (position, text) for position, text in zip(axes.get_yticks(), texts, strict=True) if low <= position <= high
    ]


def test_plots_write_a_valid_png_and_svg(tmp_path: Path) -> None:
    """The PNG has its width at 300 dpi, the SVG is XML of the same width in points; the folder has nothing else."""
    written = plot_metric(tmp_path / "plots", "loss", "held-out loss", "nats a token", "lower", HELD_OUT)
    written += plot_curves(tmp_path / "plots", "curves", "training loss", "nats a token", CURVES)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(path.name for path in written)
    assert [path.name for path in written] == ["loss.png", "loss.svg", "curves.png", "curves.svg"]
    for (png, svg), millimetres in zip((written[:2], written[2:]), (88, 180), strict=True):
        with Image.open(png) as image:
            image.load()
            assert image.width == pytest.approx(millimetres / 25.4 * 300, abs=1)
            assert 0.3 < image.height / image.width < 1.2
            assert "Software" not in image.info
        size = parsed(svg).attrib["width"]
        assert float(size.removesuffix("pt")) == pytest.approx(millimetres / 25.4 * 72, abs=0.1)
        assert {path.stat().st_mode & 0o777 for path in (png, svg)} == {0o644}


def test_plot_metric_keeps_the_old_file_if_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loss.png").write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        plot_metric(tmp_path, "loss", "loss", "", "lower", HELD_OUT)
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    assert (tmp_path / "loss.png").read_text() == "old"


@pytest.mark.slow
def test_plot_metric_is_deterministic_with_any_settings_and_threads(tmp_path: Path) -> None:
    """Twice, in four threads at once, and in a process whose matplotlibrc asks for other fonts and colours."""
    (tmp_path / "matplotlibrc").write_text(
        "font.size: 20\naxes.grid: False\nfigure.facecolor: red\nsvg.fonttype: path\n"
    )
    script = (
        "import sys; from pathlib import Path\n"
        "from neftcli.report.plots import plot_metric\n"
        "from tests.unit.report.points import HELD_OUT\n"
        "import matplotlib; assert matplotlib.rcParams['font.size'] == 20\n"
        "plot_metric(Path(sys.argv[1]), 'loss', 'held-out loss', 'nats a token', 'lower', HELD_OUT)\n"
        "assert matplotlib.rcParams['font.size'] == 20\n"
    )
    environment = {**os.environ, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "other")], env=environment, check=True)

    def draw(folder: str) -> list[bytes]:
        paths = plot_metric(tmp_path / folder, "loss", "held-out loss", "nats a token", "lower", HELD_OUT)
        return [path.read_bytes() for path in paths]

    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(draw, "abcd"))
    contents.append([(tmp_path / "other" / f"loss.{kind}").read_bytes() for kind in ("png", "svg")])
    assert all(content == contents[0] for content in contents)
    assert str(tmp_path).encode() not in contents[0][1]


def test_plots_do_not_import_pyplot_and_restore_settings(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from neftcli.report.plots import *\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plot_metric(Path(sys.argv[1]), 'a', 'loss', '', 'lower', [ArmPoints(0, '', 1, None, None, (1,))])\n"
        "plot_curves(Path(sys.argv[1]), 'b', 'loss', '', [Curve(0, '', 1, (1, 2), (3, 4))])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "import matplotlib; assert matplotlib.rcParams == matplotlib.rcParamsOrig\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_plots_svg_contains_all_names_as_text(tmp_path: Path) -> None:
    """Alphas, labels, unit and direction; a dollar, an angle bracket and Chinese as they are."""
    labels = ("learning_rate 1e-05", "price $5$ <b> & 数据")
    points = [arm(alpha, 2, label) for label in labels for alpha in ALPHAS]
    svg_text = texts(plot_metric(tmp_path, "loss", "held-out loss", "nats a token", "lower", points)[1])
    for text in (
        "held-out loss (nats a token)",
        "lower is better",
        "NEFTune alpha",
        *labels,
        "0",
        "5",
        "10",
        "15",
    ):
        assert f" {text} " in f" {svg_text} "
    grid = [curve(alpha, 0, label) for label in labels for alpha in ALPHAS]
    svg_text = texts(plot_curves(tmp_path, "curves", "training loss", "nats a token", grid)[1])
    for text in ("training loss (nats a token)", "step", *labels, *(f"alpha {alpha:g}" for alpha in ALPHAS)):
        assert f" {text} " in f" {svg_text} "


@pytest.mark.parametrize("better", ["lower", "higher", "none"])
def test_plot_metric_axis_names_the_better_direction(better: str) -> None:
    label = metric_figure(HELD_OUT, better=better).axes[0].get_ylabel()
    assert label == "held-out loss (nats a token)" + {"none": ""}.get(better, f"\n{better} is better")


def test_plot_metric_draws_means_intervals_and_seeds_at_their_values() -> None:
    """Means at (alpha, mean), bars from low to high, seeds next to them, and a horizontal line of alpha 0."""
    axes = metric_figure(HELD_OUT[::-1]).axes[0]
    assert drawn(axes, "mean") == list(zip(ALPHAS, MEANS, strict=True))
    for point in HELD_OUT:
        assert drawn(axes, f"interval-0-{point.alpha:g}") == [(point.alpha, point.low), (point.alpha, point.high)]
    singles = drawn(axes, "seeds")
    assert [value for _, value in singles] == [value for point in HELD_OUT for value in point.seeds]
    shifts = np.array([position for position, _ in singles]).reshape(4, 3) - np.array(ALPHAS)[:, None]
    assert np.allclose(shifts, shifts[0], atol=1e-12)  # a seed has the same distance everywhere
    assert len({round(shift, 9) for shift in shifts[0]} | {0.0}) == 4  # apart from one another and from the bar
    assert np.abs(shifts).max() < 5 / 4
    assert [value for _, value in drawn(axes, "alpha-0")] == [MEANS[0]] * 2
    assert [axis.get_text() for axis in axes.get_xticklabels()] == ["0", "5", "10", "15"]


def test_plot_metric_draws_labels_side_by_side_each_with_its_line() -> None:
    points = [arm(alpha, mean + shift, label) for label, shift in (("a", 0.0), ("b", 1.0)) for alpha, mean in
              zip(ALPHAS, MEANS, strict=True)]  # fmt: skip
    figure = metric_figure(points)
    first, second = (drawn(figure.axes[0], f"mean-{position}") for position in (0, 1))
    assert [value for _, value in second] == pytest.approx([value + 1 for _, value in first])
    for (left, _), (right, _), alpha in zip(first, second, ALPHAS, strict=True):
        assert left < alpha < right
        assert (left + right) / 2 == pytest.approx(alpha)
    assert legend(figure) == ["a", "b", "95 % interval", "single seed", "level of alpha 0"]


FINITE = st.floats(-1e9, 1e9).filter(lambda value: value == 0 or abs(value) > 1e-9)


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(FINITE, st.none() | FINITE, st.lists(FINITE | st.just(NAN) | st.none(), max_size=4)),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=25, deadline=None)
def test_plot_metric_limits_include_all_values_and_ticks_are_exact(
    arms: list[tuple[float, float | None, list[float | None]]],
) -> None:
    """Law: limits hold every finite value, there are 2 ticks or more, all different, and their text is their value."""
    points = [
        ArmPoints(
            float(alpha), "", value, None if half is None else value - abs(half), half and value + abs(half), tuple(s)
        )
        for alpha, (value, half, s) in enumerate(arms)
    ]
    axes = metric_figure(points).axes[0]
    low, high = axes.get_ylim()
    assert low < high
    values = [y for line in ("mean", "interval", "seeds", "alpha-0") for _, y in drawn(axes, line)]
    assert all(low < value < high for value in values)
    assert len(drawn(axes, "mean")) == len(arms)
    seen = ticks(axes)
    assert len({text for _, text in seen}) == len(seen) >= 2
    assert [float(text) for _, text in seen] == pytest.approx(
        [position for position, _ in seen], abs=(high - low) / 100
    )
    assert axes.yaxis.get_offset_text().get_text() == ""


@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-7])
def test_plot_metric_ticks_have_enough_digits_for_small_differences(gap: float) -> None:
    points = [ArmPoints(alpha, "", 1.9608 + gap * alpha, None, None, ()) for alpha in (0, 5, 10)]
    axes = metric_figure(points).axes[0]
    seen = ticks(axes)
    assert [float(text) for _, text in seen] == pytest.approx([position for position, _ in seen], abs=gap / 100)
    assert len(seen) >= 3
    assert axes.yaxis.get_offset_text().get_text() == ""


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 1e-12, 1e30])
def test_plot_metric_centres_equal_values(value: float) -> None:
    axes = metric_figure([ArmPoints(alpha, "", value, None, None, (value,)) for alpha in (0.0, 5.0)]).axes[0]
    low, high = axes.get_ylim()
    assert high - low >= 0.01 * abs(value)
    assert (low + high) / 2 == pytest.approx(value)
    assert legend(axes.figure) == ["one seed", "level of alpha 0"]


def test_plot_metric_leaves_a_gap_for_a_seed_that_is_not_measured() -> None:
    """The others keep their positions, and no note says that a value is not finite."""
    whole, *others = HELD_OUT
    first, _, third = whole.seeds
    gap = ArmPoints(0.0, "", 1.96, None, None, (first, None, third))
    before, after = (drawn(metric_figure([point, *others]).axes[0], "seeds") for point in (whole, gap))
    assert after == [before[0], *before[2:]]
    assert metric_figure([gap, *others]).get_supxlabel() == ""
    alone = metric_figure([ArmPoints(alpha, "", 2.0, None, None, (None, 2.0)) for alpha in (0.0, 5.0)])
    assert legend(alone) == ["one seed", "level of alpha 0"]


def test_plot_metric_leaves_out_missing_values_with_a_note() -> None:
    """They are neither drawn as 0 nor in the limits; infinite ends give no bar; the other seeds stay."""
    points = [
        HELD_OUT[0],
        ArmPoints(5, "", NAN, None, None, (1.962, NAN, 1.959)),
        ArmPoints(10, "", 1.96, -math.inf, math.inf, (1.96,)),
        ArmPoints(15, "", NAN, NAN, NAN, (NAN,) * 3),
    ]
    figure = metric_figure(points)
    axes = figure.axes[0]
    assert drawn(axes, "mean") == [(0, MEANS[0]), (10, 1.96)]
    assert [value for _, value in drawn(axes, "seeds")] == [*HELD_OUT[0].seeds, 1.962, 1.959, 1.96]
    assert {position for position, _ in drawn(axes, "interval")} == {0}
    assert axes.get_ylim()[0] > 1.9
    assert figure.get_supxlabel() == "Values that are not finite are left out: alpha 5; alpha 15."
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "5", "10", "15"]


@pytest.mark.parametrize("points", [[], [ArmPoints(0, "", NAN, None, None, (NAN,))]])
def test_plots_without_values_say_so(points: list[ArmPoints], tmp_path: Path) -> None:
    svg_text = texts(plot_metric(tmp_path, "loss", "loss", "", "lower", points)[1])
    assert "no finite value" in svg_text
    assert "no finite value" in texts(plot_curves(tmp_path, "curves", "loss", "", [])[1])


@pytest.mark.parametrize(
    ("alphas", "to_scale"),
    [
        ((5.0,), True),
        (ALPHAS, True),
        (tuple(float(alpha) for alpha in range(0, 50, 5)), True),
        ((0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0), False),
        ((0.0, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0), False),
        (tuple(alpha / 1000 for alpha in range(40)), False),
    ],
)
def test_plot_metric_names_of_alphas_never_overlap(alphas: tuple[float, ...], to_scale: bool) -> None:
    """As matplotlib lays them out; the axis says if it is not to scale, and every alpha has its name."""
    axes = metric_figure([arm(alpha, 2) for alpha in alphas]).axes[0]
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert [float(label.get_text()) for label in axes.get_xticklabels()] == list(alphas)
    assert ("not to scale" not in axes.get_xlabel()) == to_scale
    if to_scale:
        assert [position for position, _ in drawn(axes, "mean")] == list(alphas)


@pytest.mark.slow
@pytest.mark.parametrize(
    "label", ["learning_rate #", "data.source=/a/very/long/path/to/some/rows/of/mine-#.jsonl " * 2]
)
@pytest.mark.parametrize("count", [1, 2, 12])
def test_plot_metric_legend_is_inside_the_figure_and_above_the_axes(label: str, count: int) -> None:
    points = [
        arm(alpha, 2 + position, label.replace("#", str(position))) for position in range(count) for alpha in ALPHAS
    ]
    figure = metric_figure(points)
    box, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= box.x0
    assert box.x1 <= page.x1
    assert box.y1 <= page.y1
    assert box.y0 >= figure.axes[0].get_window_extent().y1
    assert figure.axes[0].get_window_extent().height / figure.dpi * 25.4 > 40  # mm of the plot
    assert {text.get_fontsize() for text in figure.legends[0].get_texts()} == {8.0 if count < 4 else 7.0}


def lightness(colour: str) -> float:
    """L* of CIELAB (CIE 15) of an sRGB colour (IEC 61966-2-1)."""
    parts = [int(colour[position : position + 2], 16) / 255 for position in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance


def test_colours_differ_in_grey_and_are_visible_on_white() -> None:
    """The first four by 10 of L* and more, neighbours by 6 and more; none too light on white."""
    greys = [lightness(colour) for colour in plots.COLOURS]
    assert min(abs(first - second) for first, second in combinations(greys[:4], 2)) > 10
    assert min(abs(first - second) for first, second in pairwise(greys)) > 6
    assert max(greys) < 75


@pytest.mark.parametrize("kind", ["metric", "curves"])
def test_plots_do_not_depend_on_colour_alone(kind: str) -> None:
    """Ten arms differ in marker or dash pattern, and the legend shows the same style as the line."""
    alphas = [float(alpha) for alpha in range(10)]
    if kind == "metric":
        figure = metric_figure(
            [arm(alpha, 2 + position, f"label {position}") for position in range(10) for alpha in ALPHAS]
        )
    else:
        figure = curves_figure([curve(alpha, 0) for alpha in alphas])
    means = [line for line in figure.axes[0].lines if str(line.get_gid()).startswith("mean")]
    entries = figure.legends[0].get_lines()[:10]

    def style(line: Any) -> tuple[Any, ...]:
        # The pattern in units of the line's width, as curves are drawn thicker than their legend.
        offset, dashes = line._unscaled_dash_pattern
        return line.get_marker(), offset, dashes and tuple(dashes)

    assert len({style(line) for line in means}) == 10
    assert [style(line) for line in entries] == [style(line) for line in means]
    assert [line.get_color() for line in entries] == [line.get_color() for line in means]


def test_plot_curves_draws_seeds_thin_and_their_mean_thick() -> None:
    axes = curves_figure(CURVES).axes[0]
    thin = [line for line in axes.lines if str(line.get_gid()) == "seed-1"]
    (thick,) = (line for line in axes.lines if str(line.get_gid()) == "mean-1")
    assert [list(line.get_ydata()) for line in thin] == [list(curve.values) for curve in CURVES[3:6]]
    assert list(thick.get_xdata()) == list(range(1, 55))
    assert np.allclose(thick.get_ydata(), np.mean([curve.values for curve in CURVES[3:6]], axis=0), rtol=1e-12)
    assert thick.get_linewidth() > 2 * thin[0].get_linewidth()
    assert thick.get_color() == thin[0].get_color() == plots.COLOURS[1]
    assert len(set(thick.get_markevery())) == 2


def test_plot_curves_mean_needs_a_finite_value_of_all_seeds() -> None:
    """A seed that stopped, one with other steps, one with NaN: the mean has no value at those steps."""
    curves = [
        Curve(5, "", 0, (1, 2, 3, 4, 5), (1.0, 1.0, 1.0, 1.0, 1.0)),
        Curve(5, "", 1, (1, 2, 3), (3.0, NAN, 3.0)),
        Curve(5, "", 2, (1, 3, 5), (5.0, 5.0, math.inf)),
    ]
    figure = curves_figure(curves)
    assert drawn(figure.axes[0], "mean") == [(1, 3.0), (3, 3.0)]
    assert len(drawn(figure.axes[0], "seed")) == 5 + 2 + 2
    assert figure.get_supxlabel() == "Values that are not finite are left out: 2 of 11."


def test_plot_curves_draws_a_single_seed_and_step() -> None:
    figure = curves_figure([Curve(5, "", 1, (54,), (1.96,))])
    axes = figure.axes[0]
    assert drawn(axes, "mean") == [(54, 1.96)]
    assert axes.lines[0].get_marker() == "o"
    assert drawn(axes, "seed") == []
    assert legend(figure) == ["alpha 5"]


def test_plot_curves_has_a_panel_per_label_on_one_scale() -> None:
    labels = [f"learning_rate {position}" for position in range(5)]
    cells = [(alpha, seed, label) for label in labels for alpha in (0.0, 5.0) for seed in (0, 1)]
    figure = curves_figure([curve(*cell, last_step=20 + position) for position, cell in enumerate(cells)])
    assert [axes.get_title() for axes in figure.axes] == labels
    assert len({axes.get_ylim() for axes in figure.axes}) == len({axes.get_xlim() for axes in figure.axes}) == 1
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "step", "step", "step"]
    assert legend(figure) == ["alpha 0", "alpha 5"]


def test_plot_curves_enlarges_a_flat_second_half() -> None:
    """If the first steps take most of the range, a second panel shows the rest on its own scale."""
    steps = (0, 14, 27, 41, 54)
    curves = [
        Curve(alpha, "", 0, steps, (2.3, 2.1, 1.97 + alpha / 1000, 1.965, 1.96 + alpha / 1000)) for alpha in (0.0, 5.0)
    ]
    whole, late = curves_figure(curves).axes
    assert (whole.get_title(), late.get_title()) == ("all steps", "second half, enlarged")
    assert drawn(whole, "mean") == [point for curve in curves for point in zip(steps, curve.values, strict=True)]
    assert drawn(late, "mean") == [
        point for curve in curves for point in list(zip(steps, curve.values, strict=True))[2:]
    ]
    assert late.get_ylim()[1] < 2 < whole.get_ylim()[1]
    assert len(curves_figure(CURVES).axes) == 1
