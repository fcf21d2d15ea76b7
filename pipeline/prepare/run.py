"""The stage itself: raw event logs in, a data set out, the manifest last.

One plan: deal events to partitions by user, sort each partition to a run, find what filters leave,
write shards from the runs. What is done is recorded, so that another start goes on from there.
"""

import hashlib
import json
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.manifest import (
    MANIFEST,
    RECENT_DAYS,
    RECENT_EVENTS,
    SCHEMA_VERSION,
    Dataset,
    Lineage,
    Manifest,
    Split,
    open_dataset,
)
from pipeline.prepare.append import Appending, check_fits, of_base
from pipeline.prepare.card import CARD, Traits, card_of
from pipeline.prepare.deal import Dealt, action_names, counts_of, found_in
from pipeline.prepare.embedded import Embedded
from pipeline.prepare.engine import Engine, PlacedRun, Settled
from pipeline.prepare.filters import Survey, filter_counts, survey_runs
from pipeline.prepare.inputs import Source, list_sources
from pipeline.prepare.layout import check_sizes, shard_count, users_per_member
from pipeline.prepare.options import PER_SECOND, PrepareOptions, lasting, version
from pipeline.prepare.output import WORK, begin_output, check_output, clear_partial
from pipeline.prepare.read import Kinds, Piece, survey
from pipeline.prepare.shards import COUNTS, Layout, Recent, count_stored, write_placed
from pipeline.prepare.sources import check_uses, lay_out
from pipeline.prepare.split import resolve_split
from pipeline.prepare.tally import Tally, check_parts
from pipeline.prepare.tasks import Meter, Progress
from pipeline.prepare.vocabulary import number_items
from pipeline.prepare.work import Unfinished, Work
from pipeline.prepare.write import Shard, write_document, write_index, write_items


def run(options: PrepareOptions, progress: Progress | None = None) -> Manifest:
    """Read, filter, split and write; see ``pipeline.prepare.prepare``."""
    output = storage.absolute(options.output)
    base = None if options.append is None else open_dataset(options.append)
    if base is not None:
        if f"{output}/".startswith(f"{base.url}/"):
            raise LonghaulError(
                f"output {output} lies in the data set that is extended; choose another folder"
            )
        assumed = options.timestamp_unit is None
        options = of_base(options, base)
    sources = lay_out(list_sources(options), options)
    check_output(output, options.overwrite, [source.url for source in sources])
    if base is not None:
        check_fits(sources, base)
    check_uses(sources, options)
    pieces, kinds = survey(options, sources)
    if base is not None:
        kinds = replace(kinds, assumed=assumed and kinds.unit == "s")
    work = Work(_work_folder(options, output), _fingerprint(options, sources, base))
    tell: Progress = progress or (lambda stage, done, total: None)
    # Repeats beside what a set holds are found when its shards are written.
    once = options if base is None else options.model_copy(update={"repeats": "none"})
    engine = _engine(once, work, tell)
    preparation: Appending | _Preparation
    if base is not None:
        preparation = Appending(base, options, output, work, engine, tell)
    else:
        preparation = _Preparation(options, output, work, engine, tell)
    try:
        manifest = preparation.run(pieces, kinds)
    except Unfinished as error:
        raise LonghaulError(
            f"{error}; what is done is kept in {work.url}, and the same command goes on with it"
        ) from error
    except LonghaulError:
        work.remove()
        if storage.is_local(output):
            with suppress(OSError):  # not empty, so not made for nothing
                Path(output).rmdir()
        raise
    clear_partial(output)
    work.remove()
    return manifest


def _engine(options: PrepareOptions, work: Work, progress: Progress) -> Engine:
    if options.engine == "ray":
        from pipeline.prepare.ray_engine import RayEngine

        return RayEngine(options, work, progress)
    return Embedded(options, work, progress)


def _work_folder(options: PrepareOptions, output: str) -> str:
    everywhere = options.engine == "ray"  # all nodes write there
    if options.work is not None:
        if not everywhere and not storage.is_local(options.work):
            raise LonghaulError(f"work {options.work} is no local folder")
        return storage.absolute(options.work)
    if everywhere or storage.is_local(output):
        return storage.join(output, WORK)
    name = hashlib.sha256(output.encode()).hexdigest()[:12]
    return storage.join(tempfile.gettempdir(), f"longhaul-prepare-{name}")


def _fingerprint(options: PrepareOptions, sources: list[Source], base: Dataset | None) -> str:
    """What a data set is made of: another start may go on only with the same."""
    files = []
    for source in sources:
        fs, path = storage.filesystem(source.url)
        with storage.told(source.url, "look at"):
            files.append((source.url, source.bytes, fs.ukey(path)))
    extended = None if base is None else (base.url, base.fingerprint)
    made_of = [lasting(options), options.engine, extended, files, version(), SCHEMA_VERSION]
    content = json.dumps(made_of, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


class _Preparation:
    """One data set under way."""

    def __init__(
        self,
        options: PrepareOptions,
        output: str,
        work: Work,
        engine: Engine,
        progress: Progress,
    ) -> None:
        self._options = options
        self._output = output
        self._work = work
        self._engine = engine
        self._progress = progress

    def run(self, pieces: list[Piece], kinds: Kinds) -> Manifest:
        found = self._engine.shuffle(pieces, kinds, partial(_settled, self._options, pieces))
        kinds, dealt, runs, done = found.kinds, found.dealt, found.runs, found.done
        actions, split = found.settled.actions, found.settled.split
        counts = counts_of(dealt, self._options, pieces)
        for name in done[0].removed:
            counts.note(name, sum(each.removed[name] for each in done))
        keys, events = number_items([placed.run for placed in runs], self._engine, self._progress)
        start = Survey(sum((each.tally for each in done), Tally()), events)
        self._sorted = start.tally.events
        left, stay = filter_counts(start, self._options, split, counts, partial(self._survey, runs))
        check_parts(left.tally, split, kinds.unit)
        layout, names = self._layout(left.tally, stay, split, actions, kinds)
        shards, occurrences, lengths = self._write(runs, layout, left.tally.events)
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
                options=lasting(self._options),
                version=version(),
            ),
        )
        traits = sum((each.traits for each in done), Traits())
        write_document(self._output, CARD, card_of(manifest, traits, lengths, occurrences[0]))
        found_in(dealt).write(self._output, counts.removed["events_read"])
        write_document(self._output, MANIFEST, manifest)
        return manifest

    def _survey(
        self, runs: list[PlacedRun], stay: np.ndarray, least: int, split: Split | None
    ) -> Survey:
        workers = min(self._engine.limits.workers, len(runs))
        tasks = {
            str(worker): partial(
                survey_runs, [placed.run for placed in runs[worker::workers]], stay, least, split
            )
            for worker in range(workers)
        }
        meter = Meter(self._progress, "filter", self._sorted)
        surveys = dict(self._engine.run(tasks, workers, meter.advance))
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
            since = end - RECENT_DAYS * 86_400 * PER_SECOND[kinds.unit]
        width = 4 + 8 * (kinds.unit is not None) + (codes is not None)
        layout = Layout(
            output=self._output,
            shards=shard_count(left.events, width, self._options.shard_bytes),
            most_users=users_per_member(left.users),
            ids=np.where(stay, np.cumsum(stay), 0).astype(np.uint32),
            actions=codes,
            least=self._options.min_user_events,
            split=split,
            recent=Recent(since, RECENT_EVENTS),
        )
        return layout, None if codes is None else [actions[code] for code in used.tolist()]

    def _write(
        self, runs: list[PlacedRun], layout: Layout, events: int
    ) -> tuple[list[Shard], np.ndarray, Counter[int]]:
        """Write all shards; i64 ``[3, V]``, how often each item occurs, by ``COUNTS``; and users by
        number of events."""
        # Nothing was touched so far: a mistake in the input leaves an older data set as it is.
        begin_output(self._output, self._work)
        occurrences = np.zeros((len(COUNTS), int(layout.ids.max())), np.int64)
        lengths: Counter[int] = Counter()
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
            for name, (shard, counted) in self._engine.run(
                tasks, self._writers(events, layout), meter.advance
            ):
                self._work.keep(f"shard-{int(name):05d}", shard)
                shards[int(name)] = shard
                occurrences[:, counted.items - 1] += counted.occurrences
                lengths.update(counted.lengths)
        except LonghaulError as error:
            raise Unfinished(str(error)) from error
        return [shards[number] for number in range(layout.shards)], occurrences, lengths

    def _writers(self, events: int, layout: Layout) -> int:
        """How many shards fit into memory at a time."""
        limits = self._engine.limits
        total = limits.memory * limits.workers
        return max(1, min(limits.workers, total // (80 * (events // layout.shards + 1))))


def _settled(
    options: PrepareOptions, pieces: list[Piece], dealt: list[Dealt], kinds: Kinds
) -> Settled:
    """Actions and split of what was read, which must not be nothing."""
    counts_of(dealt, options, pieces)
    newest = [each.newest for each in dealt if each.newest is not None]
    return Settled(
        actions=action_names(dealt, options),
        split=resolve_split(options, max(newest, default=None), kinds.unit),
    )
