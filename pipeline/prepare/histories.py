"""The kept events as histories: users in shard order, items numbered from 1, split marks."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.errors import LonghaulError
from pipeline.manifest import Split
from pipeline.prepare.keys import hash_keys
from pipeline.prepare.log import Log
from pipeline.prepare.options import Unit
from pipeline.prepare.split import split_marks

MAX_ACTIONS = 256
_U32 = 2**32


@dataclass(frozen=True, eq=False)
class Histories:
    """Histories of ``U`` users with ``T`` events, users by (hash, key), events by time.

    items: u32 ``[T]``, 1..V. offsets: i64 ``[U + 1]``, from 0. user_keys ``[U]`` with their
    hashes u64 ``[U]``. splits: u32 ``[U, 4]``. times: i64 ``[T]`` in ``unit``, or None. actions:
    u8 ``[T]``, or None.
    """

    items: np.ndarray
    offsets: np.ndarray
    user_keys: pa.Array
    hashes: np.ndarray
    splits: np.ndarray
    times: np.ndarray | None
    unit: Unit | None
    actions: np.ndarray | None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """Events of each user, i64 ``[U]``."""
        return np.diff(self.offsets)

    def slice(self, first: int, last: int) -> "Histories":
        """Users ``first`` up to ``last``."""
        start, stop = int(self.offsets[first]), int(self.offsets[last])
        return Histories(
            items=self.items[start:stop],
            offsets=self.offsets[first : last + 1] - start,
            user_keys=self.user_keys.slice(first, last - first),
            hashes=self.hashes[first:last],
            splits=self.splits[first:last],
            times=None if self.times is None else self.times[start:stop],
            unit=self.unit,
            actions=None if self.actions is None else self.actions[start:stop],
        )


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What the codes stand for: item ``i`` is ``item_keys[i - 1]``, action ``a`` is
    ``actions[a]``."""

    item_keys: pa.Array
    actions: list[str] | None

    def __len__(self) -> int:
        return len(self.item_keys)


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


def _renumber(codes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of ``size`` codes occur, and every row's rank among those, i64."""
    used = np.flatnonzero(np.bincount(codes, minlength=size))
    rank = np.zeros(size, np.int64)
    rank[used] = np.arange(len(used))
    return used, rank[codes]


def build_histories(log: Log, split: Split) -> tuple[Histories, Catalogue]:
    """Histories of an ordered log, over the users, items and actions that it still has.

    Item ids follow the sorted keys, over all events: training, validation and test.
    """
    used_users, users = _renumber(log.users, len(log.user_keys))
    used_items, items = _renumber(log.items, len(log.item_keys))
    lengths = np.bincount(users, minlength=len(used_users))
    names: list[str] | None = None
    actions = None
    if log.actions is not None:
        assert log.action_keys is not None
        used_actions, actions = _renumber(log.actions, len(log.action_keys))
        names = log.action_keys.take(pa.array(used_actions)).to_pylist()
    check_sizes(len(used_items), int(lengths.max()), len(names or []))

    user_keys = log.user_keys.take(pa.array(used_users))
    renumbered = Log(users, items, user_keys, log.item_keys, times=log.times, unit=log.unit)
    histories = Histories(
        items=(items + 1).astype(np.uint32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        user_keys=user_keys,
        hashes=hash_keys(user_keys),
        splits=split_marks(split, renumbered, lengths),
        times=log.times,
        unit=log.unit,
        actions=None if actions is None else actions.astype(np.uint8),
    )
    return histories, Catalogue(log.item_keys.take(pa.array(used_items)), names)
