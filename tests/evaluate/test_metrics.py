"""Metrics against numbers worked out by hand and against lists in every order of their ties."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate import Ranks, Sums, half_places, user_metrics
from tests.evaluate.support import list_metrics

KS = (1, 2, 3, 5)


def untied(positions: list[int]) -> Ranks:
    higher = np.array(positions) - 1
    return Ranks(higher, np.zeros_like(higher))


def each(users: int) -> np.ndarray:
    return np.arange(users + 1)


@pytest.mark.parametrize("ties", ["against", "random"])
def test_a_target_at_rank_k_counts_at_k(ties: str) -> None:
    metrics = user_metrics(untied([10, 11, 1, 9]), each(4), [10], ties)
    assert metrics["hr@10"].tolist() == [1, 0, 1, 1]
    assert metrics["recall@10"].tolist() == [1, 0, 1, 1]
    assert metrics["ndcg@10"].tolist() == pytest.approx([1 / np.log2(11), 0, 1, 1 / np.log2(10)])
    assert metrics["mrr@10"].tolist() == pytest.approx([0.1, 0, 1, 1 / 9])


def test_without_a_limit_every_rank_counts() -> None:
    metrics = user_metrics(untied([10, 11, 1]), each(3), [5], "against")
    assert metrics["mrr"].tolist() == pytest.approx([1 / 10, 1 / 11, 1])


def test_several_targets_by_hand() -> None:
    # Positions 2, 3 and 7 of one list: the other targets count among the items above.
    metrics = user_metrics(untied([7, 2, 3]), np.array([0, 3]), [1, 2, 5, 10], "against")
    three = 1 + 1 / np.log2(3) + 1 / 2
    assert [metrics[f"hr@{k}"][0] for k in (1, 2, 5, 10)] == [0, 1, 1, 1]
    assert [metrics[f"recall@{k}"][0] for k in (1, 2, 5, 10)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert metrics["ndcg@2"][0] == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))
    assert metrics["ndcg@5"][0] == pytest.approx((1 / np.log2(3) + 1 / 2) / three)
    assert metrics["ndcg@10"][0] == pytest.approx((1 / np.log2(3) + 1 / 2 + 1 / 3) / three)
    assert metrics["mrr"][0] == metrics["mrr@5"][0] == 1 / 2


def test_recall_is_over_all_targets_and_ndcg_over_what_fits() -> None:
    metrics = user_metrics(untied([1, 2, 3]), np.array([0, 3]), [2], "against")
    assert metrics["recall@2"][0] == pytest.approx(2 / 3)
    assert metrics["ndcg@2"][0] == 1


@st.composite
def tied_lists(draw: st.DrawFn) -> list[tuple[int, bool]]:
    """One user's candidates as (score, is a target), few enough to try every order."""
    scores = draw(st.lists(st.integers(0, 3), min_size=1, max_size=7))
    flags = draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    flags[0] = True
    return list(zip(scores, flags, strict=True))


def ranks_of(candidates: list[tuple[int, bool]]) -> Ranks:
    targets = [score for score, is_target in candidates if is_target]
    everyone = np.array([score for score, _ in candidates])
    return Ranks(
        np.array([(everyone > score).sum() for score in targets]),
        np.array([(everyone == score).sum() - 1 for score in targets]),
    )


@settings(max_examples=60, deadline=None)
@given(lists=st.lists(tied_lists(), min_size=1, max_size=3))
def test_ties_against_the_targets(lists: list[list[tuple[int, bool]]]) -> None:
    found = measure(lists, "against")
    for user, candidates in enumerate(lists):
        worst = sorted(candidates, key=lambda c: (-c[0], c[1]))
        expected = list_metrics([is_target for _, is_target in worst], KS)
        del expected["mean_rank"]
        assert {name: values[user] for name, values in found.items()} == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(lists=st.lists(tied_lists(), min_size=1, max_size=2))
def test_ties_in_random_order(lists: list[list[tuple[int, bool]]]) -> None:
    found = measure(lists, "random")
    for user, candidates in enumerate(lists):
        levels = sorted({score for score, _ in candidates}, reverse=True)
        groups = [[t for score, t in candidates if score == level] for level in levels]
        orders = [
            list_metrics([t for group in order for t in group], KS)
            for order in product(*(permutations(group) for group in groups))
        ]
        for name, values in found.items():
            mean = np.mean([order[name] for order in orders])
            assert values[user] == pytest.approx(mean, abs=1e-12), name


def measure(lists: list[list[tuple[int, bool]]], ties: str) -> dict[str, np.ndarray]:
    ranks = [ranks_of(candidates) for candidates in lists]
    offsets = np.concatenate([[0], np.cumsum([len(r.higher) for r in ranks])])
    together = Ranks(
        np.concatenate([r.higher for r in ranks]), np.concatenate([r.ties for r in ranks])
    )
    return user_metrics(together, offsets, KS, ties)


def sums_of(ranks: Ranks, offsets: np.ndarray, ties: str = "against") -> Sums:
    everybody = np.ones((len(offsets) - 1, 1), bool)
    values = user_metrics(ranks, offsets, KS, ties)
    return Sums.of(values, half_places(ranks, offsets, ties), np.diff(offsets), everybody)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_sums_are_the_same_in_any_grouping(positions: list[int], random) -> None:
    whole = sums_of(untied(positions), each(len(positions)))
    random.shuffle(positions)
    summed = sums_of(untied([]), each(0))
    while positions:
        size = random.randint(1, len(positions))
        part, positions = positions[:size], positions[size:]
        summed = sums_of(untied(part), each(size)) + summed
    assert summed.first.tolist() == whole.first.tolist()
    assert summed.second.tolist() == whole.second.tolist()
    assert summed.means(0) == whole.means(0)
    assert summed.half_widths(0) == whole.half_widths(0)


def test_means_are_over_users_and_the_mean_rank_over_targets() -> None:
    sums = sums_of(untied([1, 4, 2]), np.array([0, 2, 3]))
    means = sums.means(0)
    assert (sums.rows.tolist(), sums.targets(0)) == ([2], 3)
    assert means["recall@1"] == (1 / 2 + 0) / 2
    assert means["hr@2"] == 1
    assert means["mrr"] == (1 + 1 / 2) / 2
    assert means["mean_rank"] == 7 / 3
    tied = Ranks(np.array([3]), np.array([2]))
    assert sums_of(tied, each(1)).means(0)["mean_rank"] == 6
    assert sums_of(tied, each(1), "random").means(0)["mean_rank"] == 5
