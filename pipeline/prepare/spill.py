"""Blocks of columns on disk, on their way from one half of the shuffle to the other.

A file holds Arrow streams back to back. Integers are stored as differences to the least of their
block, in 32 bits where they fit: half of the bytes, for less time than any compression.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import storage

_BASE = b"base"

Columns = dict[str, pa.Array]


def narrowed(array: pa.Array) -> tuple[pa.Array, int | None]:
    """An i64 array as u32 differences to its least value, and that; or unchanged, and None."""
    if array.type != pa.int64() or len(array) == 0:
        return array, None
    values = array.to_numpy()
    least, most = int(values.min()), int(values.max())
    if most - least >= 2**32:
        return array, None
    differences = np.empty(len(values), np.uint32)
    np.subtract(values, least, out=differences, casting="unsafe")
    return pa.array(differences), least


def widened(array: pa.Array, base: int | None) -> pa.Array:
    """What ``narrowed`` was given."""
    if base is None:
        return array
    return pa.array(array.to_numpy().astype(np.int64) + base)


def table_of(columns: dict[str, tuple[pa.Array, int | None]]) -> pa.Table:
    """A table of narrowed columns that says how they were narrowed."""
    fields = [
        pa.field(name, array.type, metadata=None if base is None else {_BASE: str(base)})
        for name, (array, base) in columns.items()
    ]
    return pa.table([array for array, _ in columns.values()], schema=pa.schema(fields))


def columns_of(table: pa.Table) -> Columns:
    """The columns of such a table as they were."""
    found = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        base = (field.metadata or {}).get(_BASE)
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        found[field.name] = widened(array, None if base is None else int(base))
    return found


def append(path: Path, table: pa.Table) -> None:
    """Add a block to a file."""
    with (
        storage.told(str(path), "write"),
        path.open("ab") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)


def blocks(path: Path) -> Iterator[Columns]:
    """The blocks of a file in order."""
    with storage.told(str(path), "read", OSError), path.open("rb") as file:
        while file.peek(1):
            with pa.ipc.open_stream(file) as reader:
                table = reader.read_all()
            yield columns_of(table)
