"""The embedded engine: threads of one machine, and events that go through its disk.

Threads will do, since numpy and Arrow work outside of Python's lock.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil

from pipeline.errors import LonghaulError
from pipeline.prepare.deal import Dealt, Partition, action_codes, deal, deal_again, remove
from pipeline.prepare.engine import (
    Limits,
    PlacedRun,
    Settle,
    Settled,
    Shuffled,
    as_typed,
    cut_of,
    grouped,
)
from pipeline.prepare.options import PrepareOptions
from pipeline.prepare.read import Kinds, Piece
from pipeline.prepare.runs import StoredRun
from pipeline.prepare.sort import Sorted, sort
from pipeline.prepare.tasks import Advance, Meter, Progress, run_tasks
from pipeline.prepare.work import Unfinished, Work, check_whole

T = TypeVar("T")

_BASE = 300 << 20  # bytes that the process takes before it holds any event
_LEAST_MEMORY = 512 << 20
_MOST_PARTITIONS = 2**24  # one that is still too large holds a single user


def limits_of(options: PrepareOptions) -> Limits:
    """What the options say, or this machine. Raises LonghaulError for too little memory."""
    memory = options.memory or max(_LEAST_MEMORY, psutil.virtual_memory().available // 2)
    if memory < _LEAST_MEMORY:
        raise LonghaulError(f"memory: {memory:,} bytes are too few, give at least 512MiB")
    workers = options.workers or len(psutil.Process().cpu_affinity())
    workers = max(1, min(workers, (memory - _BASE) // (200 << 20)))
    return Limits(workers, (memory - _BASE) // workers)


class Embedded:
    """The engine of one preparation; ``progress`` hears how far the shuffle is."""

    def __init__(self, options: PrepareOptions, work: Work, progress: Progress) -> None:
        self.limits = limits_of(options)
        self._options = options
        self._work = work
        self._progress = progress
        self._folder = Path(work.place("spill"))

    def run(
        self, tasks: Mapping[str, partial[T]], workers: int, advance: Advance
    ) -> Iterator[tuple[str, T]]:
        """See Engine."""
        return run_tasks(tasks, workers, advance)

    def shuffle(
        self, pieces: list[Piece], kinds: Kinds, settle: Settle, partitions: int | None = None
    ) -> Shuffled:
        """See Engine."""
        kinds, dealt = as_typed(self._work, kinds, partial(self._deal, pieces, partitions))
        settled = settle(dealt, kinds)
        runs, done = self._sort(dealt, settled, kinds)
        return Shuffled(kinds, dealt, settled, runs, done)

    def _deal(self, pieces: list[Piece], partitions: int | None, kinds: Kinds) -> list[Dealt]:
        """Deal all events to partitions."""
        cut = cut_of(self._work, pieces, self.limits, partitions)
        self._memory = cut.memory
        self._partitions = cut.all()
        tasks = grouped(pieces)
        sizes = [sum(piece.bytes for piece in task) for task in tasks]
        dealing = {
            f"deal-{number:05d}": partial(
                deal, number, task, self._options, kinds, self._partitions, self._folder
            )
            for number, task in enumerate(tasks)
        }
        return list(self._each(Dealt, "read", dealing, sizes).values())

    def _sort(
        self, dealt: list[Dealt], settled: Settled, kinds: Kinds
    ) -> tuple[list[PlacedRun], list[Sorted]]:
        """Sort every partition that holds something to a run; those that have events left."""
        sizes = self._fitting(dealt)
        names = {partition.name: partition for partition in sizes}
        sorting = {
            partition.name: partial(
                sort,
                partition,
                rows,
                action_codes(dealt, settled.actions),
                self._options,
                settled.split,
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
        tasks: Mapping[str, partial[T]],
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
            for name, result in self.run(left, self.limits.workers, meter.advance):
                self._work.keep(name, result)
                found[name] = result
                then(name)
        except LonghaulError as error:
            if stage == "read":  # the input is at fault
                raise
            raise Unfinished(str(error)) from error
        return {name: found[name] for name in tasks}
