"""The synthetic log: exact sizes, fixed bytes, and a truth that is the process that was run."""

import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.prepare.synth import EVENTS, TRUTH, SynthOptions, Truth, generate
from tests.prepare.oracle import run

SMALL = SynthOptions(users=300, items=60, events=9_000, topics=6, successors=3, seed=4)


def histories(folder: Path) -> dict[int, np.ndarray]:
    """Items of every user in the order of time, and checks on the log itself."""
    log = pq.read_table(folder / EVENTS)
    user, item, at = (log.column(name).to_numpy() for name in ("user", "item", "timestamp"))
    assert (np.diff(at) >= 0).all(), "rows are in global time order"
    return {int(u): item[user == u] for u in np.unique(user)}


def test_sizes_and_order(tmp_path: Path) -> None:
    generate(SMALL, str(tmp_path))
    found = histories(tmp_path)
    lengths = [len(items) for items in found.values()]
    assert sorted(found) == list(range(1, 301))
    assert sum(lengths) == 9_000
    assert min(lengths) >= SMALL.shortest
    assert max(lengths) > 3 * np.median(lengths)
    log = pq.read_table(tmp_path / EVENTS)
    users, times = log.column("user").to_numpy(), log.column("timestamp").to_numpy()
    assert all((np.diff(times[users == user]) > 0).all() for user in range(1, 301))
    assert (users[1:] != users[:-1]).mean() > 0.9, "users are mixed"
    assert np.ptp(times) <= SMALL.days * 86_400 + max(lengths)


def test_fixed_bytes(tmp_path: Path) -> None:
    generate(SMALL, f"{tmp_path}/one")
    generate(SMALL, f"{tmp_path}/two")
    generate(SMALL.model_copy(update={"seed": 5}), f"{tmp_path}/three")
    for name in (EVENTS, TRUTH):
        one, two, three = ((tmp_path / n / name).read_bytes() for n in ("one", "two", "three"))
        assert one == two
        assert one != three


def by_hand(truth: Truth, history: list[int]) -> np.ndarray:
    """The process as its module describes it, one item at a time."""
    size = len(truth.popularity)
    if not history:
        return truth.popularity
    result = np.zeros(size)
    weights = [truth.decay**age for age in range(len(history))][::-1]
    for item in range(size):
        topical = sum(
            weight / sum(weights) * truth.within[item]
            for past, weight in zip(history, weights, strict=True)
            if truth.topic[past - 1] == truth.topic[item]
        )
        following = sum(
            share
            for successor, share in zip(
                truth.successors[history[-1] - 1], truth.successor_weights, strict=True
            )
            if successor == item
        )
        rest = 1 - truth.markov - truth.topical
        result[item] = (
            truth.markov * following + truth.topical * topical + rest * truth.popularity[item]
        )
    return result


def test_truth_against_the_definition(tmp_path: Path) -> None:
    generate(SMALL, str(tmp_path))
    truth = Truth.load(f"{tmp_path}/{TRUTH}")
    cases = [[], [7], [1, 1, 60], list(range(1, 41)), [3] * 500]
    found = truth.next_item_distribution([np.array(case, np.int64) for case in cases])
    assert found.shape == (5, 60)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    for row, case in zip(found, cases, strict=True):
        np.testing.assert_allclose(row, by_hand(truth, case), rtol=1e-9)
    with pytest.raises(ValueError, match="item keys are 1 to 60"):
        truth.next_item_distribution([np.array([0])])


@pytest.mark.parametrize(
    "shares",
    [
        {"markov": 0.5, "topical": 0.4},
        {"markov": 0.0, "topical": 1.0},
        {"markov": 0.0, "topical": 0.0},
    ],
)
def test_the_log_follows_its_truth(shares: dict[str, float], tmp_path: Path) -> None:
    """Where the truth says p, the next item is there with frequency p: calibration, over bins."""
    # Short histories: only there does it show whether the first event has its due weight.
    options = SMALL.model_copy(update={"events": 60_000, "users": 6_000, **shares})
    truth = generate(options, str(tmp_path))
    prefixes, following = [], []
    for items in histories(tmp_path).values():
        for cut in range(len(items)):
            prefixes.append(items[:cut])
            following.append(items[cut])
    probability = truth.next_item_distribution(prefixes)
    hit = np.zeros_like(probability)
    hit[np.arange(len(following)), np.array(following) - 1] = 1
    order = np.argsort(probability, axis=None)
    for part in np.array_split(order, 20):
        p, seen = probability.ravel()[part], hit.ravel()[part].sum()
        spread = np.sqrt((p * (1 - p)).sum()) + 1
        assert abs(seen - p.sum()) < 5 * spread
    # The topics of the first and of the last event have the mass that their age gives them.
    rows = [n for n, prefix in enumerate(prefixes) if len(prefix)]
    for end in (0, -1):
        topic = truth.topic[[prefixes[n][end] - 1 for n in rows]]
        same = truth.topic[None, :] == topic[:, None]
        p = (probability[rows] * same).sum(axis=1)
        assert abs((hit[rows] * same).sum() - p.sum()) < 5 * np.sqrt((p * (1 - p)).sum())
    # And it is sharper than popularity: the log likelihood is near its expectation.
    entropy = -(probability * np.log(np.maximum(probability, 1e-300))).sum(axis=1).mean()
    chosen = probability[np.arange(len(following)), np.array(following) - 1]
    assert chosen.min() > 0
    assert abs(-np.log(chosen).mean() - entropy) < 0.05


def test_the_optimum_is_far_above_popularity(tmp_path: Path) -> None:
    """The default log, with every user's last item as target; in seconds, not minutes."""
    began = time.process_time()
    truth = generate(SynthOptions(), str(tmp_path))
    assert time.process_time() - began < 15
    log = pq.read_table(tmp_path / EVENTS)
    users, items = log.column("user").to_numpy(), log.column("item").to_numpy()
    by_user = np.argsort(users, kind="stable")
    ends = np.cumsum(np.bincount(users)[1:])
    pieces = np.split(items[by_user], ends[:-1])[:2000]
    targets = np.array([piece[-1] - 1 for piece in pieces])

    def hits(scores: np.ndarray) -> float:
        own = scores[np.arange(len(targets)), targets][:, None]
        return float(((scores >= own).sum(axis=1) <= 10).mean())

    best = hits(truth.next_item_distribution([piece[:-1] for piece in pieces]))
    popular = hits(np.tile(np.bincount(items - 1, minlength=2000), (len(targets), 1)))
    assert best > 0.55
    assert popular < 0.15


def test_it_prepares(tmp_path: Path) -> None:
    generate(SMALL, str(tmp_path))
    dataset = run(tmp_path / EVENTS, tmp_path / "out", timestamp="timestamp")
    assert (dataset.manifest.users, dataset.manifest.events) == (300, 9_000)
    assert dataset.manifest.catalogue_size == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"markov": 0.7, "topical": 0.4}, "together at most 1"),
        ({"events": 10}, "at least users"),
        ({"topics": 3000}, "topics cannot outnumber"),
        ({"items": 4, "topics": 2}, "fewer than items"),
    ],
)
def test_refused_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SynthOptions.model_validate(options)
