"""Item-to-item rules against pairs counted one by one."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from models.batch import PackedBatch
from pipeline.errors import LonghaulError
from pipeline.evaluate import co_occurrence, cooccurrence, rank_targets, top_k
from pipeline.evaluate.scores import SparseScores
from tests.evaluate.support import packed, random_users, write_dataset

CATALOGUE = 25


def dense(scores: SparseScores) -> np.ndarray:
    rows = [
        torch.cat(
            [scores.tile(q, i).clone() for i in range(-(-scores.columns // scores.shape[1]))], 1
        )
        for q in range(-(-scores.rows // scores.shape[0]))
    ]
    return torch.cat(rows)[: scores.rows, : scores.columns].numpy()


@pytest.mark.parametrize("pairs", [10, 300, 1 << 25])
@pytest.mark.parametrize(("window", "neighbours"), [(1, 2), (3, 4), (5, 25)])
def test_scores_are_those_counted_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, neighbours: int, pairs: int
) -> None:
    monkeypatch.setattr(cooccurrence, "PAIRS", pairs)  # many ranges of items, or one
    users = random_users(60, CATALOGUE, seed=6)
    scorer = co_occurrence(write_dataset(tmp_path, users, CATALOGUE), window, neighbours)

    counts: Counter[tuple[int, int]] = Counter()
    popular: Counter[int] = Counter()
    for user in users:
        trained = user.items[: user.split[0]]
        popular.update(trained)
        for at, first in enumerate(trained):
            for second in trained[at + 1 : at + 1 + window]:
                counts[first, second] += first != second
    rules: dict[int, dict[int, float]] = {}
    for first in range(1, CATALOGUE + 1):
        found = {j: c for (i, j), c in counts.items() if i == first and c}
        best = sorted(found, key=lambda j: (-found[j], j))[:neighbours]
        rules[first] = {j: found[j] / sum(found.values()) for j in best}

    windows = [[3, 3, 7, 9, 1, 2, 20], [5], [0], [4, 4]]
    items, offsets = packed(windows)
    found_scores = dense(scorer.score(PackedBatch(items, offsets, items * 0)))
    for row, history in enumerate(windows):
        expected = np.array([popular[i] / popular.total() * 1e-9 for i in range(CATALOGUE + 1)])
        for place, last in enumerate(reversed(history[-window:]), 1):
            for other, weight in rules.get(last, {}).items():
                expected[other] += weight / place
        assert found_scores[row] == pytest.approx(expected, rel=1e-12)


def test_large_catalogues_are_scored_by_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks and lists over several tiles of items and queries, as from the whole matrix."""
    rng = np.random.default_rng(0)
    columns, rows = 9000, 300
    base = torch.from_numpy(rng.random(columns))
    pairs = np.unique(rng.integers(0, rows * columns, 4000))
    pairs = pairs[pairs % columns > 0]
    row, column = (torch.from_numpy(part) for part in np.divmod(pairs, columns))
    values = torch.from_numpy(rng.random(len(pairs)))
    scores = SparseScores(rows, base, torch.from_numpy(pairs), values)
    whole = base.repeat(rows, 1)
    whole[row, column] += values
    targets = torch.from_numpy(rng.integers(1, columns, rows))
    ranks = rank_targets(scores, targets)
    goal = whole[torch.arange(rows), targets]
    assert torch.equal(scores.guess(1, torch.arange(9), targets[128:137]), goal[128:137])
    assert ranks.higher.tolist() == (whole[:, 1:] > goal[:, None]).sum(1).tolist()
    items, _ = top_k(scores, 7)
    assert torch.equal(items, 1 + whole[:, 1:].topk(7).indices)


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, random_users(12, CATALOGUE, seed=2), CATALOGUE)
    shard = tmp_path / "shards" / "00000.tar"
    shard.write_bytes(shard.read_bytes()[: int(dataset.start[3]) + 700])
    with pytest.raises(LonghaulError, match=r"member 000003 .* is cut short"):
        co_occurrence(dataset)
