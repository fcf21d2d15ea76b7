"""From input files to a log of codes."""

from collections.abc import Callable
from functools import partial

from pipeline.errors import LonghaulError
from pipeline.manifest import File
from pipeline.prepare import explain
from pipeline.prepare.formats import batches, text_columns, wanted
from pipeline.prepare.inputs import Source
from pipeline.prepare.keys import KeyColumn
from pipeline.prepare.log import Log
from pipeline.prepare.options import PrepareOptions
from pipeline.prepare.values import RatingColumn, TimeColumn


def read(
    options: PrepareOptions, sources: list[Source], advance: Callable[[int], None]
) -> tuple[Log, list[File]]:
    """All events of ``sources`` in order, and the lineage of each file.

    ``advance`` hears of bytes as they are read. Raises LonghaulError for anything that cannot be
    read exactly, and where there is no event at all.
    """
    columns = wanted(options)
    users = KeyColumn(options.user, "user id")
    items = KeyColumn(options.item, "item id")
    times = TimeColumn(options.timestamp, options.timestamp_unit) if options.timestamp else None
    actions = KeyColumn(options.action, "action", text=True) if options.action else None
    ratings = RatingColumn(options.rating) if options.rating else None

    lineage: list[File] = []
    events = 0
    for source in sources:
        hashes: list[str] = []
        typed = source.format in ("parquet", "jsonl")
        headed = text_columns(source, options) is None
        first = 0  # row of the batch in its file
        if times is not None:
            times.start_file()
        for batch in batches(source, options, advance, hashes.append):
            rows = len(batch["user"])
            if rows == 0:
                continue
            place = partial(_place, source, first, headed)
            users.add(batch["user"], typed, place)
            items.add(batch["item"], typed, place)
            if times is not None:
                times.add(batch["timestamp"], source.url, place)
            if actions is not None:
                actions.add(batch["action"], typed, place)
            if ratings is not None:
                ratings.add(batch["rating"], place)
            first += rows
        events += first
        lineage.append(File(path=source.url, bytes=source.bytes, sha256=hashes[0]))
    if events == 0:
        where = sources[0].url if len(sources) == 1 else f"the {len(sources)} input files"
        raise LonghaulError(f"no events in {where}; check the columns {list(columns.values())}")

    user_keys, user_codes = users.finish()
    item_keys, item_codes = items.finish()
    action_keys, action_codes = actions.finish() if actions is not None else (None, None)
    values, unit = times.finish() if times is not None else (None, None)
    log = Log(
        users=user_codes,
        items=item_codes,
        user_keys=user_keys,
        item_keys=item_keys,
        times=values,
        unit=unit,
        actions=action_codes,
        action_keys=action_keys,
        ratings=ratings.finish() if ratings is not None else None,
    )
    return log, lineage


def _place(source: Source, first: int, headed: bool, row: int) -> str:
    return explain.place(source, first + row, headed)
