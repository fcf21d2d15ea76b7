"""The test by random signs against all signs, and Holm's correction by hand."""

from itertools import product
from math import erfc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate import significance
from pipeline.evaluate.significance import holm, sign_flip


@settings(max_examples=25)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_p_is_the_share_of_all_signs(differences: list[int]) -> None:
    values, counts = np.unique(np.array(differences) / 7, return_counts=True)
    found = sign_flip(values, counts, samples=20_000, seed=1)
    observed = abs(sum(differences))
    signs = np.array(list(product((-1, 1), repeat=len(differences))))
    exact = (np.abs(signs @ np.array(differences)) >= observed).mean()
    assert found == pytest.approx(exact, abs=4.5 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_p_is_that_of_a_t_test_where_users_are_many() -> None:
    rng = np.random.default_rng(3)
    differences = rng.normal(0.0, 1, 2000) + 0.005
    t = differences.mean() / differences.std(ddof=1) * np.sqrt(2000)
    found = sign_flip(differences, np.ones(2000, np.int64), samples=20_000, seed=0)
    # Twice the normal tail beyond t.
    assert found == pytest.approx(erfc(abs(t) / np.sqrt(2)), abs=0.01)
    assert 0.001 < found < 0.5


def test_users_count_as_often_as_they_are() -> None:
    assert sign_flip(np.array([1.0]), np.array([5]), 50_000, 0) == pytest.approx(2 / 32, abs=0.005)
    assert sign_flip(np.array([0.0]), np.array([5]), 1000, 0) == 1


def test_the_seed_decides_and_blocks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values, counts = np.array([-0.5, 0.25, 1.0]), np.array([10, 20, 3])
    first = sign_flip(values, counts, 5000, 1)
    assert first == sign_flip(values, counts, 5000, 1)
    assert first != sign_flip(values, counts, 5000, 2)
    monkeypatch.setattr(significance, "_DRAWS", 40)
    assert first == sign_flip(values, counts, 5000, 1)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
