"""The stage itself: raw event logs in, a data set out, the manifest last.

One plan: deal events to partitions by user, sort each partition to a run, find what filters leave,
write shards from the runs. What is done is recorded, so that another start goes on from there.
"""

import hashlib
import importlib.metadata
import json
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pyarrow as pa

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.manifest import MANIFEST, SCHEMA_VERSION, Lineage, Manifest, Split
from pipeline.prepare.bad import Found
from pipeline.prepare.deal import Dealt, Partition, deal, deal_again, remove
from pipeline.prepare.engine import Advance, Meter, Progress, run_tasks
from pipeline.prepare.filters import Counts, Survey, filter_counts, survey_runs
from pipeline.prepare.inputs import Source, list_sources
from pipeline.prepare.keys import NeedsStrings
from pipeline.prepare.layout import check_sizes, shard_count, users_per_member
from pipeline.prepare.options import PER_SECOND, PrepareOptions
from pipeline.prepare.output import WORK, check_output, clear_output
from pipeline.prepare.read import Kinds, Piece, survey
from pipeline.prepare.runs import StoredRun
from pipeline.prepare.shards import COUNTS, Layout, PlacedRun, Recent, count_stored, write_placed
from pipeline.prepare.sort import Sorted, sort
from pipeline.prepare.sources import lay_out
from pipeline.prepare.split import resolve_split
from pipeline.prepare.tally import Tally, check_parts
from pipeline.prepare.vocabulary import merge
from pipeline.prepare.work import Work, check_whole
from pipeline.prepare.write import Shard, write_index, write_items

T = TypeVar("T")

_TASK_ROWS = 2**24  # dealt by one task
_BASE = 300 << 20  # bytes that the process takes before it holds any event
_LEAST_MEMORY = 512 << 20
_RECENT_DAYS, _RECENT_EVENTS = 7, 10


class _Unfinished(LonghaulError):
    """Nothing is wrong with the input: what is done is worth keeping."""


def run(options: PrepareOptions, progress: Progress | None = None) -> Manifest:
    """Read, filter, split and write; see ``pipeline.prepare.prepare``."""
    output = storage.absolute(options.output)
    sources = lay_out(list_sources(options), options)
    check_output(output, options.overwrite, [source.url for source in sources])
    pieces, kinds = survey(options, sources)
    work = Work(_work_folder(options, output), _fingerprint(options, sources))
    preparation = _Preparation(
        options, output, work, _limits(options), progress or (lambda stage, done, total: None)
    )
    try:
        manifest = preparation.run(pieces, kinds)
    except _Unfinished as error:
        raise LonghaulError(
            f"{error}; what is done is kept in {work.url}, and the same command goes on with it"
        ) from error
    except LonghaulError:
        work.remove()
        if storage.is_local(output):
            with suppress(OSError):  # not empty, so not made for nothing
                Path(output).rmdir()
        raise
    work.remove()
    return manifest


@dataclass(frozen=True)
class Limits:
    """How many tasks run at a time, and the bytes of memory that each may take."""

    workers: int
    memory: int


def _limits(options: PrepareOptions) -> Limits:
    memory = options.memory or max(_LEAST_MEMORY, psutil.virtual_memory().available // 2)
    if memory < _LEAST_MEMORY:
        raise LonghaulError(f"memory: {memory:,} bytes are too few, give at least 512MiB")
    workers = options.workers or len(psutil.Process().cpu_affinity())
    workers = max(1, min(workers, (memory - _BASE) // (200 << 20)))
    return Limits(workers, (memory - _BASE) // workers)


def _work_folder(options: PrepareOptions, output: str) -> str:
    if options.work is not None:
        return storage.absolute(options.work)
    if storage.is_local(output):
        return storage.join(output, WORK)
    name = hashlib.sha256(output.encode()).hexdigest()[:12]
    return storage.join(tempfile.gettempdir(), f"longhaul-prepare-{name}")


def _fingerprint(options: PrepareOptions, sources: list[Source]) -> str:
    """What a data set is made of: another start may go on only with the same."""
    files = []
    for source in sources:
        fs, path = storage.filesystem(source.url)
        with storage.told(source.url, "look at"):
            files.append((source.url, source.bytes, fs.ukey(path)))
    content = json.dumps([_lasting(options), files, _version(), SCHEMA_VERSION], default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _lasting(options: PrepareOptions) -> dict[str, object]:
    """The options that decide what the data set holds; not where and how it is made."""
    passing = {"inputs", "output", "overwrite", "memory", "workers", "work"}
    return options.model_dump(mode="json", exclude=passing)


class _Preparation:
    """One data set under way."""

    def __init__(
        self,
        options: PrepareOptions,
        output: str,
        work: Work,
        limits: Limits,
        progress: Progress,
    ) -> None:
        self._options = options
        self._output = output
        self._work = work
        self._limits = limits
        self._progress = progress
        self._spill = Path(work.place("spill"))

    def run(self, pieces: list[Piece], kinds: Kinds) -> Manifest:
        kinds, dealt = self._deal(pieces, kinds)
        good, found = sum(each.events for each in dealt), sum((d.found for d in dealt), Found())
        found.check(good, self._options)
        counts = Counts(good + found.bad_rows)
        if self._options.bad_rows == "skip":
            counts.note("bad_rows", found.bad_rows)
        actions = self._actions(dealt)
        for name in _row_filters(self._options):
            counts.note(name, sum(each.removed.get(name, 0) for each in dealt))
        newest = [each.newest for each in dealt if each.newest is not None]
        split = resolve_split(self._options, max(newest, default=None), kinds.unit)
        runs, done = self._sort(dealt, actions, split)
        for name in next(iter(done.values())).removed:
            counts.note(name, sum(each.removed[name] for each in done.values()))
        keys, start = self._number(runs, done)
        left, stay = filter_counts(start, self._options, split, counts, partial(self._survey, runs))
        check_parts(left.tally, split, kinds.unit)
        layout, names = self._layout(left.tally, stay, split, actions, kinds)
        shards, occurrences = self._write(runs, layout, left.tally.events)
        kept = keys.filter(pa.array(stay))
        sizes = {"users": left.tally.users, "items": len(kept), "events": left.tally.events}
        index = write_index(self._output, shards)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            catalogue_size=len(kept),
            users=left.tally.users,
            events=left.tally.events,
            members=sum(len(shard.index) for shard in shards),
            user_type="string" if kinds.strings["user"] else "int64",
            item_type="string" if kinds.strings["item"] else "int64",
            timestamp_unit=kinds.unit,
            actions=names,
            split=split,
            counts=counts.removed | sizes,
            index=index,
            items=write_items(self._output, kept, dict(zip(COUNTS, occurrences, strict=True))),
            user_keys=[shard.users for shard in shards],
            shards=[shard.file for shard in shards],
            lineage=Lineage(
                inputs=[file for each in dealt for file in each.inputs],
                options=_lasting(self._options),
                version=_version(),
            ),
        )
        found.write(self._output, good)
        # Not storage.write_json: that sorts keys, and the counts are told in the order applied.
        content = manifest.model_dump_json(indent=2).encode() + b"\n"
        storage.write_bytes(storage.join(self._output, MANIFEST), content)
        return manifest

    def _deal(self, pieces: list[Piece], kinds: Kinds) -> tuple[Kinds, list[Dealt]]:
        """Deal all events to partitions; and what the columns turned out to hold."""
        kinds = replace(kinds, strings=self._work.kept("strings", dict[str, bool]) or kinds.strings)
        tasks = _grouped(pieces)
        count = self._work.kept("partitions", int)
        if count is None:
            count = self._partition_count(pieces)
            self._work.keep("partitions", count)
        self._partitions = Partition(0, 1).split(count)
        while True:
            try:
                dealt = self._each(
                    Dealt,
                    "read",
                    {
                        f"deal-{number:05d}": partial(
                            deal, number, task, self._options, kinds, self._partitions, self._spill
                        )
                        for number, task in enumerate(tasks)
                    },
                    [sum(piece.bytes for piece in task) for task in tasks],
                )
                break
            except NeedsStrings as needed:
                # Integers were dealt by another hash than strings: all over again.
                kinds = replace(kinds, strings=kinds.strings | {needed.use: True})
                self._work.restart()
                self._work.keep("strings", kinds.strings)
                self._work.keep("partitions", count)
        if not any(each.events or each.found.bad_rows for each in dealt.values()):
            files = [file.path for each in dealt.values() for file in each.inputs]
            where = files[0] if len(files) == 1 else f"the {len(files)} input files"
            columns = list(pieces[0].source.columns.values())
            raise LonghaulError(f"no events in {where}; check the columns {columns}")
        return kinds, list(dealt.values())

    def _partition_count(self, pieces: list[Piece]) -> int:
        """As many as make a partition fit into the memory of a task, by the look of the input."""
        rows = sum(piece.rows for piece in pieces)
        count = 1
        while rows * 140 / count > self._limits.memory and count < 2**12:
            count *= 2
        return count

    def _actions(self, dealt: list[Dealt]) -> list[str]:
        """The names of all actions that events have, sorted."""
        names = sorted({name for each in dealt for name in each.actions}, key=str.encode)
        for name in self._options.keep_actions or ():
            if name not in names:
                shown = ", ".join(f"'{key}'" for key in names[:20])
                raise LonghaulError(
                    f"keep_actions names '{name}', which no event has; the data have {shown}"
                )
        return names

    def _sort(
        self, dealt: list[Dealt], actions: list[str], split: Split
    ) -> tuple[list[PlacedRun], dict[Partition, Sorted]]:
        """Sort every partition that holds something to a run."""
        codes = {name: code for code, name in enumerate(actions)}
        known = [np.array([codes[name] for name in each.actions], np.uint16) for each in dealt]
        sizes = self._fitting(dealt)
        names = {partition.name: partition for partition in sizes}
        found = self._each(
            Sorted,
            "sort",
            {
                partition.name: partial(
                    sort,
                    partition,
                    rows,
                    known,
                    self._options,
                    split,
                    self._spill,
                    self._run_url(partition),
                )
                for partition, rows in sizes.items()
            },
            list(sizes.values()),
            check=lambda name, each: check_whole(self._work.place("runs", name), each.files),
            then=lambda name: remove(self._spill, names[name]),
        )
        done = dict(zip(sizes, found.values(), strict=True))
        runs = [
            PlacedRun(partition, StoredRun(self._run_url(partition)))
            for partition, each in done.items()
            if each.tally.events
        ]
        return runs, done

    def _fitting(self, dealt: list[Dealt]) -> dict[Partition, int]:
        """The partitions that hold something, and how many events; each fits into memory."""
        rows = np.sum([each.rows for each in dealt], axis=0)
        takes = np.sum([each.bytes for each in dealt], axis=0)
        waiting = [
            (partition, int(rows[n]), int(takes[n])) for n, partition in enumerate(self._partitions)
        ]
        fitting: dict[Partition, int] = {}
        while waiting:
            partition, count, need = waiting.pop(0)
            if need <= self._limits.memory or partition.count >= 2**24:
                if count:
                    fitting[partition] = count
                continue
            ways = 2
            while need / ways > self._limits.memory / 2:
                ways *= 2
            name = f"deal-{partition.name}"
            again = self._work.kept(name, Dealt)
            if again is None:
                again = deal_again(partition, ways, len(dealt), self._spill)
                self._work.keep(name, again)
            remove(self._spill, partition)
            parts = partition.split(ways)
            waiting = [*zip(parts, again.rows, again.bytes, strict=True), *waiting]
        return fitting

    def _run_url(self, partition: Partition) -> str:
        return self._work.place("runs", partition.name)

    def _number(
        self, runs: list[PlacedRun], done: Mapping[Partition, Sorted]
    ) -> tuple[pa.Array, Survey]:
        """The keys of all items, of which every run learns its codes; and what there is."""
        keys, events = merge(placed.run.items() for placed in runs)
        for placed in runs:
            placed.run.number_items(keys)
        return keys, Survey(sum((each.tally for each in done.values()), Tally()), events)

    def _survey(
        self, runs: list[PlacedRun], stay: np.ndarray, least: int, split: Split | None
    ) -> Survey:
        workers = min(self._limits.workers, len(runs))
        tasks = {
            str(worker): _ignoring(
                partial(
                    survey_runs,
                    [placed.run for placed in runs[worker::workers]],
                    stay,
                    least,
                    split,
                )
            )
            for worker in range(workers)
        }
        self._progress("filter", 0, None)
        surveys = dict(run_tasks(tasks, workers, lambda count: None))
        return sum(surveys.values(), Survey(Tally(), np.zeros(len(stay), np.int64)))

    def _layout(
        self, left: Tally, stay: np.ndarray, split: Split, actions: list[str], kinds: Kinds
    ) -> tuple[Layout, list[str] | None]:
        """How it is written, and the names of the actions that are left."""
        used = np.flatnonzero(np.array(left.actions, np.int64))
        check_sizes(int(stay.sum()), left.longest, len(used))
        codes = None
        if actions:
            codes = np.zeros(len(left.actions), np.uint8)
            codes[used] = np.arange(len(used), dtype=np.uint8)
        since = None
        if kinds.unit is not None:
            end = split.train_end
            if end is None:
                end = 1 + (left.newest_trained or 0)
            since = end - _RECENT_DAYS * 86_400 * PER_SECOND[kinds.unit]
        width = 4 + 8 * (kinds.unit is not None) + (codes is not None)
        layout = Layout(
            output=self._output,
            shards=shard_count(left.events, width, self._options.shard_bytes),
            most_users=users_per_member(left.users),
            ids=np.where(stay, np.cumsum(stay), 0).astype(np.uint32),
            actions=codes,
            least=self._options.min_user_events,
            split=split,
            recent=Recent(since, _RECENT_EVENTS),
        )
        return layout, None if codes is None else [actions[code] for code in used.tolist()]

    def _write(
        self, runs: list[PlacedRun], layout: Layout, events: int
    ) -> tuple[list[Shard], np.ndarray]:
        """Write all shards; and i64 ``[3, V]``, how often each item occurs, by ``COUNTS``."""
        if self._work.kept("cleared", bool) is None:
            # Nothing was touched so far: a mistake in the input leaves an older data set as it is.
            clear_output(self._output)
            self._work.keep("cleared", True)
        occurrences = np.zeros((len(COUNTS), int(layout.ids.max())), np.int64)
        meter = Meter(self._progress, "write", events)
        shards: dict[int, Shard] = {}
        tasks = {}
        for number in range(layout.shards):
            kept = self._work.kept(f"shard-{number:05d}", Shard)
            if kept is None:
                tasks[str(number)] = partial(write_placed, number, runs, layout)
            else:
                shards[number] = kept
                tasks[str(number)] = partial(count_stored, kept, layout)
        try:
            for name, (shard, counted) in run_tasks(
                tasks, self._writers(events, layout), meter.advance
            ):
                self._work.keep(f"shard-{int(name):05d}", shard)
                shards[int(name)] = shard
                occurrences[:, counted.items - 1] += counted.counts
        except LonghaulError as error:
            raise _Unfinished(str(error)) from error
        return [shards[number] for number in range(layout.shards)], occurrences

    def _writers(self, events: int, layout: Layout) -> int:
        """How many shards fit into memory at a time."""
        total = self._limits.memory * self._limits.workers
        return max(1, min(self._limits.workers, total // (80 * (events // layout.shards + 1))))

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
        for name, result in run_tasks(left, self._limits.workers, meter.advance):
            self._work.keep(name, result)
            found[name] = result
            then(name)
        return {name: found[name] for name in tasks}


def _row_filters(options: PrepareOptions) -> list[str]:
    """The filters on rows that were asked for, in the order applied."""
    return [name for name in ("min_rating", "keep_actions") if getattr(options, name) is not None]


def _grouped(pieces: list[Piece]) -> list[list[Piece]]:
    """Neighbours together, until they are worth a task."""
    groups: list[list[Piece]] = [[]]
    for piece in pieces:
        if groups[-1] and sum(each.rows for each in groups[-1]) + piece.rows > _TASK_ROWS:
            groups.append([])
        groups[-1].append(piece)
    return groups


def _ignoring(task: Callable[[], T]) -> Callable[[Advance], T]:
    """A task that tells nothing of how far it is."""
    return lambda advance: task()


def _version() -> str:
    """The version of the checkout that runs, else of the installed package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text())["project"]["version"])
    return importlib.metadata.version("longhaul")
