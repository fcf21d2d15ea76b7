"""Sums, means and intervals against numpy and against exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate import Sums
from pipeline.evaluate.intervals import Z

VALUES = st.lists(st.floats(0, 63.9, allow_subnormal=False), min_size=2, max_size=40)


def sums_of(values: list[float], groups: np.ndarray | None = None) -> Sums:
    ones = np.ones(len(values), np.int64)
    if groups is None:
        groups = np.ones((len(values), 1), bool)
    return Sums.of({"m": np.array(values)}, 2 * ones, ones, groups)


@given(VALUES)
def test_sums_and_squares_are_exact(values: list[float]) -> None:
    units = [round(Fraction(value) * 2**52) for value in values]
    found = sums_of(values)
    assert found.first[0, 0] == sum(units)
    assert found.second[0, 0] == sum(unit**2 for unit in units)


@given(VALUES)
def test_half_widths_are_those_of_the_mean(values: list[float]) -> None:
    width = sums_of(values).half_widths(0)["m"]
    expected = 1.959964 * np.std(values, ddof=1) / np.sqrt(len(values))
    assert width == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_a_small_spread_far_from_zero_is_not_lost() -> None:
    values = [50.0, 50.0 + 2**-40] * 500
    assert sums_of(values).half_widths(0)["m"] == pytest.approx(
        Z * 2**-41 * np.sqrt(1000 / 999) / np.sqrt(1000), rel=1e-12
    )


def test_one_user_has_no_interval() -> None:
    assert sums_of([0.5]).half_widths(0) == {}


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 5)), min_size=2, max_size=30))
def test_the_interval_of_the_mean_rank_is_that_of_a_ratio(rows: list[tuple[int, int]]) -> None:
    places, targets = (np.array(column) for column in zip(*rows, strict=True))
    places = places * targets  # each of a user's targets at this place, in half places
    found = Sums.of({}, places, targets, np.ones((len(rows), 1), bool))
    mean = places.sum() / targets.sum() / 2
    assert found.means(0)["mean_rank"] == pytest.approx(mean)
    residual = places / 2 - mean * targets
    n = len(rows)
    variance = (residual**2).sum() / (n - 1) / n / np.mean(targets) ** 2
    assert found.half_widths(0)["mean_rank"] == pytest.approx(1.959964 * np.sqrt(variance), 1e-5)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        values = rng.random(200) < 0.3
        sums = sums_of(values.astype(float).tolist())
        covered += abs(sums.means(0)["m"] - 0.3) <= sums.half_widths(0)["m"]
    assert 925 <= covered <= 970


def test_groups_are_summed_apart() -> None:
    rng = np.random.default_rng(1)
    values, groups = rng.random(50), rng.random((50, 4)) < 0.5
    together = sums_of(values.tolist(), groups)
    for group in range(4):
        alone = sums_of(values[groups[:, group]].tolist())
        assert together.rows[group] == groups[:, group].sum()
        assert together.means(group) == alone.means(0)
        assert together.half_widths(group) == alone.half_widths(0)
