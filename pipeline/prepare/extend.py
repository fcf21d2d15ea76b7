"""One shard of a data set, extended by new events of its users and by new users."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.manifest import Dataset, Split
from pipeline.prepare.engine import PlacedRun
from pipeline.prepare.histories import Histories, histories_of
from pipeline.prepare.order import by_user_and_time, coded_by_hash
from pipeline.prepare.shards import (
    Recent,
    ShardCounts,
    count_shard,
    gathered,
    histories_in,
    read_back,
)
from pipeline.prepare.sort import repeated
from pipeline.prepare.split import split_marks
from pipeline.prepare.tasks import Advance
from pipeline.prepare.write import Shard, ShardHistories, write_shard


@dataclass(frozen=True, eq=False)
class Extension:
    """What all shards share.

    ids: of each item of the new events' vocabulary, u32; 0 where it goes. actions: u8 by the codes
    of actions in runs, or None. least: the events that a new user has to keep. repeats: as in the
    options. most_users: in a member.
    """

    base: Dataset
    output: str
    ids: np.ndarray
    actions: np.ndarray | None
    least: int
    repeats: str
    split: Split
    most_users: int


@dataclass(frozen=True, eq=False)
class Extended:
    """What is counted of an extended shard: as it was, and as it is."""

    before: ShardCounts
    after: ShardCounts


def least_of(placed: PlacedRun, base: Dataset, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Which users of a run the base knows, bool ``[U]``, and the events that each has to keep to
    stay, i64 ``[U]``: a known one any."""
    partition, shards = placed.partition, len(base.manifest.shards)
    shard = partition.index * shards // partition.count
    found = pa.compute.is_in(placed.run.user_keys(), value_set=_user_keys(base, shard))
    known: np.ndarray = found.to_numpy(zero_copy_only=False)
    return known, np.where(known, 1, least)


def write_extended(
    number: int, runs: list[PlacedRun], plan: Extension, advance: Advance
) -> tuple[Shard, Extended]:
    """Write shard ``number`` anew: what it held, and what the runs have for it."""
    old = _stored(plan.base, number)
    parts = [(old.user_keys, _as_histories(old))]
    for placed in runs:
        keys = placed.run.user_keys()
        ids = plan.ids[placed.run.codes()]
        _, least = least_of(placed, plan.base, plan.least)
        for part in histories_of(placed.run, placed.run.lengths(), ids, least):
            parts.append((keys.take(pa.array(part.users)), _with_actions(part, plan.actions)))
    shard = _extended(parts, len(old.items), plan)
    written = write_shard(plan.output, number, shard, plan.most_users, advance)
    return written, Extended(count_shard(old, _NEVER), count_shard(shard, _NEVER))


def count_extended(
    number: int, shard: Shard, plan: Extension, advance: Advance
) -> tuple[Shard, Extended]:
    """What ``write_extended`` returned for a shard that an earlier start wrote."""
    after = count_shard(read_back(plan.output, shard, advance), _NEVER)
    return shard, Extended(count_shard(_stored(plan.base, number), _NEVER), after)


def _stored(base: Dataset, shard: int) -> ShardHistories:
    """What the base holds of a shard."""
    path = base.manifest.shards[shard].path
    members = [member for member, home in enumerate(base.shard) if home == path]
    found = histories_in([base.read(member) for member in members])
    if members:
        return found
    manifest = base.manifest
    return replace(
        found,
        user_keys=_user_keys(base, shard),
        times=None if manifest.timestamp_unit is None else np.empty(0, np.int64),
        actions=None if manifest.actions is None else np.empty(0, np.uint8),
    )


def _user_keys(base: Dataset, shard: int) -> pa.Array:
    keys = base.read_users(shard).column("key").combine_chunks()
    return keys if pa.types.is_integer(keys.type) else keys.cast(pa.large_string())


_NEVER = Recent(None, 0)


def _with_actions(part: Histories, codes: np.ndarray | None) -> Histories:
    if part.actions is None or codes is None:
        return part
    return replace(part, actions=codes[part.actions])


def _as_histories(shard: ShardHistories) -> Histories:
    return Histories(
        users=np.arange(len(shard.lengths)),
        lengths=shard.lengths,
        items=shard.items,
        times=shard.times,
        actions=shard.actions,
    )


def _extended(
    parts: list[tuple[pa.Array, Histories]], old_events: int, plan: Extension
) -> ShardHistories:
    """All parts as one; the first ``old_events`` events are those that the shard held."""
    entries, all_of_it = gathered(parts)
    user_keys, codes = coded_by_hash(entries)
    users = np.repeat(codes, all_of_it.lengths)
    rows = by_user_and_time(users, len(user_keys), all_of_it.times)
    users, items = users[rows], all_of_it.items[rows]
    if plan.repeats != "none":
        # What the set holds stays, repeated or not.
        goes = repeated(users, items, len(user_keys), plan.repeats == "all") & (rows >= old_events)
        users, items, rows = users[~goes], items[~goes], rows[~goes]
    lengths = np.bincount(users, minlength=len(user_keys))
    times = None if all_of_it.times is None else all_of_it.times[rows]
    return ShardHistories(
        user_keys=user_keys,
        lengths=lengths,
        splits=split_marks(plan.split, lengths, times),
        items=items,
        times=times,
        actions=None if all_of_it.actions is None else all_of_it.actions[rows],
    )
