"""Popularity of items, of lists and of groups, counted literally from the raw histories."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluate import Catalogue, Protocol, evaluate, popularity
from pipeline.evaluate.catalogue import BANDS, list_metrics
from pipeline.evaluate.groups import groups_of_users
from tests.evaluate.support import (
    User,
    WindowScorer,
    oracle_metrics,
    parts,
    question,
    random_users,
    write_dataset,
)

CATALOGUE = 25
COUNTS = np.array([0, 50, 20, 10, 10, 5, 4, 1, 0, 0])  # 100 events in all


def test_bands_by_the_share_of_events_above() -> None:
    bands = [BANDS[band] for band in Catalogue(COUNTS).band(np.arange(1, 10))]
    assert bands == ["head", "mid", "mid", "mid", "tail", "tail", "tail", "unseen", "unseen"]


def test_percentiles_are_half_on_average() -> None:
    found = Catalogue(COUNTS).percentile(np.arange(1, 10))
    assert found.tolist() == pytest.approx(np.array([8.5, 7.5, 6, 6, 4.5, 3.5, 2.5, 1, 1]) / 9)
    assert found.mean() == pytest.approx(0.5)


def test_information_is_in_bits_with_one_event_added() -> None:
    found = Catalogue(COUNTS).information(np.arange(1, 10))
    shares = (COUNTS[1:] + 1) / 109
    assert shares.sum() == pytest.approx(1)
    assert found.tolist() == pytest.approx(-np.log2(shares))


def test_lists_of_different_lengths() -> None:
    catalogue = Catalogue(COUNTS)
    lists = np.array([[1, 8, 3], [2, 0, 0], [0, 0, 0]])
    found = list_metrics(lists, catalogue, (1, 3))
    percentile, information = (
        of(np.arange(10)) for of in (catalogue.percentile, catalogue.information)
    )
    assert found["popularity@1"].tolist() == [percentile[1], percentile[2], 0]
    assert found["novelty@3"].tolist() == pytest.approx(
        [(information[1] + information[8] + information[3]) / 3, information[2], 0]
    )


@pytest.mark.parametrize(
    ("events", "group"), [(0, 0), (1, 1), (4, 1), (5, 2), (9, 2), (999, 8), (1000, 9), (10**6, 9)]
)
def test_histories_are_grouped_by_length(events: int, group: int) -> None:
    marks = groups_of_users(np.array([events]))[0]
    assert np.flatnonzero(marks).tolist() == [0, group + 1]  # everybody first


@pytest.mark.parametrize("targets", ["next", "all_in_window"])
def test_groups_are_the_means_of_those_in_them(tmp_path: Path, targets: str) -> None:
    users = random_users(150, CATALOGUE, seed=8)
    for user in users[::5]:
        user.split = (0, 0, 0, min(2, len(user.items) - 1))  # cold, with some history
    dataset = write_dataset(tmp_path, users, CATALOGUE)
    protocol = Protocol(targets=targets, seen="none", ks=(1, 5), lists=True)
    scorer = WindowScorer(CATALOGUE)
    catalogue = Catalogue(popularity(dataset).counts)
    result = evaluate(dataset, scorer, protocol, catalogue=catalogue)

    counts = Counter(item for user in users for item in user.items[: user.split[0]])
    bounds = (0, 1, 5, 10, 20, 50)
    by_history: dict[str, list[dict[str, float]]] = {}
    by_popularity: dict[str, list[dict[str, float]]] = {}
    by_start: dict[str, list[dict[str, float]]] = {}
    for user in users:
        asked = question(user, protocol)
        if asked is None:
            continue
        window, wanted, seen = asked
        scores = scorer.of(window).numpy()
        length = len(parts(user, protocol)[0])
        name = next(
            str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(bounds) if a <= length < b
        )
        row = oracle_metrics(scores, wanted, seen, protocol.ks)
        by_history.setdefault(name, []).append(row)
        for target in wanted:
            alone = oracle_metrics(scores, [target], set(), protocol.ks)
            above = sum(c for c in counts.values() if c > counts[target]) / counts.total()
            band = "head" if above < 0.5 else "mid" if above < 0.8 else "tail"
            by_popularity.setdefault(band if counts[target] else "unseen", []).append(alone)
            warm = "warm" if user.split[0] else "cold", "warm" if counts[target] else "cold"
            by_start.setdefault(f"{warm[0]} user, {warm[1]} item", []).append(alone)
    for kind, rows in (
        ("history", by_history),
        ("popularity", by_popularity),
        ("start", by_start),
    ):
        assert result.groups[kind].keys() == rows.keys()
        for name, metrics in rows.items():
            found = result.groups[kind][name]
            assert (found.users if kind == "history" else found.targets) == len(metrics)
            for metric in ("hr@1", "ndcg@5", "mrr"):
                mean = np.mean([row[metric] for row in metrics])
                assert found.metrics[metric] == pytest.approx(mean), (kind, name, metric)
    assert len(result.groups["history"]) > 3
    assert {"cold user, warm item", "warm user, warm item"} <= result.groups["start"].keys()
    assert "novelty@5" in result.groups["history"]["5-9"].metrics
    assert "novelty@5" not in result.groups["popularity"]["head"].metrics


def test_what_training_never_saw_is_unseen(tmp_path: Path) -> None:
    users = [
        User(key=1, items=[1, 1, 2, 3], split=(3, 3, 3, 3)),
        User(key=2, items=[2, 1], split=(0, 0, 1, 1)),
    ]
    dataset = write_dataset(tmp_path, users, 3)
    catalogue = Catalogue(popularity(dataset).counts)
    result = evaluate(dataset, WindowScorer(3), Protocol(ks=(1,)), catalogue=catalogue)
    assert {name: group.targets for name, group in result.groups["popularity"].items()} == {
        "head": 1,
        "unseen": 1,
    }
    assert set(result.groups["start"]) == {"warm user, cold item", "cold user, warm item"}


def test_lists_are_those_of_top_k(tmp_path: Path) -> None:
    users = random_users(40, CATALOGUE, seed=4)
    dataset = write_dataset(tmp_path, users, CATALOGUE)
    scorer = WindowScorer(CATALOGUE)
    protocol = Protocol(lists=True, seen="window", ks=(3,))
    result = evaluate(dataset, scorer, protocol)
    counts = np.zeros(CATALOGUE + 1, np.int64)
    for user in users:
        np.add.at(counts, user.items[: user.split[0]], 1)
    bits = -np.log2((counts + 1) / (counts.sum() + CATALOGUE))
    found = []
    for window, _, seen in (q for q in (question(user, protocol) for user in users) if q):
        scores = scorer.of(window).numpy()
        candidates = [i for i in range(1, CATALOGUE + 1) if i not in seen]
        best = sorted(candidates, key=lambda i: (-scores[i], i))[:3]
        found.append(np.mean(bits[best]))
    assert result.metrics["novelty@3"] == pytest.approx(np.mean(found))
    assert 0 < result.half_widths["novelty@3"] < 1
    assert "coverage@3" not in result.half_widths
