"""The first half of the shuffle: every event goes to the partition that its user's hash names.

A partition is a range of hashes. Tasks read pieces of the input apart from one another; each
appends to a file of its own in the folder of every partition, so the order of files and rows is the
order of tasks, and of blocks in a file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import LonghaulError
from pipeline.manifest import File
from pipeline.prepare import spill
from pipeline.prepare.bad import Found
from pipeline.prepare.counts import Counts
from pipeline.prepare.events import Events, joined
from pipeline.prepare.keys import hash_keys
from pipeline.prepare.layout import shard_of
from pipeline.prepare.options import PrepareOptions
from pipeline.prepare.read import Kinds, Piece, read_piece
from pipeline.prepare.tasks import Advance

BLOCK_ROWS = 2**21
_U16 = 2**16


@dataclass(frozen=True)
class Partition:
    """The users whose hash lies in part ``index`` of ``count`` equal parts of all hashes."""

    index: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.index:05d}-of-{self.count:05d}"

    def split(self, ways: int) -> list["Partition"]:
        """As ``ways`` smaller ones."""
        return [Partition(self.index * ways + way, self.count * ways) for way in range(ways)]


@dataclass
class Dealt:
    """What a task dealt.

    events: as many were read. found: beside them. removed: by filters on rows, in their order.
    oldest, newest: times of the events that were kept. actions: what the codes of actions in its
    files stand for. rows, bytes: of each partition, the bytes of what it takes in memory. inputs:
    of the files it read.
    """

    events: int = 0
    found: Found = field(default_factory=Found)
    removed: dict[str, int] = field(default_factory=dict)
    oldest: int | None = None
    newest: int | None = None
    actions: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    inputs: list[File] = field(default_factory=list)


def deal(
    number: int,
    pieces: list[Piece],
    options: PrepareOptions,
    kinds: Kinds,
    partitions: list[Partition],
    folder: Path,
    advance: Advance,
) -> Dealt:
    """Task ``number``: deal the events of ``pieces`` to all ``partitions``.

    Raises LonghaulError and NeedsStrings as ``read_piece`` does.
    """
    for partition in partitions:  # what an interrupted start left
        path_of(folder, partition, number).unlink(missing_ok=True)
    dealt = Dealt(rows=[0] * len(partitions), bytes=[0] * len(partitions))
    for columns in read_blocks(pieces, options, kinds, dealt, advance):
        _deal_block(number, columns, partitions, folder, dealt)
        del columns  # before the next block is read
    return dealt


def read_blocks(
    pieces: list[Piece], options: PrepareOptions, kinds: Kinds, dealt: Dealt, advance: Advance
) -> Iterator[spill.Columns]:
    """The events of ``pieces`` that filters on rows leave, in blocks; ``dealt`` learns of all.

    Columns: user, item, and time and action (u16, a position in ``dealt.actions``) where the log
    has them. Raises LonghaulError and NeedsStrings as ``read_piece`` does.
    """
    codes: dict[str, int] = {}
    waiting: list[Events] = []

    def taken() -> spill.Columns:
        columns = _columns(joined(waiting), codes)
        waiting.clear()
        return columns

    for piece in pieces:
        hashed = _noting(piece, dealt)
        for events in read_piece(piece, options, kinds, dealt.found, advance, hashed):
            dealt.events += len(events)
            if events.actions is not None:
                _note_actions(events.actions, codes, piece.source.columns["action"])
            events = _filter_rows(events, options, dealt.removed)
            if len(events) == 0:
                continue
            if events.times is not None:
                oldest, newest = int(events.times.min()), int(events.times.max())
                dealt.oldest = oldest if dealt.oldest is None else min(oldest, dealt.oldest)
                dealt.newest = newest if dealt.newest is None else max(newest, dealt.newest)
            waiting.append(events)
            if sum(map(len, waiting)) >= BLOCK_ROWS:
                yield taken()
    if waiting:
        yield taken()
    dealt.actions = list(codes)


def deal_again(partition: Partition, ways: int, tasks: int, folder: Path) -> Dealt:
    """Deal a partition that is too large to smaller ones."""
    smaller = partition.split(ways)
    for part in smaller:  # what an interrupted start left
        remove(folder, part)
    dealt = Dealt(rows=[0] * ways, bytes=[0] * ways)
    for number in range(tasks):
        path = path_of(folder, partition, number)
        for columns in spill.blocks(path) if path.exists() else ():
            _deal_block(number, columns, smaller, folder, dealt)
    return dealt


def path_of(folder: Path, partition: Partition, number: int) -> Path:
    """The file of a task in the folder of a partition; it is missing where nothing was dealt."""
    return folder / partition.name / f"{number:05d}.arrows"


def remove(folder: Path, partition: Partition) -> None:
    """Free what a partition takes on disk."""
    place = folder / partition.name
    if place.exists():
        for path in place.iterdir():
            path.unlink()
        place.rmdir()


def _noting(piece: Piece, dealt: Dealt) -> Callable[[str], None]:
    def hashed(digest: str) -> None:
        source = piece.source
        dealt.inputs.append(File(path=source.url, bytes=source.bytes, sha256=digest))

    return hashed


def _note_actions(actions: pa.Array, codes: dict[str, int], column: str) -> None:
    for name in actions.unique().to_pylist():
        codes.setdefault(name, len(codes))
    if len(codes) > _U16:
        raise LonghaulError(
            f"column '{column}' has more than {_U16} different actions; is it the right column?"
        )


def _filter_rows(events: Events, options: PrepareOptions, removed: dict[str, int]) -> Events:
    """Drop events by what stands in their own row: rating and action."""

    def keep(name: str, kept: np.ndarray) -> Events:
        removed[name] = removed.get(name, 0) + len(kept) - int(kept.sum())
        return events.where(kept)

    if options.min_rating is not None:
        assert events.ratings is not None
        events = keep("min_rating", events.ratings >= options.min_rating)
    if options.keep_actions is not None:
        assert events.actions is not None
        names = pa.array(options.keep_actions, pa.large_string())
        kept = pa.compute.is_in(events.actions, value_set=names)
        events = keep("keep_actions", kept.to_numpy(zero_copy_only=False))
    return events


def _columns(events: Events, codes: dict[str, int]) -> spill.Columns:
    columns = {"user": events.users, "item": events.items}
    if events.times is not None:
        columns["time"] = pa.array(events.times)
    if events.actions is not None:
        names = pa.array(list(codes), pa.large_string())
        found = pa.compute.index_in(events.actions, value_set=names)
        columns["action"] = found.cast(pa.uint16())
    return columns


def _deal_block(
    number: int,
    columns: spill.Columns,
    partitions: list[Partition],
    folder: Path,
    dealt: Dealt,
) -> None:
    for count, (index, table) in zip(*_parts(columns, partitions), strict=True):
        partition = partitions[index]
        path = path_of(folder, partition, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        spill.append(path, table)
        dealt.rows[index] += count
        dealt.bytes[index] += memory_of(table)


def memory_of(table: pa.Table) -> int:
    """Bytes that sorting these rows takes, at the most."""
    strings: int = sum(
        column.nbytes for column in table.columns if pa.types.is_large_string(column.type)
    )
    return 90 * len(table) + 3 * strings


def _parts(
    columns: spill.Columns, partitions: list[Partition]
) -> tuple[list[int], Iterator[tuple[int, pa.Table]]]:
    """The rows of each partition that gets some, in order; first how many."""
    homes = homes_of(columns["user"], partitions)
    counts = np.bincount(homes, minlength=len(partitions))
    given = np.flatnonzero(counts)
    ends = np.cumsum(counts)
    # numpy sorts 16 bits by counting: in linear time, and stable.
    order = np.argsort(homes, kind="stable") if len(given) > 1 else None
    narrow = {}
    for name, array in columns.items():
        values, base = spill.narrowed(array)
        narrow[name] = (values if order is None else picked(values, order), base)
    whole = spill.table_of(narrow)
    tables = (
        (int(index), whole.slice(int(ends[index] - counts[index]), int(counts[index])))
        for index in given
    )
    return counts[given].tolist(), tables


def homes_of(users: pa.Array, partitions: list[Partition]) -> np.ndarray:
    """The place in ``partitions``, neighbours that hold them all, of the user of each row, u16."""
    coded = users.dictionary_encode()
    home = shard_of(hash_keys(coded.dictionary), partitions[0].count) - partitions[0].index
    homes: np.ndarray = home.astype(np.uint16)[coded.indices.to_numpy()]
    return homes


def picked(array: pa.Array, rows: np.ndarray) -> pa.Array:
    """The entries at ``rows``; numpy does it for numbers in a third of the time."""
    if pa.types.is_large_string(array.type):
        return array.take(pa.array(rows))
    return pa.array(array.to_numpy()[rows])


def found_in(dealt: list[Dealt]) -> Found:
    """What was found in all rows, beside events."""
    return sum((each.found for each in dealt), Found())


def counts_of(dealt: list[Dealt], options: PrepareOptions, pieces: list[Piece]) -> Counts:
    """The events that were read, and what filters on rows removed.

    Raises LonghaulError where there are none, too many are bad, or ``keep_actions`` names an action
    that no event has.
    """
    found = found_in(dealt)
    events = sum(each.events for each in dealt)
    if not events + found.bad_rows:
        files = [file.path for each in dealt for file in each.inputs]
        where = files[0] if len(files) == 1 else f"the {len(files)} input files"
        columns = list(pieces[0].source.columns.values())
        raise LonghaulError(f"no events in {where}; check the columns {columns}")
    found.check(events, options)
    action_names(dealt, options)  # a wrong name, before it is said that it left nothing
    counts = Counts(events + found.bad_rows)
    if options.bad_rows == "skip":
        counts.note("bad_rows", found.bad_rows)
    for name in ("min_rating", "keep_actions"):
        if getattr(options, name) is not None:
            counts.note(name, sum(each.removed.get(name, 0) for each in dealt))
    return counts


def action_names(dealt: list[Dealt], options: PrepareOptions) -> list[str]:
    """The names of all actions that events have, sorted.

    Raises LonghaulError where ``keep_actions`` names another.
    """
    names = sorted({name for each in dealt for name in each.actions}, key=str.encode)
    for name in options.keep_actions or ():
        if name not in names:
            shown = ", ".join(f"'{key}'" for key in names[:20])
            raise LonghaulError(
                f"keep_actions names '{name}', which no event has; the data have {shown}"
            )
    return names


def action_codes(dealt: list[Dealt], names: list[str]) -> list[np.ndarray]:
    """Of each task what its codes of actions are among all ``names``, u16."""
    codes = {name: code for code, name in enumerate(names)}
    return [np.array([codes[name] for name in each.actions], np.uint16) for each in dealt]
