"""One lane: segments in their order, filled into packed micro-batches of a fixed token budget."""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.member import TRAIN_END, Member
from pipeline.stream.order import mix, permutation, seed_of
from pipeline.stream.reader import MemberReader
from pipeline.stream.segments import Segments, Window, cut


@dataclass(frozen=True, order=True)
class Position:
    """Where a lane stands in its epoch: ``segment`` segments of window ``group`` are trained."""

    group: int = 0
    segment: int = 0


@dataclass(frozen=True, eq=False)
class Fill:
    """One micro-batch before it becomes tensors.

    items, targets: i64 ``[T]``; offsets: i64 ``[S + 1]``;
    identity: u64 ``[S]``, a hash of (member, user, stop) that names each segment of an epoch.
    """

    items: np.ndarray
    targets: np.ndarray
    offsets: np.ndarray
    identity: np.ndarray

    @property
    def segments(self) -> int:
        """Segments trained, dead ones not counted."""
        return len(self.identity)

    def asking(self, items: np.ndarray, targets: np.ndarray) -> "Fill":
        """The same segments with other inputs and targets."""
        return replace(self, items=items, targets=targets)


def empty_fill() -> Fill:
    """The dead segment that a missing or dry lane runs: one token, no target, weight zero."""
    zero = np.zeros(1, dtype=np.int64)
    return Fill(zero, zero, np.array([0, 1]), np.zeros(0, dtype=np.uint64))


@dataclass(frozen=True, eq=False)
class _Group:
    """The segments of a few members, permuted together."""

    items: np.ndarray  # u32, all events of the members back to back
    origin: np.ndarray  # i64 [S], where the segment's user begins in items
    start: np.ndarray
    stop: np.ndarray
    bos: np.ndarray
    identity: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


class Lane:
    """The fills of one lane in one epoch, from ``position`` on.

    Segments are permuted inside groups of ``shuffle_members`` members, statelessly; the next group
    is read while the present one is trained, as far as the reader's bound allows. Errors of reading
    surface in ``fill``.
    """

    def __init__(
        self,
        reader: MemberReader,
        members: np.ndarray,
        window: Window,
        *,
        seed: int,
        shuffle_members: int,
        position: Position,
    ) -> None:
        self.position = position
        self._reader = reader
        self._window = window
        self._seed = seed
        self._groups = [
            members[i : i + shuffle_members] for i in range(0, len(members), shuffle_members)
        ]
        self._current: _Group | None = None
        self._announce(position.group)

    def _announce(self, group: int) -> None:
        if group < len(self._groups):
            self._reader.ahead(self._groups[group].tolist())

    def _advance(self) -> _Group | None:
        """The group that the position is in, read and permuted; None past the last one."""
        while self._current is None or self.position.segment >= len(self._current):
            if self._current is not None:
                self.position = Position(self.position.group + 1, 0)
                self._current = None
            if self.position.group >= len(self._groups):
                return None
            members = self._groups[self.position.group]
            read = self._reader.take(members.tolist())
            self._announce(self.position.group + 1)
            seed = seed_of("segments", self._seed, self.position.group)
            self._current = _permuted(members, read, self._window, seed)
        return self._current

    def fill(self, budget: int) -> Fill | None:
        """The next micro-batch of at most ``budget`` tokens; None when the lane is dry."""
        parts: list[tuple[_Group, int, int]] = []
        room = budget
        while (group := self._advance()) is not None:
            begin = self.position.segment
            used = np.cumsum(group.stop[begin:] - group.start[begin:])
            taken = int(np.searchsorted(used, room, side="right"))
            if taken:
                parts.append((group, begin, begin + taken))
                room -= int(used[taken - 1])
                self.position = Position(self.position.group, begin + taken)
            if begin + taken < len(group):
                break
        return _pack(parts) if parts else None


def _permuted(members: np.ndarray, read: list[Member], window: Window, seed: int) -> _Group:
    columns: list[tuple[np.ndarray, ...]] = []
    base = 0
    for number, member in zip(members.tolist(), read, strict=True):
        cuts: Segments = cut(member.splits[:, TRAIN_END], window)
        origin = base + member.offsets.astype(np.int64)[cuts.user]
        identity = _identity(number, cuts)
        columns.append((origin, cuts.start, cuts.stop, cuts.bos, identity))
        base += len(member.items)
    origin, start, stop, bos, identity = (np.concatenate(c) for c in zip(*columns, strict=True))
    order = permutation(len(start), seed)
    items = np.concatenate([member.items for member in read])
    return _Group(items, origin[order], start[order], stop[order], bos[order], identity[order])


def _identity(member: int, cuts: Segments) -> np.ndarray:
    named = mix(np.full(len(cuts), member, dtype=np.uint64))
    named = mix(named ^ cuts.user.astype(np.uint64))
    return mix(named ^ cuts.stop.astype(np.uint64))


def _pack(parts: list[tuple[_Group, int, int]]) -> Fill:
    items: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    identity: list[np.ndarray] = []
    for group, begin, end in parts:
        length = group.stop[begin:end] - group.start[begin:end]
        ends = np.cumsum(length)
        within = np.arange(int(ends[-1])) - np.repeat(ends - length, length)
        place = np.repeat(group.origin[begin:end] + group.start[begin:end], length) + within
        targets.append(group.items[place])
        # The input at a bos segment's first token is 0; its place would be another user's event.
        inputs = group.items[place - 1]
        inputs[(ends - length)[group.bos[begin:end]]] = 0
        items.append(inputs)
        lengths.append(length)
        identity.append(group.identity[begin:end])
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return Fill(
        np.concatenate(items).astype(np.int64),
        np.concatenate(targets).astype(np.int64),
        offsets,
        np.concatenate(identity),
    )
