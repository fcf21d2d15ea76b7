"""From runs to shards: who belongs to one, with what stays, and how often its items occur."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.manifest import Split
from pipeline.member import TRAIN_END, Member, decode_member
from pipeline.prepare.engine import PlacedRun
from pipeline.prepare.histories import Histories, histories_of
from pipeline.prepare.keys import hash_keys
from pipeline.prepare.layout import shard_of
from pipeline.prepare.order import coded
from pipeline.prepare.runs import StoredRun
from pipeline.prepare.split import split_marks
from pipeline.prepare.work import check_whole
from pipeline.prepare.write import Shard, ShardHistories, write_shard

COUNTS = ("events", "train_events", "recent_events")


@dataclass(frozen=True)
class Recent:
    """Which training events the recent popularity counts: those from time ``since`` on; without
    times the last ``last`` of each user."""

    since: int | None
    last: int


@dataclass(frozen=True, eq=False)
class Layout:
    """What all tasks share: where it goes, and what is kept as what.

    shards: as many in all. most_users: in a member. ids: of each item of the vocabulary, u32; 0
    where it goes. actions: u8 by the codes of actions in runs, or None. least: the events that a
    user has to keep to stay.
    """

    output: str
    shards: int
    most_users: int
    ids: np.ndarray
    actions: np.ndarray | None
    least: int
    split: Split
    recent: Recent


@dataclass(frozen=True, eq=False)
class ShardCounts:
    """What is counted of a shard. items: u32 ``[n]``, different ids, and how often each occurs, i64
    ``[3, n]`` by ``COUNTS``. lengths: users by number of events."""

    items: np.ndarray
    occurrences: np.ndarray
    lengths: Counter[int]


def write_placed(
    number: int, runs: list[PlacedRun], layout: Layout, advance: Callable[[int], None]
) -> tuple[Shard, ShardCounts]:
    """Write shard ``number`` from the runs that hold its users."""
    met = [placed.run for placed in runs if placed.meets(number, layout.shards)]
    # One that meets none is empty, as any run tells.
    parts = [part for run in met or [runs[0].run] for part in _of_shard(run, number, layout)]
    histories = _finished(gathered(parts), layout)
    shard = write_shard(layout.output, number, histories, layout.most_users, advance)
    return shard, count_shard(histories, layout.recent)


def _of_shard(run: StoredRun, shard: int, layout: Layout) -> Iterator[tuple[pa.Array, Histories]]:
    """Users of the run that belong to the shard, and their histories, in pieces."""
    keys = run.user_keys()
    homes = shard_of(hash_keys(keys), layout.shards)
    first, last = np.searchsorted(homes, [shard, shard + 1]).tolist()
    ids = layout.ids[run.codes()]
    for part in histories_of(run, run.lengths(), ids, layout.least, first, last):
        yield keys.take(pa.array(part.users)), part


def gathered(parts: list[tuple[pa.Array, Histories]]) -> tuple[pa.Array, Histories]:
    """Keys of users and their histories, all parts one after another."""
    keys = pa.concat_arrays([found for found, _ in parts])

    def joined(name: str) -> np.ndarray | None:
        arrays = [getattr(part, name) for _, part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    names = ("users", "lengths", "items", "times", "actions")
    return keys, Histories(*(joined(name) for name in names))  # type: ignore[arg-type]


def _finished(found: tuple[pa.Array, Histories], layout: Layout) -> ShardHistories:
    keys, histories = found
    actions = histories.actions
    return ShardHistories(
        user_keys=keys,
        lengths=histories.lengths,
        splits=split_marks(layout.split, histories.lengths, histories.times),
        items=histories.items,
        times=histories.times,
        actions=None if actions is None or layout.actions is None else layout.actions[actions],
    )


def count_shard(shard: ShardHistories, recent: Recent) -> ShardCounts:
    """What is counted of a shard: items in all, in training, and in training of late."""
    ends = np.cumsum(shard.lengths)
    trained_end = ends - shard.lengths + shard.splits[:, TRAIN_END]
    left = np.repeat(trained_end, shard.lengths) - np.arange(len(shard.items))  # 1: the last one
    trained = left > 0
    if recent.since is None:
        of_late = trained & (left <= recent.last)
    elif shard.times is None:  # of an empty shard that was read back
        of_late = trained
    else:
        of_late = trained & (shard.times >= recent.since)
    lengths, users = np.unique(shard.lengths, return_counts=True)
    return ShardCounts(
        *_occurrences(shard.items, trained.astype(np.int64) + of_late),
        Counter(dict(zip(lengths.tolist(), users.tolist(), strict=True))),
    )


def _occurrences(items: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ids, u32 ``[n]``, and how often each occurs with a kind of at least 0, 1 and 2,
    i64 ``[3, n]``."""
    size = int(items.max(initial=0)) + 1
    ids, codes = np.arange(size), items
    if size > 4 * len(items):  # few of very many items
        keys, codes = coded(pa.array(items.astype(np.int64)))
        ids, size = keys.to_numpy(), len(keys)
    counts = np.bincount(codes + size * kinds, minlength=3 * size).reshape(3, size)
    reached = np.stack([counts.sum(axis=0), counts[1] + counts[2], counts[2]])
    used = reached[0] > 0
    return ids[used].astype(np.uint32), reached[:, used]


def count_stored(
    shard: Shard, layout: Layout, advance: Callable[[int], None]
) -> tuple[Shard, ShardCounts]:
    """What ``write_placed`` returned for a shard that an earlier start wrote, read back.

    Raises LonghaulError where it is not whole.
    """
    histories = read_back(layout.output, shard, advance)
    return shard, count_shard(histories, layout.recent)


def read_back(folder: str, shard: Shard, advance: Callable[[int], None]) -> ShardHistories:
    """The histories of a shard that was written to ``folder``; as ``count_stored``."""
    check_whole(folder, [shard.file, shard.users])
    url = storage.join(folder, shard.file.path)
    members = []
    for row in shard.index:
        content = storage.read_bytes(url, row["start"], row["stop"])
        members.append(decode_member(content, row["member"]))
        advance(row["events"])
    return histories_in(members)


def histories_in(members: list[Member]) -> ShardHistories:
    """The histories of all members of a shard."""
    users = [member.users for member in members]
    keys = (
        pa.array(np.concatenate([_NONE, *users]))
        if all(each.dtype == np.int64 for each in users)
        else pa.array([key.decode() for each in users for key in each.tolist()], pa.large_string())
    )
    times = [member.timestamps for member in members if member.timestamps is not None]
    actions = [member.actions for member in members if member.actions is not None]
    return ShardHistories(
        user_keys=keys,
        lengths=np.concatenate([_NONE, *(member.lengths() for member in members)]),
        splits=np.concatenate([_NO_MARKS, *(member.splits for member in members)]),
        items=np.concatenate([_NO_ITEMS, *(member.items for member in members)]),
        times=np.concatenate(times) if times else None,
        actions=np.concatenate(actions) if actions else None,
    )


_NONE = np.empty(0, np.int64)
_NO_ITEMS = np.empty(0, np.uint32)
_NO_MARKS = np.empty((0, 4), np.uint32)
