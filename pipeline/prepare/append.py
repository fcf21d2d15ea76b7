"""A new day: events that extend a data set, of which only shards with their users are rewritten.

Item ids stay what they are, and new items come behind. The filters of the set hold for the new
events, its users and items stay: nothing of the past is removed. Shards without new events are
referenced where they lie.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    Base,
    Dataset,
    File,
    Lineage,
    Manifest,
)
from pipeline.prepare.card import CARD, Card, card_of, traits_in
from pipeline.prepare.deal import Dealt, action_names, counts_of, found_in
from pipeline.prepare.engine import Engine, PlacedRun, Settled
from pipeline.prepare.extend import Extended, Extension, count_extended, least_of, write_extended
from pipeline.prepare.histories import histories_of
from pipeline.prepare.inputs import Source
from pipeline.prepare.layout import check_sizes, users_per_member
from pipeline.prepare.options import PrepareOptions, lasting, version
from pipeline.prepare.output import begin_output
from pipeline.prepare.read import Kinds, Piece
from pipeline.prepare.shards import ShardCounts
from pipeline.prepare.split import resolve_split
from pipeline.prepare.tasks import Advance, Meter, Progress
from pipeline.prepare.vocabulary import number_items
from pipeline.prepare.work import Unfinished, Work
from pipeline.prepare.write import Shard, write_document, write_index, write_items


def of_base(options: PrepareOptions, base: Dataset) -> PrepareOptions:
    """The options of an extension: those of the base, but for what was given.

    Raises LonghaulError where they do not fit together.
    """
    unit = base.manifest.timestamp_unit
    if unit is not None and options.timestamp_unit not in (None, unit):
        raise LonghaulError(f"timestamp_unit: the times of {base.url} are in {unit}")
    kept = {name: v for name, v in base.manifest.lineage.options.items() if v is not None}
    given = options.model_dump(exclude_unset=True, exclude={"append"})
    if "source" not in given and {"user", "item"} <= given.keys():
        kept.pop("source", None)  # the new files are none of its
    return PrepareOptions.model_validate(kept | given | {"timestamp_unit": unit})


def check_fits(sources: list[Source], base: Dataset) -> None:
    """Raise LonghaulError where known files cannot extend ``base``: they have times in another
    unit, or have times or actions where it has none, or the other way round."""
    unit, actions = base.manifest.timestamp_unit, base.manifest.actions
    for source in sources:
        for use, has in (("timestamp", unit is not None), ("action", actions is not None)):
            if (use in source.columns) != has:
                one, other = (base.url, source.url) if has else (source.url, base.url)
                raise LonghaulError(f"{one} has a column for {use}, {other} has none")
        if source.unit not in (None, unit):
            raise LonghaulError(
                f"timestamps of {base.url} are in {unit}, those of {source.url} in {source.unit}"
            )


@dataclass(frozen=True, eq=False)
class _Left:
    """What stays of the new events. events: of each item, i64 ``[V]``, and of each action."""

    item_events: np.ndarray
    action_events: np.ndarray
    new_users: int

    @property
    def events(self) -> int:
        return int(self.item_events.sum())


class Appending:
    """The extension of one data set under way."""

    def __init__(
        self,
        base: Dataset,
        options: PrepareOptions,
        output: str,
        work: Work,
        engine: Engine,
        progress: Progress,
    ) -> None:
        self._base = base
        self._options = options
        self._output = output
        self._work = work
        self._engine = engine
        self._progress = progress

    def run(self, pieces: list[Piece], kinds: Kinds) -> Manifest:
        """Write the extended data set; its manifest."""
        base = self._base.manifest
        settle = partial(_settled, self._options, pieces, self._base)
        kinds = replace(kinds, strings=_strings(kinds, self._base))
        # Dealt to the base's shards.
        found = self._engine.shuffle(pieces, kinds, settle, len(base.shards))
        kinds, dealt, runs, done = found.kinds, found.dealt, found.runs, found.done
        names, split = found.settled.actions, found.settled.split
        counts = counts_of(dealt, self._options, pieces)
        for name in done[0].removed:
            counts.note(name, sum(each.removed[name] for each in done))

        keys, events = number_items([placed.run for placed in runs], self._engine, self._progress)
        old = self._base.read_items()
        old_keys = old.column("key").combine_chunks().cast(keys.type)
        known = _positions(old_keys, keys)
        stay = (known >= 0) | (events >= self._options.min_item_events)
        if self._options.min_item_events > 1:
            counts.note("min_item_events", int(events[~stay].sum()))
        left = self._survey(runs, stay, len(names))
        if self._options.min_user_events > 1:
            counts.note("min_user_events", counts.left - left.events)

        fresh = (known < 0) & (left.item_events > 0)
        ids = np.where(stay, known + 1, 0)
        ids[fresh] = len(old) + 1 + np.arange(int(fresh.sum()))
        used = left.action_events > 0
        used[: len(base.actions or ())] = True
        plan = Extension(
            base=self._base,
            output=self._output,
            ids=ids.astype(np.uint32),
            actions=None if base.actions is None else (np.cumsum(used) - 1).astype(np.uint8),
            least=self._options.min_user_events,
            repeats=self._options.repeats,
            split=split,
            most_users=users_per_member(base.users + left.new_users),
        )
        check_sizes(len(old) + int(fresh.sum()), 0, int(used.sum()))
        shards, changes = self._write(runs, plan, left.events)
        if self._options.repeats != "none":
            kept = sum(_events(each.after) - _events(each.before) for each in changes.values())
            counts.note("repeats", counts.left - kept)
        item_keys = pa.concat_arrays([old_keys, keys.filter(pa.array(fresh))])
        occurrences = _occurrences(old, int(fresh.sum()), list(changes.values()))
        lengths = self._lengths(changes)
        users, total = sum(lengths.values()), int(occurrences["events"].sum())
        catalogue = len(old) + int(fresh.sum())
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            catalogue_size=catalogue,
            users=users,
            events=total,
            members=sum(len(shard.index) for shard in shards),
            user_type=base.user_type,
            item_type=base.item_type,
            timestamp_unit=kinds.unit,
            actions=None if base.actions is None else np.array(names)[used].tolist(),
            split=split,
            counts=counts.removed | {"users": users, "items": catalogue, "events": total},
            index=write_index(self._output, shards),
            items=write_items(self._output, item_keys, occurrences),
            user_keys=[shard.users for shard in shards],
            shards=[shard.file for shard in shards],
            lineage=Lineage(
                base=Base(url=self._base.url, fingerprint=self._base.fingerprint),
                inputs=[file for each in dealt for file in each.inputs],
                options=lasting(self._options),
                version=version(),
            ),
        )
        past = Card.model_validate(storage.read_json(storage.join(self._base.url, CARD)))
        traits = sum((each.traits for each in done), traits_in(past))
        write_document(
            self._output, CARD, card_of(manifest, traits, lengths, occurrences["events"])
        )
        found_in(dealt).write(self._output, counts.removed["events_read"])
        write_document(self._output, MANIFEST, manifest)
        return manifest

    def _survey(self, runs: list[PlacedRun], stay: np.ndarray, actions: int) -> _Left:
        """What stays with the items that ``stay``, bool ``[V]``."""
        ids = np.where(stay, np.arange(1, len(stay) + 1), 0).astype(np.uint32)
        least = self._options.min_user_events
        tasks = {
            placed.partition.name: partial(_survey_run, placed, ids, actions, self._base, least)
            for placed in runs
        }
        meter = Meter(self._progress, "filter", len(runs))
        workers = self._engine.limits.workers
        found = [each for _, each in self._engine.run(tasks, workers, meter.advance)]
        return _Left(
            item_events=np.sum([each.item_events for each in found], axis=0),
            action_events=np.sum([each.action_events for each in found], axis=0),
            new_users=sum(each.new_users for each in found),
        )

    def _write(
        self, runs: list[PlacedRun], plan: Extension, events: int
    ) -> tuple[list[Shard], dict[int, Extended]]:
        """All shards, and what changed in those that were written."""
        base = self._base.manifest
        begin_output(self._output, self._work)
        by_shard = {
            number: [placed for placed in runs if placed.meets(number, len(base.shards))]
            for number in range(len(base.shards))
        }
        # Where the windows of a split move, they do so in every shard.
        touched = [n for n, met in by_shard.items() if met or plan.split != base.split]
        tasks: dict[str, partial[tuple[Shard, Extended]]] = {}
        for number in touched:
            kept = self._work.kept(f"shard-{number:05d}", Shard)
            if kept is None:
                tasks[str(number)] = partial(write_extended, number, by_shard[number], plan)
            else:
                tasks[str(number)] = partial(count_extended, number, kept, plan)
        total = int(sum(self._base.events)) * len(touched) // len(base.shards) + events
        meter = Meter(self._progress, "write", total)
        changes: dict[int, Extended] = {}
        written: dict[int, Shard] = {}
        try:
            workers = self._engine.limits.workers
            for name, (shard, change) in self._engine.run(tasks, workers, meter.advance):
                self._work.keep(f"shard-{int(name):05d}", shard)
                written[int(name)], changes[int(name)] = shard, change
        except LonghaulError as error:
            raise Unfinished(str(error)) from error
        rows = self._base.index_rows()
        shards = [
            written[number] if number in written else self._referenced(number, rows)
            for number in range(len(base.shards))
        ]
        return shards, changes

    def _referenced(self, number: int, rows: dict[str, list[dict[str, Any]]]) -> Shard:
        """A shard of the base as this one names it; ``rows``: of the base's index, by shard."""
        base = self._base

        def there(file: File) -> File:
            return file.model_copy(update={"path": base.locate(file.path)})

        shard, users = base.manifest.shards[number], base.manifest.user_keys[number]
        named = [row | {"shard": base.locate(shard.path)} for row in rows.get(shard.path, ())]
        return Shard(there(shard), there(users), named)

    def _lengths(self, changes: dict[int, Extended]) -> Counter[int]:
        """Users by number of events."""
        lengths: Counter[int] = Counter()
        for number in range(len(self._base.manifest.shards)):
            if number in changes:
                lengths.update(changes[number].after.lengths)
            else:
                lengths.update(self._base.read_users(number).column("events").to_pylist())
        return lengths


def _settled(
    options: PrepareOptions, pieces: list[Piece], base: Dataset, dealt: list[Dealt], kinds: Kinds
) -> Settled:
    """The base's actions and the new ones; its way to split, up to the newest event of all."""
    wanted = _strings(kinds, base)
    for use, is_string in kinds.strings.items():
        if is_string != wanted[use]:
            raise LonghaulError(_other_kind(use, base))
    counts_of(dealt, options, pieces)
    known = base.manifest.actions or []
    actions = [name for name in action_names(dealt, options) if name not in known]
    newest = [each.newest for each in dealt if each.newest is not None]
    if base.manifest.split.test is not None:
        newest.append(base.manifest.split.test[1] - 1)
    return Settled(
        actions=[*known, *actions],
        split=resolve_split(options, max(newest, default=None), kinds.unit),
    )


def _strings(kinds: Kinds, base: Dataset) -> dict[str, bool]:
    """Which ids of the base are strings. Raises LonghaulError where new ones are that may not."""
    manifest = base.manifest
    strings = {"user": manifest.user_type == "string", "item": manifest.item_type == "string"}
    for use, is_string in kinds.strings.items():
        if is_string and not strings[use]:
            raise LonghaulError(_other_kind(use, base))
    return strings


def _survey_run(
    placed: PlacedRun, ids: np.ndarray, actions: int, base: Dataset, least: int, advance: Advance
) -> _Left:
    """What stays of a run, with new ``ids`` of its items, 0 where one goes."""
    run = placed.run
    codes = run.codes()
    items = np.zeros(len(ids) + 1, np.int64)
    used = np.zeros(actions, np.int64)
    new_users = 0
    known, enough = least_of(placed, base, least)
    for part in histories_of(run, run.lengths(), ids[codes], enough):
        items += np.bincount(part.items, minlength=len(items))
        if part.actions is not None:
            used += np.bincount(part.actions, minlength=actions)
        new_users += int((~known[part.users]).sum())
    advance(1)
    return _Left(items[1:], used, new_users)


def _other_kind(use: str, base: Dataset) -> str:
    return f"the {use} ids of {base.url} are integers, those of the new events are not"


def _positions(everything: pa.Array, keys: pa.Array) -> np.ndarray:
    """Where each of ``keys`` is in ``everything``, i64; -1 where it is not."""
    found = pa.compute.index_in(keys, value_set=everything)
    positions: np.ndarray = found.fill_null(-1).to_numpy().astype(np.int64)
    return positions


def _events(counts: ShardCounts) -> int:
    return int(counts.occurrences[0].sum())


def _occurrences(old: pa.Table, fresh: int, changes: list[Extended]) -> dict[str, np.ndarray]:
    """How often each item occurs in the extended set, i64 ``[V]`` by column.

    Not of late: what that is moves with the newest event, in shards that nobody read.
    """
    names = ("events", "train_events")
    found = np.zeros((len(names), len(old) + fresh), np.int64)
    for row, name in enumerate(names):
        found[row, : len(old)] = old.column(name).to_numpy()
    for change in changes:
        found[:, change.before.items - 1] -= change.before.occurrences[: len(names)]
        found[:, change.after.items - 1] += change.after.occurrences[: len(names)]
    return dict(zip(names, found, strict=True))
