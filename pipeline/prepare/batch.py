"""Rows as a reader gives them, before their columns have types; and those that lists stand for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.prepare.bad import NO_LIST, BadValues, Origin, Sieve
from pipeline.prepare.inputs import Source
from pipeline.prepare.options import Use


@dataclass(frozen=True)
class Batch:
    """Rows of a file: columns by use, and of each row where it comes from."""

    columns: dict[Use, pa.Array]
    origin: Callable[[int], Origin]

    def __len__(self) -> int:
        return len(self.columns["user"])

    def where(self, kept: np.ndarray) -> "Batch":
        """The rows that ``kept``, bool ``[N]``, marks."""
        rows = np.flatnonzero(kept)
        mask = pa.array(kept)
        columns = {use: array.filter(mask) for use, array in self.columns.items()}
        return Batch(columns, lambda row: self.origin(int(rows[row])))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def exploded(source: Source, columns: dict[Use, pa.Array], first: int, sieve: Sieve) -> Batch:
    """Rows of a file from its row ``first`` on; where columns hold lists, a row for each entry.

    The lists of a row go side by side and what is no list is repeated; an empty or missing list
    has no entries.
    """
    lists = [use for use, array in columns.items() if is_list(array.type)]
    if not lists:
        return Batch(columns, lambda row: (first + row, NO_LIST))
    lengths = {
        use: pc.list_value_length(columns[use]).fill_null(0).to_numpy(zero_copy_only=False)
        for use in lists
    }
    entries = lengths[lists[0]].astype(np.int64)
    even = np.ones(len(entries), bool)
    for use in lists[1:]:
        even &= lengths[use] == entries
    for row in np.flatnonzero(~even).tolist():
        names = " and ".join(f"'{source.columns[use]}'" for use in lists)
        counts = " and ".join(str(lengths[use][row]) for use in lists)
        reason = "has lists of different lengths"
        line = f"the lists in columns {names} have {counts} entries; mend the row"
        if not sieve.skip:
            bad = BadValues(np.array([row]), names, reason, line)
            raise sieve.refused((first + row, NO_LIST), bad)
        sieve.skipped((first + row, NO_LIST), None, counts, reason)
    rows = np.flatnonzero(even)
    entries = entries[rows]
    parents = np.repeat(rows, entries)
    starts = np.cumsum(entries) - entries
    places = np.arange(len(parents)) - np.repeat(starts, entries)
    kept = pa.array(even)
    events = {
        use: pc.list_flatten(array.filter(kept)) if use in lists else array.take(pa.array(parents))
        for use, array in columns.items()
    }
    return Batch(events, lambda row: (first + int(parents[row]), int(places[row])))
