"""The engine for a Ray cluster: Ray Data shuffles the events, tasks of Ray do the rest.

Records and runs lie in the work folder, which all nodes reach, so a lost node takes nothing with it
but tasks under way, and events between the two halves of the shuffle, which Ray makes again.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.data

from pipeline.errors import LonghaulError
from pipeline.manifest import Split
from pipeline.prepare.deal import Dealt, Partition, action_codes, homes_of, read_blocks
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
from pipeline.prepare.keys import NeedsStrings
from pipeline.prepare.options import PrepareOptions
from pipeline.prepare.read import Kinds, Piece
from pipeline.prepare.runs import StoredRun
from pipeline.prepare.sort import Sorted, sort_columns
from pipeline.prepare.tasks import Advance, Meter, Progress
from pipeline.prepare.work import Unfinished, Work, check_whole

T = TypeVar("T")

_ROW_BITS = 40  # of an event's place: the task that read it, and which of its events it is
_LOOK = 1.0  # seconds between looks at how far reading is
_TRIES = 3  # again, of a task whose node is lost
_BASE = 300 << 20  # bytes that a worker process takes before it holds any event
_LEAST_MEMORY = 512 << 20


def _limits(options: PrepareOptions) -> Limits:
    """What the options say, or the cluster has. Raises LonghaulError for too little memory."""
    if not ray.is_initialized():
        raise LonghaulError("engine ray: this process is not connected to Ray; call ray.init first")
    have = ray.cluster_resources()
    workers = options.workers or max(1, int(have.get("CPU", 1)))
    memory = (options.memory or int(have["memory"]) // 2) // workers
    if memory < _LEAST_MEMORY:
        raise LonghaulError(
            f"memory: {memory:,} bytes for each of {workers} tasks are too few, give each 512MiB"
        )
    return Limits(workers, memory - _BASE)


@dataclass
class _Failed:
    """Why a task of the shuffle ended: an id ``needs`` strings, or the ``input`` is at fault, or
    neither."""

    message: str
    needs: str | None = None
    input: bool = True


@dataclass
class _Decided:
    """``Settled``, and of each task that read what its codes of actions stand for."""

    actions: list[str]
    split: Split
    codes: list[list[int]]


@dataclass(frozen=True)
class _Shuffle:
    """What the tasks of the shuffle share. tasks: what each reads. done: names of the partitions
    that are runs already."""

    options: PrepareOptions
    work: Work
    kinds: Kinds
    tasks: list[list[Piece]]
    partitions: list[Partition]
    settle: Settle
    done: frozenset[str]

    def dealt(self) -> list[Dealt]:
        """What all tasks read."""
        return [_kept(self.work, f"deal-{n:05d}", Dealt) for n in range(len(self.tasks))]

    def decided(self) -> _Decided:
        """What follows from all that was read; whoever comes first decides."""
        decided = self.work.kept("decided", _Decided)
        if decided is None:
            dealt = self.dealt()
            settled = self.settle(dealt, self.kinds)
            codes = [found.tolist() for found in action_codes(dealt, settled.actions)]
            decided = _Decided(settled.actions, settled.split, codes)
            self.work.keep("decided", decided)
        return decided


class RayEngine:
    """The engine of one preparation on the cluster that this process is connected to."""

    def __init__(self, options: PrepareOptions, work: Work, progress: Progress) -> None:
        self.limits = _limits(options)
        self._options = options
        self._work = work
        self._progress = progress

    def run(
        self, tasks: Mapping[str, partial[T]], workers: int, advance: Advance
    ) -> Iterator[tuple[str, T]]:
        """See Engine."""
        call = ray.remote(_call).options(max_retries=_TRIES, **self._resources())
        shared = _shared(list(tasks.values()))
        waiting = list(tasks.items())[::-1]
        under_way: dict[Any, str] = {}
        while waiting or under_way:
            while waiting and len(under_way) < workers:
                name, task = waiting.pop()
                given = [shared.get(id(argument), argument) for argument in task.args]
                under_way[call.remote(task.func, *given)] = name
            (ready,), _ = ray.wait(list(under_way), num_returns=1)
            name = under_way.pop(ready)
            try:
                result, count = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, LonghaulError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                raise Unfinished(_line(error)) from error
            advance(count)
            yield name, result

    def shuffle(
        self, pieces: list[Piece], kinds: Kinds, settle: Settle, partitions: int | None = None
    ) -> Shuffled:
        """See Engine."""
        kinds, shuffle = as_typed(
            self._work, kinds, partial(self._shuffled, pieces, settle, partitions)
        )
        dealt, decided = shuffle.dealt(), shuffle.decided()
        found = {
            partition: sorted_
            for partition in shuffle.partitions
            if (sorted_ := self._work.kept(partition.name, Sorted)) is not None
        }
        kept = sum(sum(each.rows) for each in dealt)
        there = sum(each.tally.events + sum(each.removed.values()) for each in found.values())
        if kept != there:
            raise LonghaulError(f"{kept:,} events were shuffled, {there:,} came out")
        runs = [
            PlacedRun(partition, StoredRun(self._work.place("runs", partition.name)))
            for partition, each in found.items()
            if each.tally.events
        ]
        settled = Settled(decided.actions, decided.split)
        return Shuffled(kinds, dealt, settled, runs, list(found.values()))

    def _shuffled(
        self, pieces: list[Piece], settle: Settle, partitions: int | None, kinds: Kinds
    ) -> _Shuffle:
        """Shuffle what is not yet shuffled."""
        work = self._work
        cut = cut_of(work, pieces, self.limits, partitions)
        known = {partition.name: work.kept(partition.name, Sorted) for partition in cut.all()}
        for name, each in known.items():
            if each is not None:
                check_whole(work.place("runs", name), each.files)
        shuffle = _Shuffle(
            options=self._options,
            work=work,
            kinds=kinds,
            tasks=grouped(pieces),
            partitions=cut.all(),
            settle=settle,
            done=frozenset(name for name, each in known.items() if each is not None),
        )
        if work.kept("shuffled", bool) is None:
            self._sort(shuffle)
            work.keep("shuffled", True)
        return shuffle

    def _resources(self) -> dict[str, int]:
        """What Ray sets aside for a task."""
        return {"num_cpus": 1, "memory": self.limits.memory + _BASE}

    def _sort(self, shuffle: _Shuffle) -> None:
        """Ray Data's shuffle, with our tasks at both ends."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.issue_detectors_config.detectors = []
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        work = self._work
        work.forget("failed")
        given: dict[str, Any] = {
            "batch_size": None,
            "batch_format": "pyarrow",
            "fn_kwargs": {"shuffle": shuffle},
            "compute": ray.data.TaskPoolStrategy(size=self.limits.workers),
            **self._resources(),
        }
        numbers = [{"task": number} for number in range(len(shuffle.tasks))]
        dataset = (
            ray.data.from_items(numbers, override_num_blocks=len(numbers))
            .map_batches(_read, **given)
            .repartition(len(shuffle.partitions), keys=["partition"])
            .map_batches(_sort_block, **given)
        )
        sizes = [sum(piece.bytes for piece in task) for task in shuffle.tasks]
        meter: Meter | None = None
        try:
            with _watched(work, sizes, self._progress):
                for row in dataset.iter_rows():
                    if meter is None:
                        kept = sum(sum(each.rows) for each in shuffle.dealt())
                        meter = Meter(self._progress, "sort", kept)
                    meter.advance(row["events"])
        except Exception as error:  # Ray wraps what its tasks raise in types that differ
            failed = work.kept("failed", _Failed)
            if failed is None:
                if isinstance(error, ray.exceptions.RayTaskError):  # a mistake of ours
                    raise
                raise Unfinished(_line(error)) from error
            if failed.needs is not None:
                raise NeedsStrings(failed.needs) from None
            raise (LonghaulError if failed.input else Unfinished)(failed.message) from None


def _shared(tasks: list[partial[T]]) -> dict[int, Any]:
    """References to the arguments that several tasks have, by ``id``: they are sent only once."""
    counts: dict[int, int] = {}
    arguments = {}
    for task in tasks:
        for argument in task.args:
            counts[id(argument)] = counts.get(id(argument), 0) + 1
            arguments[id(argument)] = argument
    return {key: ray.put(arguments[key]) for key, count in counts.items() if count > 1}


def _call(function: Callable[..., T], *arguments: Any) -> tuple[T, int]:
    """What a task returns, and how far it advanced."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count

    return function(*arguments, advance), done


def _line(error: Exception) -> str:
    """What Ray says, as one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"Ray: {type(error).__name__}: {lines[-1] if lines else 'no further detail'}"


@contextmanager
def _telling(work: Work, input: bool) -> Iterator[None]:
    """Record why a task of the shuffle fails: what Ray makes of exceptions cannot be relied on."""
    try:
        yield
    except NeedsStrings as error:
        work.keep("failed", _Failed("an id is no integer", needs=error.use))
        raise
    except Unfinished as error:
        work.keep("failed", _Failed(str(error), input=False))
        raise
    except LonghaulError as error:
        work.keep("failed", _Failed(str(error), input=input))
        raise


def _read(block: pa.Table, shuffle: _Shuffle) -> Iterator[pa.Table]:
    """The first half of the shuffle: the events of the tasks in a block, and where each belongs.

    Columns: those of ``read_blocks``, the index of the user's partition, and the event's place in
    the order of files and rows.
    """
    for number in block.column("task").to_pylist():
        with _telling(shuffle.work, input=True):
            yield from _placed(number, shuffle)


def _placed(number: int, shuffle: _Shuffle) -> Iterator[pa.Table]:
    finished = [partition.name in shuffle.done for partition in shuffle.partitions]
    dealt = Dealt(rows=[0])
    pieces = shuffle.tasks[number]
    for columns in read_blocks(pieces, shuffle.options, shuffle.kinds, dealt, lambda count: None):
        start, count = dealt.rows[0], len(columns["user"])
        homes = homes_of(columns["user"], shuffle.partitions)
        places = (number << _ROW_BITS) + np.arange(start, start + count)
        dealt.rows[0] += count
        table = pa.table({**columns, "partition": pa.array(homes), "place": pa.array(places)})
        yield table.filter(pa.array(~np.array(finished)[homes])) if any(finished) else table
    shuffle.work.keep(f"deal-{number:05d}", dealt)


def _sort_block(block: pa.Table, shuffle: _Shuffle) -> Iterator[pa.Table]:
    """The second half: every partition in a block, which is all there, becomes a run."""
    if len(block) == 0:
        return
    with _telling(shuffle.work, input=True):
        decided = shuffle.decided()
    homes = block.column("partition").to_numpy()
    for home in np.unique(homes).tolist():
        partition = shuffle.partitions[home]
        columns = _in_order(block.filter(pa.array(homes == home)), decided)
        url = shuffle.work.place("runs", partition.name)
        with _telling(shuffle.work, input=False):
            options, unit = shuffle.options, shuffle.kinds.unit
            found = sort_columns(columns, options, decided.split, unit, url)
            shuffle.work.keep(partition.name, found)
        yield pa.table({"events": [found.tally.events + sum(found.removed.values())]})


def _in_order(events: pa.Table, decided: _Decided) -> dict[str, pa.Array]:
    """The columns of a partition's events in the order of files and rows."""
    places = events.column("place").to_numpy()
    order = np.argsort(places, kind="stable")
    events = events.drop_columns(["partition", "place"]).take(pa.array(order))
    columns = {name: events.column(name).combine_chunks() for name in events.column_names}
    if "action" in columns:
        tasks = (places >> _ROW_BITS)[order]
        codes = columns["action"].to_numpy()
        longest = max(len(known) for known in decided.codes)
        known = np.array([[*each, *[0] * (longest - len(each))] for each in decided.codes])
        columns["action"] = pa.array(known.astype(np.uint16)[tasks, codes])
    return columns


@contextmanager
def _watched(work: Work, sizes: list[int], progress: Progress) -> Iterator[None]:
    """Tell how far reading is while the block runs, by the records of its tasks."""
    stop = threading.Event()
    meter = Meter(progress, "read", sum(sizes))

    def watch() -> None:
        left = dict(enumerate(sizes))
        while left and not stop.wait(_LOOK):
            there = set(work.names())
            for number in [n for n in left if f"deal-{n:05d}" in there]:
                meter.advance(left.pop(number))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _kept(work: Work, name: str, kind: type[T]) -> T:
    """A record that must be there."""
    found = work.kept(name, kind)
    if found is None:
        raise Unfinished(f"{work.url} lacks the record {name}: do all nodes reach that folder?")
    return found
