"""Metrics against ir-measures, which mostly asks trec_eval: code by others, of another origin."""

import ir_measures
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, Qrel, R, ScoredDoc, Success, nDCG

from pipeline.evaluate import DenseScores, rank_targets, user_metrics
from tests.evaluate.support import packed

KS = (1, 2, 5, 10)
NAMES = {
    f"{name}@{k}": measure @ k
    for name, measure in (("ndcg", nDCG), ("recall", R), ("hr", Success), ("mrr", RR))
    for k in KS
} | {"mrr": RR}


@st.composite
def asked(draw: st.DrawFn) -> list[tuple[list[int], set[int]]]:
    """Users' scores of items 1..V, small integers, and their targets."""
    catalogue = draw(st.integers(1, 30))
    most = draw(st.sampled_from([2, 1000]))
    users = draw(st.integers(1, 4))
    return [
        (
            draw(st.lists(st.integers(0, most), min_size=catalogue, max_size=catalogue)),
            draw(st.sets(st.integers(1, catalogue), min_size=1)),
        )
        for _ in range(users)
    ]


def ours(users: list[tuple[list[int], set[int]]]) -> dict[str, np.ndarray]:
    scores = DenseScores(torch.tensor([[0.0, *map(float, row)] for row, _ in users]))
    targets, offsets = packed([sorted(wanted) for _, wanted in users])
    ranks = rank_targets(scores, targets, offsets)
    return user_metrics(ranks, offsets.numpy(), KS, "against")


def theirs(
    users: list[tuple[list[int], set[int]]], scores: list[dict[int, float]], measure: object
) -> list[float]:
    """Targets are named to come last among equal scores.

    trec_eval orders these by name, descending; ir-measures' own code for RR@k ascending.
    """
    last = "c" if str(measure).startswith("RR@") else "a"

    def name(user: int, item: int) -> str:
        return f"{last if item in users[user][1] else 'b'}{item:03d}"

    judged = [Qrel(str(u), name(u, i), 1) for u, (_, wanted) in enumerate(users) for i in wanted]
    run = [ScoredDoc(str(u), name(u, i), s) for u, row in enumerate(scores) for i, s in row.items()]
    found = {m.query_id: m.value for m in ir_measures.iter_calc([measure], judged, run)}
    return [found[str(u)] for u in range(len(users))]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(users=asked())
def test_metrics_are_theirs(name: str, users: list[tuple[list[int], set[int]]]) -> None:
    tied = [dict(enumerate(map(float, row), 1)) for row, _ in users]
    assert theirs(users, tied, NAMES[name]) == pytest.approx(ours(users)[name], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(users=asked())
def test_without_ties_too(name: str, users: list[tuple[list[int], set[int]]]) -> None:
    """A score of its own for every item, so that no order of equals comes into it."""
    places = [np.lexsort((np.arange(len(row)), row)).argsort() for row, _ in users]
    apart = [(place.tolist(), wanted) for place, (_, wanted) in zip(places, users, strict=True)]
    untied = [dict(enumerate(map(float, row), 1)) for row, _ in apart]
    assert theirs(apart, untied, NAMES[name]) == pytest.approx(ours(apart)[name], abs=1e-12)
