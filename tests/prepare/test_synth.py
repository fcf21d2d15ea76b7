"""The synthetic log: exact sizes, fixed bytes, and a truth that is the process that was run."""

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.ops import extension
from pipeline.errors import LonghaulError
from pipeline.prepare.synth import SynthOptions, draw, generate, kernel, reference
from pipeline.prepare.synth.files import EVENTS, TRUTH
from pipeline.prepare.synth.process import build_process
from pipeline.prepare.synth.truth import Truth
from pipeline.prepare.synth.users import draw_users
from tests.prepare.oracle import run

SMALL = SynthOptions(users=300, items=60, events=9_000, topics=6, successors=3, seed=4)


def changed(options: SynthOptions, **changes: object) -> SynthOptions:
    return SynthOptions.model_validate({**options.model_dump(), **changes})


def columns(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    log = pq.read_table(folder / EVENTS)
    user, item, at = (log.column(name).to_numpy() for name in ("user", "item", "timestamp"))
    return user, item, at


def histories(folder: Path) -> dict[int, np.ndarray]:
    """Items of every user in the order of time, and checks on the log itself."""
    user, item, at = columns(folder)
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
    users, items, times = columns(tmp_path)
    assert items.min() >= 1
    assert items.max() <= 60
    assert all((np.diff(times[users == user]) > 0).all() for user in range(1, 301))
    assert (users[1:] != users[:-1]).mean() > 0.9, "users are mixed"
    since = times - draw.START
    assert since.min() >= 0
    assert since.max() < SMALL.days * 86_400
    # Half of the users stay to the end: a split by time finds them there.
    last = {user: since[users == user].max() for user in range(1, 301)}
    stay = np.mean([at > 0.9 * SMALL.days * 86_400 for at in last.values()])
    assert 0.4 < stay < 0.8


def test_fixed_bytes(tmp_path: Path) -> None:
    generate(SMALL, f"{tmp_path}/one")
    generate(SMALL, f"{tmp_path}/two")
    generate(changed(SMALL, seed=5), f"{tmp_path}/three")
    for name in (EVENTS, TRUTH):
        one, two, three = ((tmp_path / n / name).read_bytes() for n in ("one", "two", "three"))
        assert one == two
        assert one != three


def test_many_events_are_a_file_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(SMALL, f"{tmp_path}/one")
    monkeypatch.setattr("pipeline.prepare.synth.files.ONE_FILE", 8_999)
    told: list[int] = []
    for options in (SMALL, changed(SMALL, days=7)):  # the second leaves nothing of the first
        generate(options, f"{tmp_path}/many", told.append)
        assert told == sorted(told)
        assert told[-1] == 9_000
        told.clear()
        files = sorted((tmp_path / "many" / EVENTS).iterdir())
        days = options.days
        assert [file.name for file in files] == [f"day-{day:05d}.parquet" for day in range(days)]
        for day, file in enumerate(files):
            at = pq.read_table(file).column("timestamp").to_numpy()
            assert ((at - draw.START) // 86_400 == day).all()
    generate(SMALL, f"{tmp_path}/many")
    one, many = (run(tmp_path / n / EVENTS, tmp_path / f"set-{n}") for n in ("one", "many"))
    assert one.manifest.index == many.manifest.index, "read in the order of days"


@pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"memory": 3, "markov": 0.2},
        {"topics": 1, "zipf": 0.0, "markov": 0, "topical": 0},
        {"topics": 60, "zipf": 2.5, "successors": 59, "topical": 0.5},
        {"users": 1, "events": 9_000, "days": 2},
        {"users": 3_000, "shortest": 1, "decay": 0.5},
    ],
)
def test_the_kernel_is_the_reference(changes: dict[str, object]) -> None:
    """To the last bit, for any number of threads and any slices."""
    options = changed(SMALL, **changes)
    process = build_process(options)
    users = [draw_users(options) for _ in range(3)]
    end = options.days * 86_400
    whole = reference.draw(process, users[0], 0, end)
    at = np.random.default_rng(0).integers(0, end, 20)
    edges = np.unique([0, 1, end, *at])
    for threads, own in zip((1, 3), users[1:], strict=True):
        parts = [
            kernel.draw(process, own, int(start), int(stop), threads)
            for start, stop in pairwise(edges)
        ]
        for expected, *found in zip(whole, *parts, strict=True):
            joined = np.concatenate(found)
            assert joined.dtype == expected.dtype
            np.testing.assert_array_equal(joined, expected)
        np.testing.assert_array_equal(own.state["last"], users[0].state["last"])
        np.testing.assert_array_equal(own.recent, users[0].recent)


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(SMALL, f"{tmp_path}/one")
    monkeypatch.setenv("LONGHAUL_CPU_KERNELS", "0")
    assert not extension.enabled()
    generate(SMALL, f"{tmp_path}/two")
    assert (tmp_path / "one" / EVENTS).read_bytes() == (tmp_path / "two" / EVENTS).read_bytes()


def test_popularity_has_its_exponent(tmp_path: Path) -> None:
    options = SynthOptions(
        users=2_000, items=20_000, events=1_000_000, zipf=0.8, markov=0, topical=0
    )
    generate(options, str(tmp_path))
    counts = np.bincount(columns(tmp_path)[1] - 1, minlength=options.items)
    popularity = Truth.load(f"{tmp_path}/{TRUTH}").popularity
    by_rank = np.argsort(-popularity)
    ranks = np.arange(1, options.items + 1)
    np.testing.assert_allclose(popularity[by_rank], ranks**-0.8 / (ranks**-0.8).sum(), rtol=1e-4)
    # Over groups of ranks that each double, counts are what popularity says.
    edges = np.unique(np.append(2 ** np.arange(15) - 1, options.items))[1:-1]
    groups = zip(
        np.split(counts[by_rank], edges), np.split(popularity[by_rank], edges), strict=True
    )
    for seen, probability in groups:
        p = probability.sum()
        assert abs(seen.sum() - options.events * p) < 5 * np.sqrt(options.events * p * (1 - p)) + 1


def by_hand(truth: Truth, history: list[int]) -> np.ndarray:
    """The process as its module describes it, one item at a time."""
    size = len(truth.popularity)
    if not history:
        return truth.popularity
    options = truth.options
    result = np.zeros(size)
    recent = history[-options.memory :]
    weights = [options.decay**age for age in range(len(recent))][::-1]
    for item in range(size):
        topical = sum(
            weight / sum(weights) * truth.within[item]
            for past, weight in zip(recent, weights, strict=True)
            if truth.topic[past - 1] == truth.topic[item]
        )
        following = sum(
            1 / rank / sum(1 / r for r in range(1, len(truth.steps) + 1))
            for rank, step in enumerate(truth.steps, start=1)
            if (history[-1] - 1 + step) % size == item
        )
        rest = 1 - options.markov - options.topical
        result[item] = (
            options.markov * following + options.topical * topical + rest * truth.popularity[item]
        )
    return result


@pytest.mark.parametrize("memory", [5, 64])
def test_truth_against_the_definition(memory: int, tmp_path: Path) -> None:
    generate(changed(SMALL, memory=memory), str(tmp_path))
    truth = Truth.load(f"{tmp_path}/{TRUTH}")
    cases = [[], [7], [1, 1, 60], list(range(1, 41)), [3] * 500]
    found = truth.next_item_distribution([np.array(case, np.int64) for case in cases])
    assert found.shape == (5, 60)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    for row, case in zip(found, cases, strict=True):
        # The tables that events are drawn from hold weights as parts of 2**32.
        np.testing.assert_allclose(row, by_hand(truth, case), rtol=1e-6)
    with pytest.raises(ValueError, match="item keys are 1 to 60"):
        truth.next_item_distribution([np.array([0])])


def test_a_truth_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "truth.json"
    for content in ("[]", '{"schema_version": 1}', '{"schema_version": 2}'):
        file.write_text(content)
        with pytest.raises(LonghaulError, match="not the truth of a synthetic log"):
            Truth.load(str(file))


@pytest.mark.parametrize(
    "shares",
    [
        {"markov": 0.5, "topical": 0.4},
        {"markov": 0.0, "topical": 0.8},
        {"markov": 0.0, "topical": 0.8, "memory": 3},
        {"markov": 0.0, "topical": 0.0},
    ],
)
def test_the_log_follows_its_truth(shares: dict[str, float], tmp_path: Path) -> None:
    """Where the truth says p, the next item is there with frequency p: calibration, over bins."""
    # Short histories: only there does it show whether the first event has its due weight.
    options = changed(SMALL, events=30_000, users=3_000, **shares)
    generate(options, str(tmp_path))
    truth = Truth.load(f"{tmp_path}/{TRUTH}")
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
    kernel.available()  # compiled once on a machine
    began = time.process_time()
    generate(SynthOptions(), str(tmp_path))
    assert time.process_time() - began < 15
    truth = Truth.load(f"{tmp_path}/{TRUTH}")
    users, items, _ = columns(tmp_path)
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


def test_memory_does_not_grow_with_the_events() -> None:
    """The peak of a process that draws and drops the events, over all days but the first few."""
    script = """
import resource
from pipeline.prepare.synth import SynthOptions
from pipeline.prepare.synth.draw import slices
options = SynthOptions(users=2_000, items=50_000, events=5_000_000, days=100)
drawn, peaks = 0, []
for part in slices(options, 2):
    drawn += len(part.users)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
assert drawn == 5_000_000
print(peaks[-1] - peaks[40])
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script]
    grown = subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    assert int(grown) < 10  # MiB, where these events take more than 50
