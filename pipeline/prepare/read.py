"""From input files to typed events, in pieces that are read apart from one another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import LonghaulError
from pipeline.prepare.bad import MARK, BadValues, Found, Sieve
from pipeline.prepare.batch import Batch
from pipeline.prepare.events import Events
from pipeline.prepare.formats import Groups, Shape, batches, shape_of
from pipeline.prepare.inputs import Source
from pipeline.prepare.keys import KeyColumn, NeedsStrings, is_string, marked, not_utf8
from pipeline.prepare.options import PrepareOptions, Unit, Use
from pipeline.prepare.values import RatingColumn, TimeColumn, natural_unit

PIECE_ROWS = 2**22
# A row of text takes at least this many bytes, and compressed text a tenth of them.
_LEAST_BYTES, _PACKED = 4, 10


@dataclass(frozen=True)
class Kinds:
    """What the columns hold, the same in all files.

    strings: whether user and item ids are strings; else they are integers. unit: of times.
    assumed: whether the unit is nowhere said. rows: of all files, as many at the most.
    """

    strings: dict[str, bool]
    unit: Unit | None
    assumed: bool
    rows: int


@dataclass(frozen=True)
class Piece:
    """A file, or some row groups of one. rows: as many at the most, with those in lists."""

    source: Source
    groups: Groups | None
    rows: int
    bytes: int


def survey(options: PrepareOptions, sources: list[Source]) -> tuple[list[Piece], Kinds]:
    """The pieces of all files in order, and what their columns hold as far as types tell.

    Raises LonghaulError where a file cannot be opened, lacks a column, or has times in another
    unit than those before it.
    """
    strings = {"user": False, "item": False}
    unit, unit_from = options.timestamp_unit, ""
    assumed = False
    pieces: list[Piece] = []
    for source in sources:
        shape = shape_of(source, options.bad_rows == "skip")
        ids: tuple[Use, Use] = ("user", "item")
        for use in ids:
            kind = shape.kinds.get(use)
            strings[use] = strings[use] or (kind is not None and is_string(kind))
        if "timestamp" in source.columns and options.timestamp_unit is None:
            kind = shape.kinds.get("timestamp")
            assumed = assumed or source.unit is None
            natural = natural_unit(kind, source.unit or "s")
            if unit is not None and natural != unit:
                raise LonghaulError(
                    f"timestamps of {unit_from} are in {unit}, those of {source.url} in "
                    f"{natural}; set timestamp_unit"
                )
            unit, unit_from = natural, source.url
        pieces += _pieces(source, shape)
    return pieces, Kinds(strings, unit, assumed, sum(piece.rows for piece in pieces))


def _pieces(source: Source, shape: Shape) -> Iterator[Piece]:
    if not shape.groups:  # unknown, or no row at all
        size = source.bytes * (1 if source.compression is None else _PACKED)
        yield Piece(source, None, size // _LEAST_BYTES + 1, source.bytes)
        return
    total = max(1, sum(group.rows for group in shape.groups))
    first = row = rows = events = 0
    for number, group in enumerate(shape.groups, start=1):
        rows += group.rows
        events += group.events
        if events >= PIECE_ROWS or number == len(shape.groups):
            groups = Groups(first, number, row)
            yield Piece(source, groups, events, source.bytes * rows // total)
            first, row, rows, events = number, row + rows, 0, 0


def read_piece(
    piece: Piece,
    options: PrepareOptions,
    kinds: Kinds,
    found: Found,
    advance: Callable[[int], None],
    hashed: Callable[[str], None],
) -> Iterator[Events]:
    """The events of a piece in order.

    ``found`` learns what is found beside them; ``advance`` and ``hashed`` as in
    ``formats.batches``. Raises LonghaulError, with file and line, for anything that cannot be read
    exactly and is not to be skipped, NeedsStrings where an id is no integer after all.
    """
    source = piece.source
    skip = options.bad_rows == "skip"
    sieve = Sieve(source, skip, int(options.most_bad_rows * kinds.rows), found)
    columns = _columns(source, kinds)
    for batch in batches(source, sieve, piece.groups, advance, hashed):
        try:
            events = _typed(batch, columns)
        except (BadValues, NeedsStrings) as error:
            if isinstance(error, BadValues) and not skip:
                raise sieve.refused(batch.origin(int(error.rows[0])), error) from None
            if not skip:
                raise
            # Only what is good decides whether ids are integers.
            events = _typed(_without_bad(batch, columns, sieve), columns)
        sieve.check()
        if kinds.assumed and events.times is not None and _numbers(columns):
            found.note_times(events.times)
        if len(events):
            yield events
    sieve.check()
    sieve.close()


Column = KeyColumn | TimeColumn | RatingColumn


def _columns(source: Source, kinds: Kinds) -> dict[Use, Column]:
    columns: dict[Use, Column] = {}
    for use, name in source.columns.items():
        if use == "timestamp":
            assert kinds.unit is not None, "the survey found one"
            columns[use] = TimeColumn(name, kinds.unit)
        elif use == "rating":
            columns[use] = RatingColumn(name)
        else:
            columns[use] = KeyColumn(use, name, kinds.strings.get(use, True))
    return columns


def _numbers(columns: dict[Use, Column]) -> bool:
    column = columns["timestamp"]
    return isinstance(column, TimeColumn) and column.numbers


def _typed(batch: Batch, columns: dict[Use, Column]) -> Events:
    typed = {use: column.typed(batch.columns[use]) for use, column in columns.items()}
    return Events(
        users=typed["user"],
        items=typed["item"],
        times=typed.get("timestamp"),
        actions=typed.get("action"),
        ratings=typed.get("rating"),
    )


def _without_bad(batch: Batch, columns: dict[Use, Column], sieve: Sieve) -> Batch:
    """The batch without its bad rows, of which the sieve is told."""
    good = np.ones(len(batch), bool)
    for use, column in columns.items():
        array, rows = batch.columns[use], np.arange(len(batch))
        while True:
            try:
                _check_marks(array, column.name)
                column.check(array)
                break
            except BadValues as bad:
                if bad.whole:
                    raise sieve.refused(batch.origin(int(rows[bad.rows[0]])), bad) from None
                picked = array.take(pa.array(bad.rows)).cast(pa.large_string())
                values = picked.cast(pa.large_binary()).to_pylist()  # it may be no UTF-8
                for row, value in zip(rows[bad.rows].tolist(), values, strict=True):
                    if good[row]:
                        sieve.skipped(batch.origin(row), bad.column, value, bad.reason)
                sieve.check()
                good[rows[bad.rows]] = False
                kept = np.ones(len(array), bool)
                kept[bad.rows] = False
                array, rows = array.filter(pa.array(kept)), rows[kept]
    return batch.where(good)


def _check_marks(array: pa.Array, name: str) -> None:
    """Raise BadValues where a reader marked what is no UTF-8."""
    if pa.types.is_string(array.type):
        there = pc.match_substring(array, MARK)
        if pc.any(there).as_py():
            raise not_utf8(marked(there), name)
