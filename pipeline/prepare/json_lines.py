"""JSON lines: one object a line, of the types that the first has."""

import io
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.json

from pipeline.errors import LonghaulError
from pipeline.prepare import explain
from pipeline.prepare.bad import Sieve
from pipeline.prepare.blocks import lines_of
from pipeline.prepare.inputs import Source
from pipeline.prepare.values import EXACT

_PART = 2**12  # lines
_ROW = re.compile(r" in row (\d+)$")
_NULL = re.compile(rb"\n[ \t\r]*null")


def read_json_lines(source: Source, stream: Any, sieve: Sieve, size: int) -> Iterator[pa.Table]:
    """The objects of a file, in tables of about ``size`` bytes."""
    fields: dict[str, pa.DataType] | None = None
    record = 0
    for block in lines_of(stream, size):
        if not block.strip():
            continue
        if fields is None:
            fields = types_of(source, sieve.skip)
        try:
            table = _json_table(block, fields, source, threads=True)
        except pa.ArrowInvalid:
            lines = [line for line in block.splitlines() if line.strip()]
            yield from _json_parts(lines, record, fields, source, sieve)
            record += len(lines)
        else:
            yield table
            record += len(table)


def _json_parts(
    lines: list[bytes],
    record: int,
    fields: dict[str, pa.DataType],
    source: Source,
    sieve: Sieve,
) -> Iterator[pa.Table]:
    """The good lines of a block that cannot be read as one.

    What fails is cut where Arrow says that it does, else in half, until a single line is to blame.
    """
    good: list[pa.Table] = []
    parts = [(low, min(low + _PART, len(lines))) for low in range(0, len(lines), _PART)][::-1]
    while parts:
        low, high = parts.pop()
        try:
            part = b"\n".join(lines[low:high])
            table = _json_table(part, fields, source, threads=False)
        except pa.ArrowInvalid as error:
            if high - low > 1:
                told = _ROW.search(str(error))
                cut = low + int(told[1]) if told else high
                cuts = [low, cut, cut + 1, high] if cut < high else [low, (low + high) // 2, high]
                parts += [pair for pair in list(pairwise(cuts))[::-1] if pair[0] < pair[1]]
                continue
            if not sieve.skip:
                raise
            shown = lines[low].decode(errors="replace")
            sieve.leave_out(record + low, shown, explain.json_reason(lines[low], fields))
            continue
        if good and good[-1].schema != table.schema:
            yield pa.concat_tables(good)
            good.clear()
        good.append(table)
    if good:
        yield pa.concat_tables(good)


def _json_table(
    block: bytes, fields: dict[str, pa.DataType], source: Source, threads: bool
) -> pa.Table:
    """The objects, one a line; raises ArrowInvalid where one is not as ``fields`` say."""
    name = source.columns.get("timestamp", "")
    try:
        return _read_json(block, fields, threads)
    except pa.ArrowInvalid as error:
        # Of several lines, it is told at once where one is no JSON at all.
        if fields.get(name) != pa.int64() or _ROW.search(str(error)):
            raise
    # Integers are read exactly; floats that are whole numbers are allowed among them.
    table = _read_json(block, {**fields, name: pa.float64()}, threads)
    largest = pa.compute.max(pa.compute.abs(table.column(name))).as_py()
    if len(table) > 1 and largest is not None and largest >= EXACT:
        raise pa.ArrowInvalid("an integer among these floats may be too large for one")
    return table


def _read_json(block: bytes, fields: dict[str, pa.DataType], threads: bool) -> pa.Table:
    # Arrow takes a null for an object without fields, and crashes where it comes first.
    if not block.lstrip().startswith(b"{") or (b"null" in block and _NULL.search(block)):
        raise pa.ArrowInvalid("no object")
    table = pa.json.read_json(
        io.BytesIO(block),
        # Threads read parts of it. Without them it is one part, whose rows Arrow's errors count.
        read_options=pa.json.ReadOptions(
            use_threads=threads, block_size=2**20 if threads else max(2**10, len(block) + 1)
        ),
        parse_options=pa.json.ParseOptions(
            explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
        ),
    )
    # Arrow also takes two objects in a line, and one in two lines.
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    if len(table) != lines and len(table) != sum(bool(x.strip()) for x in block.splitlines()):
        raise pa.ArrowInvalid("not one object a line")
    return table


def types_of(source: Source, skip: bool) -> dict[str, pa.DataType]:
    """The type of every column, as the first record has it; later records must agree."""

    def types(line: int, record: dict[str, Any]) -> dict[str, pa.DataType]:
        explain.check_columns(source, list(record))
        found: dict[str, pa.DataType] = {}
        for use, name in source.columns.items():
            value = record[name]
            whole = isinstance(value, int) and not isinstance(value, bool)
            number = whole or isinstance(value, float)
            if use == "rating" and (number or not skip):
                found[name] = pa.float64()
            elif isinstance(value, str) and use != "rating":
                found[name] = pa.string()
            elif whole or (use == "timestamp" and (number or not skip)):
                found[name] = pa.int64()
            else:
                raise LonghaulError(
                    f"{source.url}, line {line}: column '{name}' is {json.dumps(value)}; "
                    "ids are integers or strings"
                )
        return found

    return explain.first_record(source, skip, types)
