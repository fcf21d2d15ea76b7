"""Which items may be in a list: keys allowed or denied, and conditions on a table of items.

What is named must exist: an unknown key, column or operator is an error, since a list with one item
too many, or too few, looks like any other.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.mistakes import nearest

_KEY_COLUMNS = ("key", "item")
_ROWS = 65_536  # of a table of items, in memory at a time

_COMPARE: dict[str, Callable[[pa.Array, pa.Scalar], pa.Array]] = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_COMPARISON = re.compile(
    r"\s*(?P<column>[^<>=!]+?)\s*(?P<operator><=|>=|!=|==?|<|>)\s*"
    r"(?:\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)'"
    r"|(?P<bare>(?![\"'])(?:(?!\s(?:and|or)(?:\s|$))[^<>=!])+?))"
    r"(?:\s+and\s+(?=\S)|\s*$)"
)


class Chosen(BaseModel):
    """How the candidates were chosen, as the manifest tells it: files by URL, ``count`` of the
    catalogue, and ``sha256`` of the bits, by which two choices are compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allow: str | None
    deny: str | None
    items: str | None
    where: str | None
    count: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Candidates:
    """The items that may be in a list. bits: the bool mask ``[V + 1]``, eight to a byte."""

    chosen: Chosen
    bits: np.ndarray
    catalogue_size: int

    def mask(self) -> torch.Tensor:
        """Bool ``[V + 1]``, as ``top_k`` takes it."""
        return torch.from_numpy(
            np.unpackbits(self.bits, count=self.catalogue_size + 1).astype(bool)
        )


def read_candidates(
    dataset: Dataset,
    *,
    allow: str | None = None,
    deny: str | None = None,
    items: str | None = None,
    where: str | None = None,
) -> Candidates | None:
    """The items of the catalogue that are allowed, not denied, and meet the conditions.

    allow, deny: files of item keys: text with a key a line, or Parquet with a column ``key`` or
    ``item``, or only one. items: a table of items in Parquet, with its keys in such a column; it
    must have every item of the catalogue once, and may have more. where: conditions on its other
    columns, as ``category=books and price<20``; what is null meets none. None where nothing is
    asked for.

    Raises LonghaulError for keys that are not in the data set, items that the table lacks, columns
    that it does not have, a value that is none of the column's type, or if nothing is left.
    """
    if (items is None) != (where is None):
        raise LonghaulError("--items names the table that --where is about: give both, or none")
    if allow is None and deny is None and where is None:
        return None
    keys = dataset.read_items().column("key").combine_chunks()
    mask = np.ones(len(keys) + 1, dtype=bool)
    mask[0] = False
    if allow is not None:
        allowed = np.zeros_like(mask)
        allowed[_listed(allow, keys, dataset)] = True
        mask &= allowed
    if deny is not None:
        mask[_listed(deny, keys, dataset)] = False
    if items is not None and where is not None:
        mask[1:] &= _meeting(items, where, keys, dataset)
    if not mask.any():
        raise LonghaulError(f"no item is left to recommend of the {len(keys):,} in {dataset.url}")
    bits = np.packbits(mask)
    chosen = Chosen(
        allow=allow and storage.absolute(allow),
        deny=deny and storage.absolute(deny),
        items=items and storage.absolute(items),
        where=where,
        count=int(mask.sum()),
        sha256=hashlib.sha256(bits.tobytes()).hexdigest(),
    )
    return Candidates(chosen, bits, len(keys))


def _listed(url: str, keys: pa.Array, dataset: Dataset) -> np.ndarray:
    """The items, i64, whose keys are in the file."""
    with storage.opened(url) as file:
        if file.read(4) == b"PAR1":
            table = pq.ParquetFile(file)
            column = _key_column(table.schema_arrow.names, url)
            given = table.read(columns=[column]).column(0).combine_chunks()
        else:
            file.seek(0)
            lines = (line.strip() for line in file.read().decode(errors="replace").splitlines())
            given = pa.array([line for line in lines if line], pa.string())
    places = pc.index_in(_typed(given, keys.type, url, dataset), value_set=keys)
    unknown = pc.filter(given, pc.is_null(places))
    if len(unknown):
        raise LonghaulError(
            f"{url}: {len(unknown):,} of its {len(given):,} keys are no items of {dataset.url}, "
            f"as {unknown[0].as_py()!r}"
        )
    listed: np.ndarray = places.to_numpy().astype(np.int64) + 1
    return listed


def _typed(given: pa.Array, wanted: pa.DataType, url: str, dataset: Dataset) -> pa.Array:
    try:
        return given.cast(wanted)
    except pa.ArrowException as error:
        raise LonghaulError(
            f"{url}: the items of {dataset.url} are {wanted}: {str(error).splitlines()[0]}"
        ) from error


def _key_column(names: list[str], url: str) -> str:
    for name in (*_KEY_COLUMNS, *(names if len(names) == 1 else [])):
        if name in names:
            return name
    raise LonghaulError(
        f"{url} has no column 'key' or 'item' for the keys of items; there are: {', '.join(names)}"
    )


def _meeting(url: str, where: str, keys: pa.Array, dataset: Dataset) -> np.ndarray:
    """Whether each item, bool ``[V]``, meets the conditions by its row in the table."""
    met = np.zeros(len(keys), dtype=bool)
    found = np.zeros(len(keys), dtype=bool)
    with storage.opened(url) as file:
        try:
            table = pq.ParquetFile(file)
        except pa.ArrowException as error:
            raise LonghaulError(f"{url} is no Parquet file: {error}") from error
        schema = table.schema_arrow
        column = _key_column(schema.names, url)
        conditions = parse_conditions(where, schema, url)
        wanted = list(dict.fromkeys([column, *(each.column for each in conditions)]))
        for batch in table.iter_batches(_ROWS, columns=wanted):
            given = _typed(batch.column(column), keys.type, url, dataset)
            places = pc.index_in(given, value_set=keys)
            known = pc.is_valid(places)
            rows = places.filter(known).to_numpy().astype(np.int64)
            again = rows[found[rows]] if len(np.unique(rows)) == len(rows) else _twice(rows)
            if len(again):
                raise LonghaulError(f"{url}: item {keys[int(again[0])].as_py()!r} is there twice")
            found[rows] = True
            meets = reduce(pc.and_, (each.met(batch) for each in conditions))
            met[rows] = meets.fill_null(False).filter(known).to_numpy(zero_copy_only=False)
    if not found.all():
        absent = np.flatnonzero(~found)
        raise LonghaulError(
            f"{url} lacks {len(absent):,} of the {len(keys):,} items of {dataset.url}, as "
            f"{keys[int(absent[0])].as_py()!r}: whether they meet {where!r} cannot be told"
        )
    return met


def _twice(rows: np.ndarray) -> np.ndarray:
    values, counts = np.unique(rows, return_counts=True)
    several: np.ndarray = values[counts > 1]
    return several


@dataclass(frozen=True)
class Condition:
    """A column compared with a value of its type."""

    column: str
    operator: str
    value: pa.Scalar

    def met(self, batch: pa.RecordBatch) -> pa.Array:
        """Bool ``[rows]``; null where the column is."""
        column = batch.column(self.column)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return _COMPARE[self.operator](column, self.value)


def parse_conditions(where: str, schema: pa.Schema, url: str) -> list[Condition]:
    """The comparisons in ``where``, joined by ``and``, on columns of ``schema``.

    A value may stand in quotes, and must where it holds an operator, or and or or as a word.
    Raises LonghaulError as ``read_candidates``.
    """
    conditions: list[Condition] = []
    at = 0
    while at < len(where) or not conditions:
        found = _COMPARISON.match(where, at)
        if found is None:
            raise LonghaulError(
                f"--where: {where[at:].strip()!r} is not of the form COLUMN=VALUE; comparisons "
                "(= != < <= > >=) are joined by and; quote a value that holds one of these words"
            )
        value = next(
            found[name] for name in ("double", "single", "bare") if found[name] is not None
        )
        conditions.append(_condition(found["column"], found["operator"], value, schema, url))
        at = found.end()
    return conditions


def _condition(column: str, operator: str, text: str, schema: pa.Schema, url: str) -> Condition:
    if column not in schema.names:
        raise LonghaulError(
            f"--where: {url} has no column {column!r}{nearest(column, schema.names)}"
        )
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    try:
        value = pa.scalar(text, pa.string()).cast(kind)
        _COMPARE[operator](pa.array([value.as_py()], kind), value)
    except (pa.ArrowException, ValueError) as error:
        raise LonghaulError(
            f"--where: column {column!r} of {url} holds {kind}, which cannot be compared with "
            f"{text!r} by {operator}"
        ) from error
    return Condition(column, operator, value)
