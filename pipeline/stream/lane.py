"""One lane: segments in their order, filled into packed micro-batches of a fixed token budget."""

from dataclasses import dataclass, replace

import numpy as np

from models.ops import Events
from pipeline.member import TRAIN_END, Head
from pipeline.stream.order import mix, permutation, seed_of
from pipeline.stream.reader import MemberReader
from pipeline.stream.segments import Window, cut


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
    asked: how many targets are not 0.
    """

    items: np.ndarray
    targets: np.ndarray
    offsets: np.ndarray
    identity: np.ndarray
    asked: int

    @property
    def segments(self) -> int:
        """Segments trained, dead ones not counted."""
        return len(self.identity)

    def asking(self, items: np.ndarray, targets: np.ndarray) -> "Fill":
        """The same segments with other inputs and targets."""
        asked = int(np.count_nonzero(targets))
        return replace(self, items=items, targets=targets, asked=asked)


def empty_fill() -> Fill:
    """The dead segment that a missing or dry lane runs: one token, no target, weight zero."""
    zero = np.zeros(1, dtype=np.int64)
    return Fill(zero, zero, np.array([0, 1]), np.zeros(0, dtype=np.uint64), asked=0)


@dataclass(frozen=True, eq=False)
class _Group:
    """The segments of a few members, permuted together; ``[S]`` each but the first."""

    events: Events  # of the members
    member: np.ndarray  # i64, which of them the segment is in
    begin: np.ndarray  # i64, where its first target is there
    length: np.ndarray  # i64, targets
    bos: np.ndarray  # bool
    identity: np.ndarray  # u64
    ends: np.ndarray  # i64, targets of this and all earlier segments

    def __len__(self) -> int:
        return len(self.ends)


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
            used = int(group.ends[begin - 1]) if begin else 0
            end = int(np.searchsorted(group.ends, used + room, side="right"))
            if end > begin:
                parts.append((group, begin, end))
                room -= int(group.ends[end - 1]) - used
                self.position = Position(self.position.group, end)
            if end < len(group):
                break
        return _pack(parts) if parts else None


def _permuted(members: np.ndarray, read: list[Head], window: Window, seed: int) -> _Group:
    """All segments of the group in the order of ``seed``."""
    users = np.array([len(member) for member in read])
    member = np.repeat(np.arange(len(read)), users)
    history = np.concatenate([member.offsets[:-1] for member in read]).astype(np.int64)
    cuts = cut(np.concatenate([member.splits[:, TRAIN_END] for member in read]), window)
    order = permutation(len(cuts), seed)
    user, start, stop = cuts.user[order], cuts.start[order], cuts.stop[order]
    within = np.arange(len(member)) - (np.cumsum(users) - users)[member]
    named = mix(members.astype(np.uint64))[member]  # by member, user in it, stop
    named = mix(named ^ within.astype(np.uint64))
    return _Group(
        events=Events([member.items for member in read]),
        member=member[user],
        begin=history[user] + start,
        length=stop - start,
        bos=cuts.bos[order],
        identity=mix(named[user] ^ stop.astype(np.uint64)),
        ends=np.cumsum(stop - start),
    )


def _pack(parts: list[tuple[_Group, int, int]]) -> Fill:
    fills = []
    for group, begin, end in parts:
        columns = (group.member, group.begin, group.length, group.bos)
        items, targets = group.events.cut(*(column[begin:end] for column in columns))
        offsets = np.zeros(end - begin + 1, dtype=np.int64)
        offsets[1:] = group.ends[begin:end] - (group.ends[begin - 1] if begin else 0)
        identity = group.identity[begin:end]
        fills.append(Fill(items, targets, offsets, identity, asked=len(targets)))
    return fills[0] if len(fills) == 1 else _joined(fills)


def _joined(fills: list[Fill]) -> Fill:
    firsts = np.cumsum([0, *(len(fill.items) for fill in fills)])
    return Fill(
        items=np.concatenate([fill.items for fill in fills]),
        targets=np.concatenate([fill.targets for fill in fills]),
        offsets=np.concatenate(
            [[0], *(fill.offsets[1:] + first for fill, first in zip(fills, firsts, strict=False))]
        ),
        identity=np.concatenate([fill.identity for fill in fills]),
        asked=sum(fill.asked for fill in fills),
    )
