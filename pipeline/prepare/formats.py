"""From a file of any format to batches of the columns asked for, with the file hashed on the way.

Arrow's readers do the work. Where they fail, ``explain`` reads the file again, slowly, for the line
and the reason.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.prepare import explain
from pipeline.prepare.bad import Origin, Sieve
from pipeline.prepare.batch import Batch, exploded, is_list
from pipeline.prepare.delimited import read_delimited
from pipeline.prepare.inputs import Source
from pipeline.prepare.json_lines import read_json_lines, types_of
from pipeline.prepare.options import Use

_BLOCK = 16 * 2**20
_ROWS = 2**21


def names_in(source: Source, skip: bool) -> list[str]:
    """The columns that a file with a header line, or of a format with names, says it has."""
    if source.format == "jsonl":
        return explain.first_record(source, skip, lambda line, record: list(record))
    if source.format != "parquet":
        return explain.header(source)
    with _readable(source, skip) as file, _parquet_file(source, file) as reader:
        names: list[str] = reader.schema_arrow.names
        return names


class _Tap:
    """A file that is read once from start to end, and hashed and counted as it passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.count = 0
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._hash.update(content)
        self.count += len(content)
        return content

    def close(self) -> None:
        self.closed = True

    def finish(self) -> str:
        """The SHA-256 of the whole file; what no reader asked for is read here."""
        while self.read(_BLOCK):
            pass
        return self._hash.hexdigest()


@contextmanager
def _opened(source: Source) -> Iterator[BinaryIO]:
    fs, path = storage.filesystem(source.url)
    with storage.told(source.url, "read"), fs.open(path, "rb") as file:
        yield file


def hash_source(source: Source) -> str:
    """The SHA-256 of the file as stored."""
    with _opened(source) as file:
        return _Tap(file).finish()


@dataclass(frozen=True)
class Groups:
    """Row groups ``first`` up to ``last`` of a Parquet file, which begin at row ``row``."""

    first: int
    last: int
    row: int


@dataclass(frozen=True)
class Group:
    """A row group: how many rows it has, and how many events, which is more where it has lists."""

    rows: int
    events: int


@dataclass(frozen=True)
class Shape:
    """What is known of a file before its rows are read.

    kinds: types of its columns by use (of lists, of what is in them), empty where the format has
    none. groups: those of a Parquet file, None where only its reading tells.
    """

    kinds: dict[Use, pa.DataType]
    groups: list[Group] | None


def shape_of(source: Source, skip: bool) -> Shape:
    """Look at a file. Raises LonghaulError as ``batches`` does."""
    with _readable(source, skip) as file:
        if source.format == "jsonl":
            fields = types_of(source, skip)
            return Shape({use: fields[name] for use, name in source.columns.items()}, None)
        if source.format != "parquet":
            return Shape({}, None)
        with _parquet_file(source, file) as reader:
            explain.check_columns(source, reader.schema_arrow.names)
            schema, metadata = reader.schema_arrow, reader.metadata
            groups = [_group(metadata.row_group(g), source) for g in range(metadata.num_row_groups)]
            kinds = {use: schema.field(name).type for use, name in source.columns.items()}
            kinds = {use: k.value_type if is_list(k) else k for use, k in kinds.items()}
            # A compressed one would be unpacked for every piece.
            return Shape(kinds, groups if source.compression is None else None)


def _group(metadata: Any, source: Source) -> Group:
    entries = [metadata.num_rows]
    for column in map(metadata.column, range(metadata.num_columns)):
        # Of a list, what lies in it has a name below that of the column.
        path = f"{column.path_in_schema}."
        if any(path.startswith(f"{name}.") for name in source.columns.values()):
            entries.append(column.num_values)
    return Group(metadata.num_rows, max(entries))


def batches(
    source: Source,
    sieve: Sieve,
    groups: Groups | None,
    advance: Callable[[int], None],
    hashed: Callable[[str], None],
) -> Iterator[Batch]:
    """The rows of a file (of these row groups, where given) in order.

    ``advance`` hears of bytes as they are read; ``hashed``, once a file, its SHA-256. Raises
    LonghaulError, in one line with file and line, for anything that cannot be read, except for
    rows that the ``sieve`` takes.
    """
    with _readable(source, sieve.skip) as file:
        if source.format == "parquet":
            if groups is None or groups.first == 0:
                # Parquet is read in pieces from all over the file, so it is hashed beforehand.
                hashed(hash_source(source))
            with _parquet_file(source, file) as reader:
                explain.check_columns(source, reader.schema_arrow.names)
                yield from _parquet(source, reader, sieve, groups, advance)
            return
        tap = _Tap(file)
        stream = explain.decompressed(tap, source)
        told = row = 0
        for table in _in_order(source, stream, sieve):
            yield Batch(_by_use(source, table), partial(_line_of, sieve, row))
            row += len(table)
            # Told here and not by the tap, which Arrow may read from another thread.
            told, before = tap.count, told
            advance(told - before)
        hashed(tap.finish())
        advance(tap.count - told)


def _line_of(sieve: Sieve, first: int, row: int) -> Origin:
    return sieve.origin(first + row)


@contextmanager
def _readable(source: Source, skip: bool) -> Iterator[BinaryIO]:
    """The open file; what Arrow says of its content becomes one line."""
    with _opened(source) as file:
        try:
            yield file
        except (pa.ArrowException, UnicodeDecodeError) as error:
            explain.explain(source, skip)
            detail = str(error).strip().splitlines()[0]
            raise LonghaulError(
                f"cannot read {source.url} as {source.format}: {detail}; "
                "set format if it is another one"
            ) from error


def _in_order(source: Source, stream: Any, sieve: Sieve) -> Iterator[Any]:
    """The rows of a format that is read from start to end."""
    if source.format == "jsonl":
        return read_json_lines(source, stream, sieve, _BLOCK)
    return read_delimited(source, stream, sieve, _BLOCK)


def _by_use(source: Source, table: Any) -> dict[Use, pa.Array]:
    found: dict[Use, pa.Array] = {}
    for use, name in source.columns.items():
        array = table.column(name)
        found[use] = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return found


@contextmanager
def _parquet_file(source: Source, file: BinaryIO) -> Iterator[pa.parquet.ParquetFile]:
    with tempfile.TemporaryFile() as spool:
        if source.compression is not None:
            stream = explain.decompressed(file, source)
            while content := stream.read(_BLOCK):
                spool.write(content)
            spool.seek(0)
            file = spool
        yield pa.parquet.ParquetFile(file)


def _parquet(
    source: Source,
    reader: pa.parquet.ParquetFile,
    sieve: Sieve,
    groups: Groups | None,
    advance: Callable[[int], None],
) -> Iterator[Batch]:
    metadata = reader.metadata
    chosen = list(range(metadata.num_row_groups))
    if groups is not None:
        chosen = chosen[groups.first : groups.last]
    held = [_group(metadata.row_group(number), source) for number in chosen]
    # As many rows at a time as hold so many events, however long their lists are.
    events = max(1, sum(group.events for group in held))
    at_once = max(1, _ROWS * sum(group.rows for group in held) // events)
    first = 0 if groups is None else groups.row
    done = told = 0
    for table in reader.iter_batches(
        batch_size=at_once, row_groups=chosen, columns=list(source.columns.values())
    ):
        yield exploded(source, _by_use(source, table), first + done, sieve)
        done += len(table)
        share = source.bytes * done // metadata.num_rows
        advance(share - told)
        told = share
