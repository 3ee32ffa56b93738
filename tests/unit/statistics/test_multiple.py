"""Several comparisons corrected together, and the words for one.

Oracles: tables of Holm's and Tarone's corrections worked by hand; Holm's steps as he describes them; every m tried for
Tarone's; laws (bounds, order, tests that can't be significant add nothing).
"""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.statistics.multiple import holm_adjust, name_direction, name_verdict
from neftcli.statistics.paired import LEVEL


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.02, 0.5], [1.0, 0.06, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_adjust_is_holms_table_by_hand(p_values: list[float], adjusted: list[float]) -> None:
    assert holm_adjust(p_values) == pytest.approx(adjusted)


probabilities = st.lists(st.floats(0, 1), max_size=8)


@settings(deadline=None)
@given(probabilities.flatmap(lambda p: st.tuples(st.just(p), st.permutations(range(len(p))))))
def test_adjust_keeps_its_laws(both: tuple[list[float], list[int]]) -> None:
    """Between p and min(1, m p), in the order of p, and each place keeps its own whatever the order given."""
    p_values, order = both
    adjusted = holm_adjust(p_values)
    for p, corrected in zip(p_values, adjusted, strict=True):
        assert p <= corrected <= min(1.0, len(p_values) * p)
    for (p, corrected), (other, other_corrected) in itertools.product(zip(p_values, adjusted, strict=True), repeat=2):
        assert p > other or corrected <= other_corrected
    assert holm_adjust([p_values[index] for index in order]) == [adjusted[index] for index in order]


@settings(deadline=None)
@given(probabilities.filter(len), st.floats(0.001, 0.5))
def test_adjust_rejects_as_holms_steps_do(p_values: list[float], level: float) -> None:
    """Smallest first, each p against level / tests left, until one fails: the procedure as Holm describes it."""
    left, rejected = sorted(p_values), 0
    while left and left[0] * len(left) < level:
        rejected += 1
        left.pop(0)
    assert sum(adjusted < level for adjusted in holm_adjust(p_values)) == rejected


@pytest.mark.parametrize(
    ("p", "difference", "words"),
    [
        (0.049, 1.0, {"lower": "worse", "higher": "better", "none": "higher"}),
        (0.049, -1.0, {"lower": "better", "higher": "worse", "none": "lower"}),
        (0.05, -1.0, dict.fromkeys(("lower", "higher", "none"), "not_significant")),
        (1.0, 0.0, dict.fromkeys(("lower", "higher", "none"), "not_significant")),
        (None, 1.0, dict.fromkeys(("lower", "higher", "none"), "not_tested")),
    ],
)
def test_verdict_names_direction_or_value(p: float | None, difference: float, words: dict[str, str]) -> None:
    assert {better: name_verdict(p, difference, better) for better in words} == words  # type: ignore[arg-type]
    assert name_direction(p, difference) == words["none"]


# Tarone


@pytest.mark.parametrize(
    ("p_values", "smallest", "adjusted"),
    [
        # Two of three can't be below 0.05: the third is alone.
        ([0.03, 0.5, 0.25], [0.0, 0.5, 0.25], [0.03, 1.0, 1.0]),
        # With m = 2, 0.03 is not below 0.05 / 2, so one test is left and m = 1 would allow two: m = 2.
        ([0.02, 0.03], [0.001, 0.03], [0.02 * 1, 1.0]),
        # Both can be below 0.05 / 2: both count.
        ([0.02, 0.04], [0.001, 0.02], [0.04, 0.04]),
        # 0.02 and 0.03 don't reach 0.05 / 3; at m = 3 one counts, at m = 2 two, which is the smallest m that suffices.
        ([0.004, 0.02, 0.5], [0.001, 0.02, 0.03], [0.008, 0.02, 1.0]),
        ([0.5, 0.25], [0.5, 0.25], [1.0, 1.0]),
    ],
)
def test_adjust_is_tarones_table_by_hand(p_values: list[float], smallest: list[float], adjusted: list[float]) -> None:
    assert holm_adjust(p_values, smallest) == pytest.approx(adjusted)


tests = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda both: (max(both), min(both) ** 3)), min_size=1, max_size=8
)
"""p-values, and the smallest that each could be."""


@settings(deadline=None)
@given(tests)
def test_adjust_counts_the_fewest_tests_that_tarone_allows(family: list[tuple[float, float]]) -> None:
    """Those below 0.05 / m, for the first m (tried one by one) that at most m tests can reach; Holm among them."""
    p_values, smallest = map(list, zip(*family, strict=True))
    m = 1
    while sum(least < LEVEL / m for least in smallest) > m:
        m += 1
    counted = [place for place, least in enumerate(smallest) if least < LEVEL / m]
    found = holm_adjust(p_values, smallest)
    alone = holm_adjust([p_values[place] for place in counted])
    assert [found[place] for place in counted] == alone
    assert all(found[place] == 1.0 for place in range(len(family)) if place not in counted)


@settings(deadline=None)
@given(tests, st.floats(0.05, 1.0))
def test_adjust_ignores_a_test_that_can_not_be_significant(family: list[tuple[float, float]], least: float) -> None:
    p_values, smallest = map(list, zip(*family, strict=True))
    assert holm_adjust([*p_values, 1.0], [*smallest, least])[:-1] == holm_adjust(p_values, smallest)
