"""A run: the histories of one partition, sorted, as files that are read in slices.

Three Arrow files in a folder: ``users`` (key, events), ``items`` (key, events: what the codes of
items stand for) and ``events`` (item code, time, action) in batches, so that a slice costs a slice.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
from typing_extensions import Buffer

from pipeline import storage
from pipeline.manifest import File
from pipeline.prepare import spill

_BATCH = 2**18
_USERS, _ITEMS, _EVENTS, _CODES = "users.arrow", "items.arrow", "events.arrow", "codes.arrow"


@dataclass(frozen=True, eq=False)
class Run:
    """Histories of ``U`` users with ``T`` events, users by (hash, key), events by time.

    user_keys ``[U]``. lengths: i64 ``[U]``. item_keys ``[I]``, sorted, with their item_events, i64
    ``[I]``. items: u32 ``[T]``, codes of item_keys. times: i64 ``[T]``, or None. actions: u16
    ``[T]``, or None.
    """

    user_keys: pa.Array
    lengths: np.ndarray
    item_keys: pa.Array
    item_events: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    actions: np.ndarray | None


def write_run(url: str, run: Run) -> list[File]:
    """Write ``run`` to the folder ``url``; the files, by their paths in it."""
    columns: dict[str, tuple[pa.Array, int | None]] = {"item": (pa.array(run.items), None)}
    if run.times is not None:
        columns["time"] = spill.narrowed(pa.array(run.times))
    if run.actions is not None:
        columns["action"] = (pa.array(run.actions), None)
    tables = {
        _USERS: pa.table({"key": run.user_keys, "events": pa.array(run.lengths)}),
        _ITEMS: pa.table({"key": run.item_keys, "events": pa.array(run.item_events)}),
        _EVENTS: spill.table_of(columns),
    }
    return [write_arrow(url, name, table) for name, table in tables.items()]


@contextmanager
def _created(url: str) -> Iterator[IO[bytes]]:
    if not storage.is_local(url):
        with storage.create(url) as file:
            yield file
        return
    Path(url).parent.mkdir(parents=True, exist_ok=True)
    # Neither renamed nor flushed: the record of the run, which has its hash, is what commits it.
    with storage.told(url, "write"), open(url, "wb") as file:
        yield file


def write_arrow(folder: str, name: str, table: pa.Table) -> File:
    """Write a table to an Arrow file, in batches."""
    with _created(storage.join(folder, name)) as file:
        hashed = Hashed(file)
        with pa.ipc.new_file(hashed, table.schema) as writer:
            writer.write_table(table, max_chunksize=_BATCH)
    return File(path=name, bytes=hashed.bytes, sha256=hashed.digest())


class Hashed:
    """A file to write, whose bytes are hashed as they pass."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0

    def write(self, content: Buffer) -> int:
        self._hash.update(content)
        count = self._file.write(content)
        self.bytes += count
        return count

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True

    def digest(self) -> str:
        """The SHA-256 of all that was written, hexadecimal."""
        return self._hash.hexdigest()


@dataclass(frozen=True)
class StoredRun:
    """A run as it lies in the folder ``url``; for its arrays see ``Run``."""

    url: str

    def user_keys(self) -> pa.Array:
        return self._column(_USERS, 0)

    def lengths(self) -> np.ndarray:
        lengths: np.ndarray = self._column(_USERS, 1).to_numpy()
        return lengths

    def items(self) -> tuple[pa.Array, np.ndarray]:
        """The item keys, and the events of each."""
        return self._column(_ITEMS, 0), self._column(_ITEMS, 1).to_numpy()

    def number_items(self, vocabulary: pa.Array) -> None:
        """Keep where each item is in the ``vocabulary``, sorted keys among which they all are."""
        keys = self._column(_ITEMS, 0)
        if keys.type == pa.int64():
            codes = np.searchsorted(vocabulary.to_numpy(), keys.to_numpy())
        else:
            codes = pa.compute.index_in(keys, value_set=vocabulary).to_numpy()
        write_arrow(self.url, _CODES, pa.table({"code": pa.array(codes.astype(np.uint32))}))

    def codes(self) -> np.ndarray:
        """Of every item where it is in the vocabulary, u32 ``[I]``."""
        codes: np.ndarray = self._column(_CODES, 0).to_numpy()
        return codes

    def events(
        self, start: int, stop: int, only_items: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Items, times and actions of the events ``start`` up to ``stop``."""
        first, last = start // _BATCH, -(-stop // _BATCH)
        with self._opened(_EVENTS, [0] if only_items else None) as reader:
            found = [reader.get_batch(number) for number in range(first, last)]
            table = pa.Table.from_batches(found, schema=reader.schema)
        columns = spill.columns_of(table.slice(start - first * _BATCH, stop - start))
        values = {name: array.to_numpy() for name, array in columns.items()}
        return values["item"], values.get("time"), values.get("action")

    def _column(self, name: str, number: int) -> pa.Array:
        with self._opened(name, [number]) as reader:
            column = reader.read_all().column(0)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    @contextmanager
    def _opened(
        self, name: str, fields: list[int] | None
    ) -> Iterator[pa.ipc.RecordBatchFileReader]:
        url = storage.join(self.url, name)
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        with storage.told(url, "read"), _open(url) as file:
            yield pa.ipc.open_file(file, options=options)


def _open(url: str) -> pa.NativeFile:
    return pa.OSFile(url) if storage.is_local(url) else pa.PythonFile(storage.opened(url), "r")
