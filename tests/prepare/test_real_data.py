"""The public data sets: the published counts, and histories that are exactly the file's lines."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.prepare.oracle import read_back, run

RealData = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "users", "items", "events"),
    [("ml-1m.txt", 6_040, 3_416, 999_611), ("beauty.txt", 52_204, 57_289, 394_908)],
)
def test_counts_and_histories(
    name: str, users: int, items: int, events: int, real_data: RealData, tmp_path: Path
) -> None:
    log = real_data(name)
    dataset = run(log, tmp_path / "out")
    manifest = dataset.manifest
    assert (manifest.users, manifest.catalogue_size, manifest.events) == (users, items, events)
    assert manifest.members >= 1000
    assert (manifest.user_type, manifest.item_type) == ("int64", "int64")

    lines: dict[int, list[int]] = {}
    for line in log.read_text().splitlines():
        user, item = line.split()
        lines.setdefault(int(user), []).append(int(item))
    histories = read_back(dataset)
    assert {user: history.items for user, history in histories.items()} == lines
    short = sum(len(items) < 3 for items in lines.values())
    assert sum(history.marks[3] == len(history.items) for history in histories.values()) == short


def test_atomic_file_with_times(real_data: RealData, tmp_path: Path) -> None:
    """RecBole's MovieLens-100k; ties in time are common there."""
    log = real_data("ml-100k.inter")
    dataset = run(
        log,
        tmp_path / "out",
        user="user_id:token",
        item="item_id:token",
        timestamp="timestamp:float",
    )
    manifest = dataset.manifest
    assert (manifest.users, manifest.catalogue_size, manifest.events) == (943, 1_682, 100_000)
    rows: dict[int, list[tuple[int, int]]] = {}
    for line in log.read_text().splitlines()[1:]:
        user, item, _, time = line.split("\t")
        rows.setdefault(int(user), []).append((int(item), int(float(time))))
    histories = read_back(dataset)
    ties = 0
    for user, mine in rows.items():
        mine.sort(key=lambda row: row[1])
        ties += sum(a[1] == b[1] for a, b in pairwise(mine))
        assert histories[user].items == [item for item, _ in mine]
        assert histories[user].times == [time for _, time in mine]
    assert ties > 10_000


def test_atomic_file_by_its_source(real_data: RealData, tmp_path: Path) -> None:
    log = real_data("ml-100k.inter")
    named = run(
        log,
        tmp_path / "named",
        user="user_id:token",
        item="item_id:token",
        timestamp="timestamp:float",
    )
    assert run(log, tmp_path / "known", source="recbole").fingerprint == named.fingerprint
