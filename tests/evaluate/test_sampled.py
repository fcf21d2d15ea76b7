"""Sampled candidates: who is drawn, the ranks among them, and that a result says so."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import LonghaulError
from pipeline.evaluate import ModelScorer, Protocol, evaluate
from pipeline.evaluate.of_run import name_of
from pipeline.evaluate.sampled import _arrow, draw
from pipeline.prepare.keys import hash_keys
from tests.evaluate.support import (
    DecayModel,
    WindowScorer,
    oracle_metrics,
    question,
    random_users,
    write_dataset,
)

CATALOGUE = 25


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 5),
    st.integers(1, 30),
    st.integers(1, 40),
    st.sets(st.integers(0, 40)),
)
def test_what_is_drawn(key: int, seed: int, number: int, size: int, barred: set[int]) -> None:
    out = {item for item in barred if 0 < item <= size}
    found = draw(np.uint64(key), seed, number, size, np.array(sorted(out), np.int64))
    if size - len(out) < number:
        assert found is None
        return
    assert found is not None
    assert len(set(found.tolist())) == len(found) == number
    assert found.min() >= 1
    assert found.max() <= size
    assert not set(found.tolist()) & out
    again = draw(np.uint64(key), seed, number, size, np.array(sorted(out), np.int64))
    assert again is not None
    assert again.tolist() == found.tolist()


def test_draws_are_uniform_and_differ_by_user_and_seed() -> None:
    none = np.empty(0, np.int64)
    draws = [draw(np.uint64(user), 0, 5, 20, none) for user in range(4000)]
    counts = Counter(item for one in draws if one is not None for item in one.tolist())
    # 4,000 users have each of 20 items with probability 1/4: 1,000 on average, deviation 27.
    assert set(counts) == set(range(1, 21))
    assert 880 < min(counts.values()) <= max(counts.values()) < 1120
    assert len({tuple(one.tolist()) for one in draws if one is not None}) > 3900
    other = draw(np.uint64(7), 1, 5, 20, none)
    assert other is not None
    assert draws[7] is not None
    assert other.tolist() != draws[7].tolist()


def test_more_barred_leaves_the_others_in_place() -> None:
    every = draw(np.uint64(3), 0, 10, 1000, np.empty(0, np.int64))
    assert every is not None
    fewer = draw(np.uint64(3), 0, 9, 1000, every[4:5])
    assert fewer is not None
    assert fewer.tolist() == [*every[:4].tolist(), *every[5:].tolist()]


@pytest.mark.parametrize("seen", ["none", "window", "history"])
@pytest.mark.parametrize("targets", ["next", "all_in_window"])
def test_ranks_among_the_candidates(tmp_path: Path, seen: str, targets: str) -> None:
    users = random_users(60, CATALOGUE, seed=3, longest=12)
    dataset = write_dataset(tmp_path, users, CATALOGUE)
    protocol = Protocol(
        candidates=6, candidates_seed=4, seen=seen, targets=targets, max_history=5, ks=(1, 3, 5)
    )
    scorer = WindowScorer(CATALOGUE)
    result = evaluate(dataset, scorer, protocol)
    rows = []
    for user in users:
        asked = question(user, protocol)
        if asked is None:
            continue
        window, wanted, out = asked
        (key,) = hash_keys(_arrow(np.array([user.key])))
        drawn = draw(key, 4, 6, CATALOGUE, np.array([*out, *wanted]))
        assert drawn is not None
        others = set(range(1, CATALOGUE + 1)) - set(drawn.tolist())
        rows.append(oracle_metrics(scorer.of(window).numpy(), wanted, others, protocol.ks))
    assert result.users == len(rows)
    for name in ("hr@1", "ndcg@3", "recall@5", "mrr"):
        assert result.metrics[name] == pytest.approx(np.mean([row[name] for row in rows]))


def test_with_all_others_drawn_it_is_the_full_ranking(tmp_path: Path) -> None:
    """The scores are the same numbers, so the ranks are the same too, over tiles of items."""
    catalogue = 9000
    users = random_users(40, catalogue, seed=5)
    for user in users:
        user.items[-1] = user.items[0] % 50 + 1
    dataset = write_dataset(tmp_path, users, catalogue)
    model = DecayModel(catalogue)
    full, sampled = (
        evaluate(dataset, ModelScorer(model), Protocol(seen="none", candidates=candidates))
        for candidates in ("all", catalogue - 1)
    )
    assert sampled.metrics == full.metrics
    assert sampled.half_widths == full.half_widths


def test_too_few_are_left(tmp_path: Path) -> None:
    users = random_users(20, CATALOGUE, seed=3)
    dataset = write_dataset(tmp_path, users, CATALOGUE)
    with pytest.raises(LonghaulError, match=r"24 candidates cannot be drawn for user 10\d\d"):
        evaluate(dataset, WindowScorer(CATALOGUE), Protocol(candidates=24))


def test_a_model_that_has_diverged_is_told(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, random_users(20, CATALOGUE, seed=3), CATALOGUE)
    model = DecayModel(CATALOGUE)
    assert model.bias is not None
    model.bias[7] = float("inf")
    with pytest.raises(LonghaulError, match=r"the score of item 7 for user 10\d\d is inf"):
        evaluate(dataset, ModelScorer(model), Protocol(candidates=10, seen="none"))


def test_a_result_says_so(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, random_users(20, CATALOGUE, seed=3), CATALOGUE)
    protocol = Protocol(candidates=5, seen="none")
    result = evaluate(dataset, WindowScorer(CATALOGUE), protocol)
    assert result.ranking == "ranked among 5 sampled items (seed 0)"
    assert name_of("lrurec", 7, protocol, "data").startswith("test-sampled-5-lrurec-step-00000007-")
    assert evaluate(dataset, WindowScorer(CATALOGUE), Protocol()).ranking == "full ranking"


@pytest.mark.parametrize("wrong", [0, -1, True, 2.5, "many", None])
def test_candidates_that_make_no_sense(wrong: object) -> None:
    with pytest.raises(ValidationError, match="all or a number of items"):
        Protocol.model_validate({"candidates": wrong})
    with pytest.raises(ValidationError, match="lists needs candidates all"):
        Protocol(candidates=5, lists=True)
