"""The slow second look at a file: which line a row is, and what is wrong with it.

The fast readers only find that something is wrong. Nothing here runs on good input, except for a
look at the first lines.
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TextIO, TypeVar

import pyarrow as pa

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.prepare.inputs import Source
from pipeline.prepare.options import Use

T = TypeVar("T")

_LOOK = 10_000  # lines of JSON in which one at least has to be good

csv.field_size_limit(2**31 - 1)  # a lost quote makes fields of any length


def decompressed(file: Any, source: Source) -> Any:
    """A stream of the file's content, from a stream of its bytes as stored."""
    stream = pa.PythonFile(file, mode="r")
    if source.compression is None:
        return stream
    return pa.CompressedInputStream(stream, source.compression)


@contextmanager
def _text(source: Source) -> Iterator[TextIO]:
    """The file as text; bytes that are not UTF-8 become lone surrogates."""
    fs, path = storage.filesystem(source.url)
    with storage.told(source.url, "read"), fs.open(path, "rb") as file:
        yield io.TextIOWrapper(
            decompressed(file, source),
            encoding="utf-8-sig",
            errors="surrogateescape",
            # csv counts lines itself, and must see those inside quotes as they are
            newline="" if source.format in ("csv", "tsv") else None,
        )


def check_quotes(source: Source) -> None:
    """Raise LonghaulError where a CSV file has a quote that is not closed, or not doubled."""
    with _text(source) as file:
        reader = csv.reader(file, delimiter=source.separator, strict=True)
        line = 1
        try:
            for _ in reader:
                line = reader.line_num + 1
        except csv.Error as error:
            raise LonghaulError(
                f"{source.url}, line {line}: a quote in this record is not closed or not doubled "
                f"({error}); mend it"
            ) from error


def _records(source: Source) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV, TSV or text file (a header too), each with its line, from 1."""
    with _text(source) as file:
        if source.format == "text":
            for number, words in enumerate(file, start=1):
                if found := re.findall(r"[^ \t\r\n]+", words):
                    yield number, found
            return
        if len(source.separator) > 1:
            for number, words in enumerate(file, start=1):
                if words.strip("\r\n"):
                    yield number, words.rstrip("\r\n").split(source.separator)
            return
        if source.format == "csv":
            reader = csv.reader(file, delimiter=source.separator)
        else:
            reader = csv.reader(file, delimiter=source.separator, quoting=csv.QUOTE_NONE)
        line = 1
        for fields in reader:
            if fields:  # a blank line holds no record, for Arrow too
                yield line, fields
            line = reader.line_num + 1


def _json_lines(source: Source) -> Iterator[tuple[int, str]]:
    with _text(source) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def first_line(source: Source) -> str:
    """The first line that is not blank, without its end; empty where there is none."""
    with _text(source) as file:
        return next((line.strip() for line in file if line.strip()), "")


def header(source: Source) -> list[str]:
    """The names in the first line of a CSV or TSV file."""
    for _, fields in _records(source):
        return fields
    raise LonghaulError(f"{source.url} holds only blank lines, where a header line should be")


def has_rows(source: Source) -> bool:
    """Whether a CSV or TSV file with a header line holds anything below it."""
    records = _records(source)
    next(records)
    return next(records, None) is not None


def first_record(source: Source, skip: bool, fits: Callable[[int, dict[str, Any]], T]) -> T:
    """What ``fits`` makes of line and object of the first record of a JSON lines file.

    With ``skip``, of the first that it raises no LonghaulError for, among as many as one looks at.
    """
    first: LonghaulError | None = None
    for number, line in islice(_json_lines(source), _LOOK if skip else 1):
        try:
            return fits(number, _object(source, number, line))
        except LonghaulError as error:
            first = first or error
    raise first or LonghaulError(
        f"{source.url} holds only blank lines, where JSON objects should be"
    )


def _parse(source: Source, number: int, line: str) -> dict[str, Any]:
    if not _is_utf8(line):
        raise LonghaulError(f"{source.url}, line {number} is not valid UTF-8; convert the file")
    return _object(source, number, line)


def _object(source: Source, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LonghaulError(
            f"{source.url}, line {number} is not JSON ({error}); write one object a line"
        ) from error
    if not isinstance(record, dict):
        raise LonghaulError(
            f"{source.url}, line {number} is JSON but no object; write one object a line"
        )
    return record


def json_reason(line: bytes, fields: dict[str, pa.DataType]) -> str:
    """Why a line cannot be read as an object with these fields."""
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        return "is not valid UTF-8"
    except (ValueError, RecursionError):
        return "is not JSON"
    if not isinstance(record, dict):
        return "is JSON but no object"
    for name, kind in fields.items():
        value = record.get(name)
        wanted = str if kind == pa.string() else (int, float)
        if value is not None and (isinstance(value, bool) or not isinstance(value, wanted)):
            return f"has another type in '{name}' than the first record"
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return f"has a number in '{name}' that does not fit 64 bits"
    for name, kind in fields.items():
        if kind == pa.int64() and isinstance(record.get(name), float):
            return f"has another type in '{name}' than the first record"
    return "is JSON that cannot be read"


def _is_utf8(text: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in text)


def check_columns(source: Source, found: list[str]) -> None:
    """Raise LonghaulError where the file lacks a column that is asked for, or has it twice."""
    for use, name in source.columns.items():
        if found.count(name) > 1:
            raise LonghaulError(
                f"{source.url} has {found.count(name)} columns '{name}'; rename one"
            )
        if name in found:
            continue
        shown = ", ".join(f"'{column}'" for column in found[:20])
        if len(found) > 20:
            shown += f" and {len(found) - 20} more"
        lowered = {column.lower(): column for column in reversed(found)}
        near = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.4)
        hint = f"did you mean '{lowered[near[0]]}'? " if near else ""
        raise LonghaulError(
            f"{source.url} has no column '{name}'; it has {shown}; "
            f"{hint}name the right one with {use}"
        )


def places(source: Source, rows: list[int], near: int | None = None) -> list[str]:
    """The lines (for Parquet: rows, from 1) of ascending ``rows``, which are counted from 0.

    near: where given, of a later row only its record is told: no line is looked for so far away.
    """
    if source.format == "parquet":
        return [f"row {row + 1}" for row in rows]
    lines: Iterator[tuple[int, Any]]
    if source.format == "jsonl":
        lines, above = _json_lines(source), 0
    else:
        lines, above = _records(source), source.names is None
    sought = [row + above for row in rows if near is None or row < near]
    found = {
        index: number
        for index, (number, _) in zip(range(max(sought, default=-1) + 1), lines, strict=False)
        if index in sought
    }
    return [
        f"line {found[row + above]}" if row + above in found else f"record {row + above + 1}"
        for row in rows
    ]


def explain(source: Source, skip: bool) -> None:
    """Raise LonghaulError with line and reason, if a second look at the file finds them.

    With ``skip``, not for a record that was skipped.
    """
    if source.format == "jsonl" and not skip:
        _explain_json(source, source.columns)
    elif source.format != "parquet" and not skip:
        _explain_records(source, source.columns, source.names)
    if source.format == "csv":
        check_quotes(source)


def _explain_records(source: Source, columns: dict[Use, str], names: Sequence[str] | None) -> None:
    told = "in its header line" if names is None else f"expected ({', '.join(names)})"
    for line, fields in _records(source):
        if names is None:
            names = fields
            continue
        if len(fields) != len(names):
            plural = "" if len(fields) == 1 else "s"
            raise LonghaulError(
                f"{source.url}, line {line} has {len(fields)} column{plural}, "
                f"{len(names)} are {told}; mend the line, or name all columns with columns"
            )
        for name, value in zip(names, fields, strict=True):
            if name in columns.values() and not _is_utf8(value):
                raise LonghaulError(
                    f"{source.url}, line {line}: column '{name}' is not valid UTF-8; "
                    "convert the file"
                )


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    kinds = {int: "an integer", float: "a number", str: "a string", list: "a list"}
    return kinds.get(type(value), "an object")


def _explain_json(source: Source, columns: dict[Use, str]) -> None:
    first: dict[str, Any] = {}
    for line, content in _json_lines(source):
        record = _parse(source, line, content)
        for use, name in columns.items():
            value = record.get(name)
            if value is None:
                continue  # found by the check for missing values, with its own words
            where = f"{source.url}, line {line}: column '{name}'"
            number = use in ("timestamp", "rating")
            kind = "a number" if number and _kind(value) == "an integer" else _kind(value)
            if kind != first.setdefault(name, kind):
                raise LonghaulError(
                    f"{where} is {kind}, in earlier lines it is {first[name]}; "
                    "write one type in all lines"
                )
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise LonghaulError(
                    f"{where} is {value}, which does not fit 64 bits; write it as a string"
                )
