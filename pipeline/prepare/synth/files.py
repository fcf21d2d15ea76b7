"""The synthetic log as files: slices drawn ahead while the ones before them are written."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.prepare.synth.draw import Slice, slices
from pipeline.prepare.synth.options import SynthOptions
from pipeline.prepare.synth.truth import save

EVENTS = "events.parquet"
TRUTH = "truth.json"
# A log of more events is a folder with a file a day, of the same name.
ONE_FILE = 2**24
_ROW_GROUP = 2**20
_TYPES = {"user": pa.int32(), "item": pa.int32(), "timestamp": pa.int64()}
_SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _TYPES.items()])
# Ids have no order to gain from: cut into planes of bytes, the upper ones are nearly constant, and
# LZ4 takes those away. Times rise by nearly nothing.
_ENCODING = {
    "user": "BYTE_STREAM_SPLIT",
    "item": "BYTE_STREAM_SPLIT",
    "timestamp": "DELTA_BINARY_PACKED",
}
T = TypeVar("T")


def generate(
    options: SynthOptions, url: str, progress: Callable[[int], None] | None = None
) -> None:
    """Write ``events.parquet`` and, at the end, ``truth.json`` below ``url``.

    The log has the columns user (1 to users), item (1 to items) and timestamp (seconds), the
    events of all users mixed, in the order of their times: one file, or for many events a folder
    with a file a day, to be read in the order of names. The same options give the same bytes.
    ``progress`` is called as ``progress(events done)``.
    """
    whole = storage.join(url, EVENTS)
    for name in (TRUTH, EVENTS):  # no day of an older log may stay
        storage.remove(storage.join(url, name))
    one_file = options.events <= ONE_FILE
    done = 0
    drawn = _ahead(slices(options, len(os.sched_getaffinity(0))))
    for day, parts in groupby(drawn, lambda part: 0 if one_file else part.day):
        file_url = whole if one_file else storage.join(whole, f"day-{day:05d}.parquet")
        with (
            storage.create(file_url) as file,
            pq.ParquetWriter(
                file,
                _SCHEMA,
                compression="lz4",
                use_dictionary=False,
                column_encoding=_ENCODING,
            ) as writer,
        ):
            for table in _row_groups(parts):
                writer.write_table(table, row_group_size=_ROW_GROUP)
                done += len(table)
                if progress is not None:
                    progress(done)
    save(options, storage.join(url, TRUTH))


def _row_groups(parts: Iterator[Slice]) -> Iterator[pa.Table]:
    """Slices as tables, the small ones joined until they fill a row group."""
    held: list[pa.Table] = []
    for part in parts:
        held.append(pa.table([part.users, part.items, part.times], schema=_SCHEMA))
        if sum(map(len, held)) >= _ROW_GROUP:
            yield pa.concat_tables(held)
            held.clear()
    if held:
        yield pa.concat_tables(held)


def _ahead(values: Iterator[T]) -> Iterator[T]:
    """The values, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, values, None)
        while (value := coming.result()) is not None:
            coming = thread.submit(next, values, None)
            yield value
