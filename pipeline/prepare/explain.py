"""The slow second look at a file: which line a row is, and what is wrong with it.

The fast readers only find that something is wrong. Nothing here runs on good input, except for a
look at the first lines.
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import pyarrow as pa

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.prepare.inputs import Source

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
        reader = csv.reader(file, strict=True)
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
        if source.format == "csv":
            reader = csv.reader(file)
        else:
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
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


def first_record(source: Source) -> tuple[int, dict[str, Any]]:
    """The first object of a JSON lines file and its line."""
    for number, line in _json_lines(source):
        return number, _parse(source, number, line)
    raise LonghaulError(f"{source.url} holds only blank lines, where JSON objects should be")


def _parse(source: Source, number: int, line: str) -> dict[str, Any]:
    if not _is_utf8(line):
        raise LonghaulError(f"{source.url}, line {number} is not valid UTF-8; convert the file")
    try:
        record = json.loads(line)
    except ValueError as error:
        raise LonghaulError(
            f"{source.url}, line {number} is not JSON ({error}); write one object a line"
        ) from error
    if not isinstance(record, dict):
        raise LonghaulError(
            f"{source.url}, line {number} is JSON but no object; write one object a line"
        )
    return record


def _is_utf8(text: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in text)


def check_columns(source: Source, columns: dict[str, str], found: list[str]) -> None:
    """Raise LonghaulError where the file lacks a column that is asked for, or has it twice."""
    for use, name in columns.items():
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


def place(source: Source, row: int, headed: bool) -> str:
    """File and line (for Parquet: row, from 1) of row ``row``, which is counted from 0.

    ``headed`` says whether a CSV or TSV file has a header line.
    """
    if source.format == "parquet":
        return f"{source.url}, row {row + 1}"
    lines: Iterator[tuple[int, Any]]
    if source.format == "jsonl":
        lines = _json_lines(source)
    else:
        lines = _records(source)
        row += headed
    for index, (number, _) in enumerate(lines):
        if index == row:
            return f"{source.url}, line {number}"
    return f"{source.url}, record {row + 1}"


def explain(source: Source, columns: dict[str, str], names: list[str] | None) -> None:
    """Raise LonghaulError with line and reason, if a second look at the file finds them."""
    if source.format == "jsonl":
        _explain_json(source, columns)
    elif source.format != "parquet":
        _explain_records(source, columns, names)
    if source.format == "csv":
        check_quotes(source)


def _explain_records(source: Source, columns: dict[str, str], names: list[str] | None) -> None:
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


def _explain_json(source: Source, columns: dict[str, str]) -> None:
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
