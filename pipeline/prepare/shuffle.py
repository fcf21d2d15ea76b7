"""The shuffle of the embedded engine: events through local files, to one sorted run a partition."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil

from pipeline.errors import LonghaulError
from pipeline.manifest import Split
from pipeline.prepare.deal import Dealt, Partition, deal, deal_again, remove
from pipeline.prepare.engine import Advance, Meter, Progress, run_tasks
from pipeline.prepare.keys import NeedsStrings
from pipeline.prepare.options import PrepareOptions
from pipeline.prepare.read import Kinds, Piece
from pipeline.prepare.runs import StoredRun
from pipeline.prepare.sort import Sorted, sort
from pipeline.prepare.work import Unfinished, Work, check_whole

T = TypeVar("T")

TASK_ROWS = 2**24  # dealt by one task
_BASE = 300 << 20  # bytes that the process takes before it holds any event
_LEAST_MEMORY = 512 << 20
_MOST_PARTITIONS = 2**24  # one that is still too large holds a single user


@dataclass(frozen=True)
class Limits:
    """How many tasks run at a time, and the bytes of memory that each may take."""

    workers: int
    memory: int


def limits_of(options: PrepareOptions) -> Limits:
    """What the options say, or this machine. Raises LonghaulError for too little memory."""
    memory = options.memory or max(_LEAST_MEMORY, psutil.virtual_memory().available // 2)
    if memory < _LEAST_MEMORY:
        raise LonghaulError(f"memory: {memory:,} bytes are too few, give at least 512MiB")
    workers = options.workers or len(psutil.Process().cpu_affinity())
    workers = max(1, min(workers, (memory - _BASE) // (200 << 20)))
    return Limits(workers, (memory - _BASE) // workers)


@dataclass(frozen=True)
class PlacedRun:
    """A run, and the partition that it is of."""

    partition: Partition
    run: StoredRun

    def meets(self, shard: int, shards: int) -> bool:
        """Whether it may hold users of a shard."""
        index, count = self.partition.index, self.partition.count
        return index * shards < (shard + 1) * count and (index + 1) * shards > shard * count


@dataclass
class _Plan:
    """How the shuffle was cut when it was begun; another start goes on with the same."""

    partitions: int
    memory: int


class Shuffle:
    """The shuffle of one preparation; ``progress`` hears how far it is."""

    def __init__(
        self, options: PrepareOptions, work: Work, limits: Limits, progress: Progress
    ) -> None:
        self._options = options
        self._work = work
        self._workers = limits.workers
        self._memory = limits.memory
        self._progress = progress
        self._folder = Path(work.place("spill"))

    def deal(
        self, pieces: list[Piece], kinds: Kinds, partitions: int | None = None
    ) -> tuple[Kinds, list[Dealt]]:
        """Deal all events to partitions, by default as many as their memory asks for; and what the
        columns turned out to hold. Raises LonghaulError as ``deal`` does."""
        kinds = replace(kinds, strings=self._work.kept("strings", dict[str, bool]) or kinds.strings)
        plan = self._work.kept("plan", _Plan)
        if plan is None:
            plan = _Plan(partitions or self._partition_count(pieces), self._memory)
            self._work.keep("plan", plan)
        self._memory = plan.memory
        self._partitions = Partition(0, 1).split(plan.partitions)
        tasks = _grouped(pieces)
        sizes = [sum(piece.bytes for piece in task) for task in tasks]
        while True:
            dealing: dict[str, Callable[[Advance], Dealt]] = {
                f"deal-{number:05d}": partial(
                    deal, number, task, self._options, kinds, self._partitions, self._folder
                )
                for number, task in enumerate(tasks)
            }
            try:
                return kinds, list(self._each(Dealt, "read", dealing, sizes).values())
            except NeedsStrings as needed:
                # Integers were dealt by another hash than strings: all over again.
                kinds = replace(kinds, strings=kinds.strings | {needed.use: True})
                self._work.restart()
                self._work.keep("strings", kinds.strings)
                self._work.keep("plan", plan)

    def sort(
        self, dealt: list[Dealt], actions: list[str], split: Split, kinds: Kinds
    ) -> tuple[list[PlacedRun], list[Sorted]]:
        """Sort every partition that holds something to a run; those that have events left.

        actions: all names that occur, in the order of their codes in runs.
        """
        codes = {name: code for code, name in enumerate(actions)}
        known = [np.array([codes[name] for name in each.actions], np.uint16) for each in dealt]
        sizes = self._fitting(dealt)
        names = {partition.name: partition for partition in sizes}
        sorting: dict[str, Callable[[Advance], Sorted]] = {
            partition.name: partial(
                sort,
                partition,
                rows,
                known,
                self._options,
                split,
                kinds.unit,
                self._folder,
                self._run_url(partition.name),
            )
            for partition, rows in sizes.items()
        }
        found = self._each(
            Sorted,
            "sort",
            sorting,
            list(sizes.values()),
            check=lambda name, each: check_whole(self._run_url(name), each.files),
            then=lambda name: remove(self._folder, names[name]),
        )
        runs = [
            PlacedRun(names[name], StoredRun(self._run_url(name)))
            for name, each in found.items()
            if each.tally.events
        ]
        return runs, list(found.values())

    def _run_url(self, name: str) -> str:
        return self._work.place("runs", name)

    def _partition_count(self, pieces: list[Piece]) -> int:
        """As many as make a partition fit into the memory of a task, by the look of the input."""
        rows = sum(piece.rows for piece in pieces)
        count = 1
        while rows * 140 / count > self._memory and count < 2**12:
            count *= 2
        return count

    def _fitting(self, dealt: list[Dealt]) -> dict[Partition, int]:
        """The partitions that hold something, and how many events; each fits into memory."""
        rows = np.sum([each.rows for each in dealt], axis=0).tolist()
        takes = np.sum([each.bytes for each in dealt], axis=0).tolist()
        waiting = list(zip(self._partitions, rows, takes, strict=True))
        fitting: dict[Partition, int] = {}
        while waiting:
            partition, count, need = waiting.pop(0)
            if need <= self._memory or partition.count >= _MOST_PARTITIONS:
                if count:
                    fitting[partition] = count
                continue
            name = f"deal-{partition.name}"
            again = self._work.kept(name, Dealt)
            if again is None:
                ways = 2
                while need / ways > self._memory / 2:
                    ways *= 2
                again = deal_again(partition, ways, len(dealt), self._folder)
                self._work.keep(name, again)
            remove(self._folder, partition)
            parts = partition.split(len(again.rows))
            waiting = [*zip(parts, again.rows, again.bytes, strict=True), *waiting]
        return fitting

    def _each(
        self,
        kind: type[T],
        stage: str,
        tasks: Mapping[str, Callable[[Advance], T]],
        sizes: list[int],
        check: Callable[[str, T], None] = lambda name, result: None,
        then: Callable[[str], None] = lambda name: None,
    ) -> dict[str, T]:
        """The results of recorded tasks, by name.

        ``check`` looks at what was recorded before; ``then`` hears of each that is recorded.
        """
        meter = Meter(self._progress, stage, sum(sizes))
        found: dict[str, T] = {}
        for name, size in zip(tasks, sizes, strict=True):
            kept = self._work.kept(name, kind)
            if kept is not None:
                check(name, kept)
                found[name] = kept
                meter.advance(size)
                then(name)
        left = {name: task for name, task in tasks.items() if name not in found}
        try:
            for name, result in run_tasks(left, self._workers, meter.advance):
                self._work.keep(name, result)
                found[name] = result
                then(name)
        except LonghaulError as error:
            if stage == "read":  # the input is at fault
                raise
            raise Unfinished(str(error)) from error
        return {name: found[name] for name in tasks}


def _grouped(pieces: list[Piece]) -> list[list[Piece]]:
    """Neighbours together, until they are worth a task."""
    groups: list[list[Piece]] = [[]]
    for piece in pieces:
        if groups[-1] and sum(each.rows for each in groups[-1]) + piece.rows > TASK_ROWS:
            groups.append([])
        groups[-1].append(piece)
    return groups
