"""CSV, TSV, and text in columns, as Arrow reads it: every cell a string.

Arrow says which rows have another number of columns, and what they hold, only in UTF-8. So where
such rows are skipped, what is no UTF-8 is marked before Arrow sees it.
"""

import codecs
import io
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv

from pipeline.prepare import explain
from pipeline.prepare.bad import MARK, Sieve
from pipeline.prepare.blocks import lines_of
from pipeline.prepare.inputs import Source

_SEPARATOR = b"\x1f"  # in the place of one of several characters


def read_delimited(source: Source, stream: Any, sieve: Sieve, block: int) -> Iterator[Any]:
    """The rows of a file, in tables of about ``block`` bytes."""
    if sieve.skip:
        stream = _Marked(stream)
    if source.format == "text" or len(source.separator) > 1:
        return _text(source, stream, sieve, block)
    return _delimited(source, stream, sieve, block)


def _delimited(source: Source, stream: Any, sieve: Sieve, block: int) -> Iterator[Any]:
    if source.names is None:
        header = explain.header(source)
        explain.check_columns(source, header)
        if not explain.has_rows(source):
            return  # a header alone: Arrow takes that for an error
    headed = source.names is None
    quoted = source.format == "csv"
    counted = _Counted(stream)
    dropped = _Dropped(sieve, source.separator)
    dropped.first = 1 + headed
    reader = pa.csv.open_csv(
        pa.PythonFile(counted, mode="r"),
        read_options=pa.csv.ReadOptions(
            column_names=source.names, block_size=block, use_threads=not sieve.skip
        ),
        parse_options=pa.csv.ParseOptions(
            delimiter=source.separator,
            quote_char='"' if quoted else False,
            newlines_in_values=quoted,
            invalid_row_handler=dropped if sieve.skip else None,
        ),
        convert_options=_as_strings(source),
    )
    rows = 0
    for batch in reader:
        rows += len(batch)
        yield batch
    # A quote that is never closed swallows lines without an error. Lines inside quotes may also
    # be meant, which only a slow second look can tell.
    if quoted and counted.quotes and counted.lines > rows + dropped.count + headed:
        explain.check_quotes(source)


class _Dropped:
    """Hears from Arrow of rows with another number of columns, if one thread reads them in order.

    first: the number that Arrow gives to the first row of data.
    """

    def __init__(self, sieve: Sieve, separator: str) -> None:
        self._sieve = sieve
        self._separator = separator
        self.first = 1
        self.count = 0

    def __call__(self, row: Any) -> str:
        plural = "" if row.actual_columns == 1 else "s"
        reason = f"has {row.actual_columns} column{plural} instead of {row.expected_columns}"
        text = row.text.replace(_SEPARATOR.decode(), self._separator)
        self._sieve.leave_out(row.number - self.first, text, reason)
        self.count += 1
        return "skip"


class _Marked:
    """A stream of text in which a mark stands for what is no UTF-8, which Arrow cannot show us."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")(_MARKING)
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        while content := self._stream.read(size):
            if content.isascii() and not self._decoder.getstate()[0]:
                return bytes(content)
            if text := self._decoder.decode(content):
                return text.encode()
        return self._decoder.decode(b"", final=True).encode()

    def close(self) -> None:
        self.closed = True


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return MARK, error.end


_MARKING = "longhaul.mark"
codecs.register_error(_MARKING, _mark)


class _Counted:
    """A stream of text that counts its lines, and sees whether it holds quotes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._ends = 0
        self._last = b"\n"
        self.quotes = False
        self.closed = False

    @property
    def lines(self) -> int:
        return self._ends + (self._last not in b"\r\n")

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._stream.read(size)
        self._ends += max(content.count(b"\n"), content.count(b"\r"))
        self._last = content[-1:] or self._last
        self.quotes = self.quotes or b'"' in content
        return content

    def close(self) -> None:
        self.closed = True


def _as_strings(source: Source) -> Any:
    # The type of an id is decided on the whole data, so nothing may be guessed from a block.
    names = list(source.columns.values())
    return pa.csv.ConvertOptions(
        include_columns=names,
        column_types={name: pa.string() for name in names},
        strings_can_be_null=False,
    )


def _squeeze(block: bytes) -> bytes:
    """The block with single spaces between columns and none at the ends of lines."""
    odd = (b"\t", b"  ", b" \n", b"\n ", b" \r")
    if any(pattern in block for pattern in odd) or block[:1] == b" " or block[-1:] == b" ":
        block = re.sub(rb"[ \t]+", b" ", block)
        block = re.sub(rb"(?:^|(?<=[\r\n])) | (?=[\r\n]|\Z)", b"", block)
    return block


def _text(source: Source, stream: Any, sieve: Sieve, size: int) -> Iterator[pa.Table]:
    """Columns separated by blanks, or by several characters; no quotes."""
    names = source.names
    if names is None:
        names = tuple(explain.header(source))
        explain.check_columns(source, list(names))
    dropped = _Dropped(sieve, source.separator)
    separator = source.separator.encode()
    waits = source.names is None  # for the header line to pass
    for block in lines_of(stream, size):
        if waits:
            block = block.lstrip(b"\r\n")
            waits = not block
            block = b"".join(block.splitlines(keepends=True)[1:])
        if source.format == "text":
            block, separated = _squeeze(block), b" "
        else:
            block, separated = block.replace(separator, _SEPARATOR), _SEPARATOR
        if not block:
            continue
        left_out = dropped.count
        table = pa.csv.read_csv(
            io.BytesIO(block),
            read_options=pa.csv.ReadOptions(column_names=names, use_threads=not sieve.skip),
            parse_options=pa.csv.ParseOptions(
                delimiter=separated.decode(),
                quote_char=False,
                invalid_row_handler=dropped if sieve.skip else None,
            ),
            convert_options=_as_strings(source),
        )
        # Arrow counts from 1 in each block.
        dropped.first -= len(table) + dropped.count - left_out
        yield table
