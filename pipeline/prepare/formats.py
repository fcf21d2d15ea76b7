"""From a file of any format to batches of the columns asked for, with the file hashed on the way.

Arrow's readers do the work. Where they fail, ``explain`` reads the file again, slowly, for the line
and the reason.
"""

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.prepare import explain
from pipeline.prepare.inputs import Source
from pipeline.prepare.options import PrepareOptions

# What a column is used for, and the name it has in the file.
Columns = dict[str, str]
Batch = dict[str, pa.Array]

_BLOCK = 16 * 2**20
_ROWS = 2**21


def wanted(options: PrepareOptions) -> Columns:
    """The columns to read, by use: user, item and those of the optional ones that are named."""
    uses = ("user", "item", "timestamp", "action", "rating")
    named = {use: getattr(options, use) for use in uses}
    return {use: name for use, name in named.items() if name is not None}


def text_columns(source: Source, options: PrepareOptions) -> list[str] | None:
    """Names of the columns of a file without a header line; None where the file has one."""
    if options.columns is not None:
        return options.columns
    return [options.user, options.item] if source.format == "text" else None


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
    rows: int


@dataclass(frozen=True)
class Shape:
    """What is known of a file before its rows are read.

    kinds: types of its columns by use, empty where the format has none. groups: rows of each row
    group of a Parquet file, None where only its reading tells.
    """

    kinds: dict[str, pa.DataType]
    groups: list[int] | None


def shape_of(source: Source, options: PrepareOptions) -> Shape:
    """Look at a file. Raises LonghaulError as ``batches`` does."""
    columns, names = wanted(options), text_columns(source, options)
    with _readable(source, columns, names) as file:
        if source.format == "jsonl":
            kinds = _json_types(source, columns)
            return Shape({use: kinds[name] for use, name in columns.items()}, None)
        if source.format != "parquet":
            return Shape({}, None)
        with _parquet_file(source, file, columns) as reader:
            schema, metadata = reader.schema_arrow, reader.metadata
            groups = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
            kinds = {use: schema.field(name).type for use, name in columns.items()}
            # A compressed one would be unpacked for every piece.
            return Shape(kinds, groups if source.compression is None else None)


def batches(
    source: Source,
    options: PrepareOptions,
    groups: Groups | None,
    advance: Callable[[int], None],
    hashed: Callable[[str], None],
) -> Iterator[Batch]:
    """The rows of a file (of these row groups, where given) in order, as columns by use.

    ``advance`` hears of bytes as they are read; ``hashed``, once a file, its SHA-256. Raises
    LonghaulError, in one line with file and line, for anything that cannot be read.
    """
    columns, names = wanted(options), text_columns(source, options)
    with _readable(source, columns, names) as file:
        if source.format == "parquet":
            if groups is None or groups.first == 0:
                # Parquet is read in pieces from all over the file, so it is hashed beforehand.
                hashed(hash_source(source))
            with _parquet_file(source, file, columns) as reader:
                yield from _parquet(source, reader, columns, groups, advance)
        else:
            tap = _Tap(file)
            stream = explain.decompressed(tap, source)
            told = 0
            for batch in _in_order(source, stream, columns, names):
                yield batch
                # Told here and not by the tap, which Arrow may read from another thread.
                told, before = tap.count, told
                advance(told - before)
            hashed(tap.finish())
            advance(tap.count - told)


@contextmanager
def _readable(source: Source, columns: Columns, names: list[str] | None) -> Iterator[BinaryIO]:
    """The open file; what Arrow says of its content becomes one line."""
    with _opened(source) as file:
        try:
            yield file
        except (pa.ArrowException, UnicodeDecodeError) as error:
            explain.explain(source, columns, names)
            detail = str(error).strip().splitlines()[0]
            raise LonghaulError(
                f"cannot read {source.url} as {source.format}: {detail}; "
                "set format if it is another one"
            ) from error


def _in_order(
    source: Source, stream: Any, columns: Columns, names: list[str] | None
) -> Iterator[Batch]:
    """The rows of a format that is read from start to end."""
    if source.format == "jsonl":
        return _jsonl(source, stream, columns)
    if source.format == "text":
        assert names is not None
        return _text(source, stream, columns, names)
    return _delimited(source, stream, columns, names)


def _by_use(columns: Columns, batch: Any) -> Batch:
    found: Batch = {}
    for use, name in columns.items():
        array = batch.column(name)
        found[use] = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return found


@contextmanager
def _parquet_file(
    source: Source, file: BinaryIO, columns: Columns
) -> Iterator[pa.parquet.ParquetFile]:
    with tempfile.TemporaryFile() as spool:
        if source.compression is not None:
            stream = explain.decompressed(file, source)
            while content := stream.read(_BLOCK):
                spool.write(content)
            spool.seek(0)
            file = spool
        reader = pa.parquet.ParquetFile(file)
        explain.check_columns(source, columns, reader.schema_arrow.names)
        yield reader


def _parquet(
    source: Source,
    reader: pa.parquet.ParquetFile,
    columns: Columns,
    groups: Groups | None,
    advance: Callable[[int], None],
) -> Iterator[Batch]:
    rows, done, told = reader.metadata.num_rows, 0, 0
    chosen = None if groups is None else list(range(groups.first, groups.last))
    for batch in reader.iter_batches(
        batch_size=_ROWS, row_groups=chosen, columns=list(columns.values())
    ):
        yield _by_use(columns, batch)
        done += len(batch)
        share = source.bytes * done // rows
        advance(share - told)
        told = share


def _delimited(
    source: Source, stream: Any, columns: Columns, names: list[str] | None
) -> Iterator[Batch]:
    if names is None:
        header = explain.header(source)
        explain.check_columns(source, columns, header)
        if not explain.has_rows(source):
            return  # a header alone: Arrow takes that for an error
    quoted = source.format == "csv"
    counted = _Counted(stream)
    reader = pa.csv.open_csv(
        pa.PythonFile(counted, mode="r"),
        read_options=pa.csv.ReadOptions(column_names=names, block_size=_BLOCK),
        parse_options=pa.csv.ParseOptions(
            delimiter="," if quoted else "\t",
            quote_char='"' if quoted else False,
            newlines_in_values=quoted,
        ),
        convert_options=_as_strings(columns),
    )
    rows = 0
    for batch in reader:
        rows += len(batch)
        yield _by_use(columns, batch)
    # A quote that is never closed swallows lines without an error. Lines inside quotes may also
    # be meant, which only a slow second look can tell.
    if quoted and counted.quotes and counted.lines > rows + (names is None):
        explain.check_quotes(source)


class _Counted:
    """A stream of text that counts its line ends, and whether it holds quotes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lines = 0
        self.quotes = False
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._stream.read(size)
        self.lines += max(content.count(b"\n"), content.count(b"\r"))
        self.quotes = self.quotes or b'"' in content
        return content

    def close(self) -> None:
        self.closed = True


def _as_strings(columns: Columns) -> Any:
    # The type of an id is decided on the whole data, so nothing may be guessed from a block.
    return pa.csv.ConvertOptions(
        include_columns=list(columns.values()),
        column_types={name: pa.string() for name in columns.values()},
        strings_can_be_null=False,
    )


def _lines(stream: Any) -> Iterator[bytes]:
    """The stream in blocks of whole lines."""
    rest = b""
    while content := stream.read(_BLOCK):
        cut = content.rfind(b"\n") + 1
        if cut:
            yield rest + content[:cut]
            rest = content[cut:]
        else:
            rest += content
    if rest:
        yield rest


def _squeeze(block: bytes) -> bytes:
    """The block with single spaces between columns and none at the ends of lines."""
    odd = (b"\t", b"  ", b" \n", b"\n ", b" \r")
    if any(pattern in block for pattern in odd) or block[:1] == b" " or block[-1:] == b" ":
        block = re.sub(rb"[ \t]+", b" ", block)
        block = re.sub(rb"(?:^|(?<=[\r\n])) | (?=[\r\n]|\Z)", b"", block)
    return block


def _text(source: Source, stream: Any, columns: Columns, names: list[str]) -> Iterator[Batch]:
    for number, block in enumerate(_lines(stream)):
        if number == 0:
            block = block.removeprefix(b"\xef\xbb\xbf")
        table = pa.csv.read_csv(
            io.BytesIO(_squeeze(block)),
            read_options=pa.csv.ReadOptions(column_names=names),
            parse_options=pa.csv.ParseOptions(delimiter=" ", quote_char=False),
            convert_options=_as_strings(columns),
        )
        yield _by_use(columns, table)


def _jsonl(source: Source, stream: Any, columns: Columns) -> Iterator[Batch]:
    fields: dict[str, pa.DataType] | None = None
    for block in _lines(stream):
        if not block.strip():
            continue
        if fields is None:
            fields = _json_types(source, columns)
        try:
            table = _read_json(block, fields)
        except pa.ArrowInvalid:
            name = columns.get("timestamp", "")
            if fields.get(name) != pa.int64():
                raise
            # Integers are read exactly; floats that are whole numbers are allowed among them.
            fields = {**fields, name: pa.float64()}
            table = _read_json(block, fields)
            fields[name] = pa.int64()
        yield _by_use(columns, table)


def _read_json(block: bytes, fields: dict[str, pa.DataType]) -> pa.Table:
    return pa.json.read_json(
        io.BytesIO(block),
        parse_options=pa.json.ParseOptions(
            explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
        ),
    )


def _json_types(source: Source, columns: Columns) -> dict[str, pa.DataType]:
    """The type of every column, as the first record has it; later records must agree."""
    line, record = explain.first_record(source)
    explain.check_columns(source, columns, list(record))
    types: dict[str, pa.DataType] = {}
    for use, name in columns.items():
        value = record[name]
        if use == "rating":
            types[name] = pa.float64()
        elif isinstance(value, str):
            types[name] = pa.string()
        elif use == "timestamp" or (isinstance(value, int) and not isinstance(value, bool)):
            types[name] = pa.int64()
        else:
            raise LonghaulError(
                f"{source.url}, line {line}: column '{name}' is {json.dumps(value)}; "
                "ids are integers or strings"
            )
    return types
