"""Recommendations as a Parquet file, written part by part."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline import storage
from pipeline.evaluate import TableScores, top_k
from pipeline.serve.keys import as_list
from pipeline.serve.model import ServedModel
from pipeline.serve.slots import Rows
from pipeline.serve.states import UserType

_AT_ONCE = 8192  # users


class ListsWriter:
    """Columns as of ``longhaul recommend``: ``user``, ``items`` (keys, best first), ``scores``."""

    def __init__(
        self, writer: pq.ParquetWriter, schema: pa.Schema, served: ServedModel, k: int, seen: bool
    ) -> None:
        self._writer, self._schema, self._served = writer, schema, served
        self._k, self._seen = k, seen
        self.users = 0

    def write(self, users: np.ndarray, rows: Rows) -> None:
        """The lists of these users, whose keys are ``users``."""
        for first in range(0, len(users), _AT_ONCE):
            last = min(first + _AT_ONCE, len(users))
            self._write(users[first:last], rows, first, last)
        self.users += len(users)

    def _write(self, users: np.ndarray, rows: Rows, first: int, last: int) -> None:
        hidden = rows.hidden[first:last].to(self._served.device)
        seen = None
        if not self._seen:
            begin, end = rows.offsets[first], rows.offsets[last]
            history = torch.from_numpy(rows.items[begin:end].astype(np.int64))
            seen = history, torch.from_numpy(rows.offsets[first : last + 1] - begin)
        keys = as_list(users)
        with torch.inference_mode():
            scores = TableScores(hidden, *self._served.model.item_scores())
            items, values = top_k(scores, self._k, seen, lambda row: f"user {keys[row]}")
        found = (items > 0).cpu().numpy()
        offsets = pa.array(np.concatenate([[0], found.sum(axis=1).cumsum()]), pa.int32())
        names = pa.array(
            self._served.keys.keys(items.cpu().numpy()[found]),
            self._schema.field("items").type.value_type,
        )
        columns = [
            pa.array(keys, self._schema.field("user").type),
            pa.ListArray.from_arrays(offsets, names),
            pa.ListArray.from_arrays(offsets, pa.array(values.cpu().numpy()[found])),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))


@contextmanager
def writing_lists(
    output: str, served: ServedModel, user_type: UserType, k: int, seen: bool
) -> Iterator[ListsWriter]:
    """A writer of lists; the file appears whole when the block ends.

    seen: whether items of the history may be recommended again.
    """
    schema = pa.schema(
        [
            ("user", pa.int64() if user_type == "int64" else pa.string()),
            ("items", pa.list_(pa.string() if served.keys.strings else pa.int64())),
            ("scores", pa.list_(pa.float32())),
        ]
    )
    with (
        storage.create(storage.absolute(output)) as file,
        pq.ParquetWriter(file, schema) as writer,
    ):
        yield ListsWriter(writer, schema, served, k, seen)
