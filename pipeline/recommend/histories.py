"""The histories of users, read member by member and cut into batches that are ranked together."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from models.batch import PackedBatch
from pipeline.evaluate.blocks import take
from pipeline.evaluate.tiles import Packed
from pipeline.manifest import Dataset
from pipeline.member import Member

BATCH_USERS = 1024  # whole tiles, of any device
BATCH_EVENTS = 2**20

Share = tuple[int, np.ndarray]
"""A member, and which of its users: positions i64 ``[n]``."""


@dataclass(frozen=True, eq=False)
class Histories:
    """Whole histories of ``n`` users. keys ``[n]``; items i64 ``[T]``; offsets i64 ``[n + 1]``."""

    keys: np.ndarray
    items: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def windows(self, length: int) -> PackedBatch:
        """A segment a user, his newest ``length`` events; token 0 for one who has none."""
        stops = self.offsets[1:]
        lengths = np.minimum(np.diff(self.offsets), length)
        nothing = np.append(self.items, 0)
        begin = np.where(lengths, stops - lengths, len(self.items))
        items, offsets = (torch.from_numpy(x) for x in take(nothing, begin, np.maximum(lengths, 1)))
        return PackedBatch(items, offsets, torch.zeros_like(items))

    def packed(self) -> Packed:
        """All items of each user."""
        return torch.from_numpy(self.items), torch.from_numpy(self.offsets)

    def name(self, row: int) -> str:
        """User ``row`` in words, for errors."""
        key = self.keys[row]
        return f"user {key.decode() if isinstance(key, bytes) else key}"

    def _rows(self, low: int, high: int) -> "Histories":
        begin, end = self.offsets[[low, high]]
        return Histories(
            self.keys[low:high], self.items[begin:end], self.offsets[low : high + 1] - begin
        )


def shares_of(dataset: Dataset, users: range) -> Iterator[Share]:
    """Where consecutive users lie, counted over the data set."""
    ends = np.cumsum(dataset.users)
    low, high = np.searchsorted(ends, [users.start, users.stop - 1], side="right").tolist()
    for member in range(low, high + 1):
        first = int(ends[member] - dataset.users[member])
        stop = min(users.stop, int(ends[member])) - first
        yield member, np.arange(max(users.start - first, 0), stop)


def batches(dataset: Dataset, shares: Iterable[Share]) -> Iterator[Histories]:
    """The histories of these users in their order, up to ``BATCH_USERS`` at once, and no more
    than ``BATCH_EVENTS`` of several.

    Raises LonghaulError where a member is damaged.
    """
    waiting: list[Histories] = []
    users = events = 0
    for share, member in _read_ahead(dataset, list(shares)):
        histories = _chosen(member, share[1])
        waiting.append(histories)
        users, events = users + len(histories), events + len(histories.items)
        if users < BATCH_USERS and events < BATCH_EVENTS:
            continue
        *full, left = _cut(_joined(waiting))
        yield from full
        waiting, users, events = [left], len(left), len(left.items)
    if waiting:
        yield from _cut(_joined(waiting))


def _read_ahead(dataset: Dataset, shares: Sequence[Share]) -> Iterator[tuple[Share, Member]]:
    """The members; each is read while the one before is at work."""
    with ThreadPoolExecutor(1) as reader:
        coming = None
        for number, share in enumerate(shares):
            here = coming or reader.submit(dataset.read, share[0])
            after = shares[number + 1 : number + 2]
            coming = reader.submit(dataset.read, after[0][0]) if after else None
            yield share, here.result()


def _chosen(member: Member, positions: np.ndarray) -> Histories:
    begin = member.offsets[positions].astype(np.int64)
    items, offsets = take(member.items, begin, member.lengths()[positions])
    return Histories(member.users[positions], items.astype(np.int64), offsets)


def _joined(parts: list[Histories]) -> Histories:
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return Histories(
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.items for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]),
    )


def _cut(histories: Histories) -> list[Histories]:
    """As few as hold so many users and events each."""
    found = []
    low = 0
    while low < len(histories):
        fit = np.searchsorted(
            histories.offsets, histories.offsets[low] + BATCH_EVENTS, side="right"
        )
        high = min(max(low + 1, int(fit) - 1), low + BATCH_USERS, len(histories))
        found.append(histories._rows(low, high))
        low = high
    return found
