"""Which shard and which member a user belongs to: pure functions of the data and the options."""

import numpy as np

from pipeline.errors import LonghaulError

MAX_ACTIONS = 256
_U32 = 2**32

# What a set of members offers the lanes: enough members to deal, none too large to hold.
LEAST_MEMBERS = 1000
MOST_EVENTS = 1_000_000


def shard_count(events: int, bytes_per_event: int, shard_bytes: int) -> int:
    """Shards of a data set: its bytes of events over the target, rounded up."""
    return max(1, -(-events * bytes_per_event // shard_bytes))


def shard_of(hashes: np.ndarray, shards: int) -> np.ndarray:
    """The shard of every user, i64 ``[U]``: ``hash * shards / 2^64``, rounded down."""
    # The 96-bit product from two halves; shards stays far below 2^31.
    high, low = hashes >> np.uint64(32), hashes & np.uint64(2**32 - 1)
    count = np.uint64(shards)
    return ((high * count + (low * count >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)


def users_per_member(users: int) -> int:
    """The most users that a member of a data set with ``users`` may hold.

    With at most ``users // 1000`` in each there are at least 1000 members, however the events are
    spread, and however often a member is cut for another reason.
    """
    return max(1, users // LEAST_MEMBERS)


def cut_members(lengths: np.ndarray, most_users: int) -> np.ndarray:
    """Bounds ``[M + 1]`` of the members of one shard, from the lengths of its users.

    Members are filled in order, up to ``most_users`` users and ``MOST_EVENTS`` events; a user with
    more events than that has a member alone.
    """
    ends = np.cumsum(lengths)
    bounds, before = [0], 0
    while bounds[-1] < len(lengths):
        first = bounds[-1]
        fit = int(np.searchsorted(ends, before + MOST_EVENTS, side="right"))
        last = max(first + 1, min(first + most_users, fit, len(lengths)))
        bounds.append(last)
        before = int(ends[last - 1])
    return np.array(bounds, np.int64)


def check_sizes(catalogue: int, longest: int, actions: int) -> None:
    """Raise LonghaulError where a number outgrows its field: u32 items and marks, u8 actions."""
    if catalogue >= _U32:
        raise LonghaulError(
            f"{catalogue} items, but item ids are 32-bit (at most {_U32 - 1}); "
            "raise min_item_events"
        )
    if longest >= _U32:
        raise LonghaulError(
            f"one user has {longest} events, but positions are 32-bit (at most {_U32 - 1}); "
            "is the user column the right one?"
        )
    if actions > MAX_ACTIONS:
        raise LonghaulError(
            f"{actions} different actions, but at most {MAX_ACTIONS} can be kept; "
            "choose some with keep_actions"
        )
