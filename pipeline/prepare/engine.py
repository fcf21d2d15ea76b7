"""What an engine does for the plan: shuffle events to sorted runs, and run the tasks after that.

``embedded`` does it with the threads and the disk of one machine, ``ray_engine`` with the nodes of
a Ray cluster. Which one it was does not show in a data set.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from pipeline.manifest import Split
from pipeline.prepare.deal import Dealt, Partition
from pipeline.prepare.keys import NeedsStrings
from pipeline.prepare.read import Kinds, Piece
from pipeline.prepare.runs import StoredRun
from pipeline.prepare.sort import Sorted
from pipeline.prepare.tasks import Advance
from pipeline.prepare.work import Work

T = TypeVar("T")

TASK_ROWS = 2**24  # read by one task
_ROW = 140  # bytes that an event takes in memory while it is sorted, by the look of the input


@dataclass(frozen=True)
class Limits:
    """How many tasks run at a time, and the bytes of memory that each may take."""

    workers: int
    memory: int


@dataclass(frozen=True)
class PlacedRun:
    """A run, and the partition that it is of."""

    partition: Partition
    run: StoredRun

    def meets(self, shard: int, shards: int) -> bool:
        """Whether it may hold users of a shard."""
        index, count = self.partition.index, self.partition.count
        return index * shards < (shard + 1) * count and (index + 1) * shards > shard * count


@dataclass(frozen=True)
class Settled:
    """What is decided when all events were read.

    actions: all names that occur, in the order of their codes in runs.
    """

    actions: list[str]
    split: Split


Settle = Callable[[list[Dealt], Kinds], Settled]
"""Decides; raises LonghaulError where what was read makes no data set."""


@dataclass(frozen=True)
class Shuffled:
    """What became of the events. kinds: what the columns turned out to hold. runs: of the
    partitions that have events left; done: of all that had any."""

    kinds: Kinds
    dealt: list[Dealt]
    settled: Settled
    runs: list[PlacedRun]
    done: list[Sorted]


class Engine(Protocol):
    """Where the plan runs."""

    limits: Limits

    def shuffle(
        self, pieces: list[Piece], kinds: Kinds, settle: Settle, partitions: int | None = None
    ) -> Shuffled:
        """Sort the events of all pieces to one run a partition, by default as many as their memory
        asks for.

        Raises LonghaulError as ``read_piece`` and ``settle`` do, Unfinished where it is not the
        input that is at fault.
        """

    def run(
        self, tasks: Mapping[str, partial[T]], workers: int, advance: Advance
    ) -> Iterator[tuple[str, T]]:
        """Names and results of ``tasks`` as they end, so many at a time; each is called with a
        function to advance. The first failure is raised."""


@dataclass
class Cut:
    """Into how many partitions the shuffle was cut when it was begun, for how much memory of a
    task; another start goes on with the same."""

    partitions: int
    memory: int

    def all(self) -> list[Partition]:
        """The partitions."""
        return Partition(0, 1).split(self.partitions)


def cut_of(work: Work, pieces: list[Piece], limits: Limits, partitions: int | None) -> Cut:
    """How the shuffle is cut: as before, or as asked for, or so that partitions fit into memory."""
    cut = work.kept("cut", Cut)
    if cut is None:
        cut = Cut(partitions or partition_count(pieces, limits.memory), limits.memory)
        work.keep("cut", cut)
    return cut


def partition_count(pieces: list[Piece], memory: int) -> int:
    """As many as make a partition fit into the ``memory`` of a task, by the look of the input."""
    rows = sum(piece.rows for piece in pieces)
    count = 1
    while rows * _ROW / count > memory and count < 2**12:
        count *= 2
    return count


def grouped(pieces: list[Piece]) -> list[list[Piece]]:
    """Neighbours together, until they are worth a task."""
    groups: list[list[Piece]] = [[]]
    for piece in pieces:
        if groups[-1] and sum(each.rows for each in groups[-1]) + piece.rows > TASK_ROWS:
            groups.append([])
        groups[-1].append(piece)
    return groups


def as_typed(work: Work, kinds: Kinds, attempt: Callable[[Kinds], T]) -> tuple[Kinds, T]:
    """What the columns turned out to hold, and what ``attempt`` made of them.

    Integers are dealt by another hash than strings: where they turn out to be strings, it is called
    again, and all that was done before is forgotten.
    """
    kinds = replace(kinds, strings=work.kept("strings", dict[str, bool]) or kinds.strings)
    while True:
        try:
            return kinds, attempt(kinds)
        except NeedsStrings as needed:
            kinds = replace(kinds, strings=kinds.strings | {needed.use: True})
            work.restart()
            work.keep("strings", kinds.strings)
