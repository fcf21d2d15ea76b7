"""From input files to typed events, in pieces that are read apart from one another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from pipeline.errors import LonghaulError
from pipeline.prepare import explain
from pipeline.prepare.events import Events
from pipeline.prepare.formats import Groups, Shape, batches, shape_of, text_columns
from pipeline.prepare.inputs import Source
from pipeline.prepare.keys import KeyColumn, is_string
from pipeline.prepare.options import PrepareOptions, Unit
from pipeline.prepare.values import RatingColumn, TimeColumn, natural_unit

PIECE_ROWS = 2**22
# A row of text takes at least this many bytes, and compressed text a tenth of them.
_LEAST_BYTES, _PACKED = 4, 10


@dataclass(frozen=True)
class Kinds:
    """What the columns hold, the same in all files.

    strings: whether user and item ids are strings; else they are integers. unit: of times.
    """

    strings: dict[str, bool]
    unit: Unit | None


@dataclass(frozen=True)
class Piece:
    """A file, or some row groups of one. rows: as many at the most."""

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
    pieces: list[Piece] = []
    for source in sources:
        shape = shape_of(source, options)
        for use in strings:
            kind = shape.kinds.get(use)
            strings[use] = strings[use] or (kind is not None and is_string(kind))
        if options.timestamp is not None and options.timestamp_unit is None:
            kind = shape.kinds.get("timestamp")
            natural: Unit = "s" if kind is None else natural_unit(kind)
            if unit is not None and natural != unit:
                raise LonghaulError(
                    f"timestamps of {unit_from} are in {unit}, those of {source.url} in "
                    f"{natural}; set timestamp_unit"
                )
            unit, unit_from = natural, source.url
        pieces += _pieces(source, shape)
    return pieces, Kinds(strings, unit)


def _pieces(source: Source, shape: Shape) -> Iterator[Piece]:
    if not shape.groups:  # unknown, or no row at all
        size = source.bytes * (1 if source.compression is None else _PACKED)
        yield Piece(source, None, size // _LEAST_BYTES + 1, source.bytes)
        return
    total = max(1, sum(shape.groups))
    first = row = rows = 0
    for group, count in enumerate(shape.groups):
        rows += count
        if rows >= PIECE_ROWS or group == len(shape.groups) - 1:
            groups = Groups(first, group + 1, row, rows)
            yield Piece(source, groups, rows, source.bytes * rows // total)
            first, row, rows = group + 1, row + rows, 0


def read_piece(
    piece: Piece,
    options: PrepareOptions,
    kinds: Kinds,
    advance: Callable[[int], None],
    hashed: Callable[[str], None],
) -> Iterator[Events]:
    """The events of a piece in order.

    ``advance`` and ``hashed`` as in ``formats.batches``. Raises LonghaulError, with file and line,
    for anything that cannot be read exactly, NeedsStrings where an id is no integer after all.
    """
    source = piece.source
    users = KeyColumn("user", options.user, kinds.strings["user"])
    items = KeyColumn("item", options.item, kinds.strings["item"])
    actions = KeyColumn("action", options.action, strings=True) if options.action else None
    ratings = RatingColumn(options.rating) if options.rating else None
    times = None
    if options.timestamp is not None:
        assert kinds.unit is not None, "the survey found one"
        times = TimeColumn(options.timestamp, kinds.unit)
    headed = text_columns(source, options) is None
    row = 0 if piece.groups is None else piece.groups.row
    for batch in batches(source, options, piece.groups, advance, hashed):
        if len(batch["user"]) == 0:
            continue
        place = partial(_place, source, row, headed)
        yield Events(
            users=users.typed(batch["user"], place),
            items=items.typed(batch["item"], place),
            times=None if times is None else times.typed(batch["timestamp"], place),
            actions=None if actions is None else actions.typed(batch["action"], place),
            ratings=None if ratings is None else ratings.typed(batch["rating"], place),
        )
        row += len(batch["user"])


def _place(source: Source, first: int, headed: bool, row: int) -> str:
    return explain.place(source, first + row, headed)
