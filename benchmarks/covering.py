"""Data sets whose catalogue has exactly as many items as asked for."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest import Dataset, open_dataset
from pipeline.prepare import PrepareOptions, prepare

HISTORY = 100  # events of a user
_LEAST_EVENTS = 2_000_000
_SLICE = 1 << 20


def covering(items: int, folder: Path) -> Dataset:
    """Every item once, popular ones (by Zipf) as often again; made where it is missing."""
    made = folder / f"covering-{items}"
    if not (made / "manifest.json").exists():
        log = folder / f"covering-{items}.parquet"
        _write_log(items, log)
        prepare(PrepareOptions(inputs=[str(log)], output=str(made), timestamp="timestamp"))
        log.unlink()
    return open_dataset(str(made))


def _write_log(items: int, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    events = max(_LEAST_EVENTS, 2 * items)
    once = rng.permutation(np.arange(1, items + 1))
    with pq.ParquetWriter(
        log, pa.schema({n: pa.int64() for n in ("user", "item", "timestamp")})
    ) as to:
        for first in range(0, events, _SLICE):
            at = np.arange(first, min(first + _SLICE, events))
            # Log-uniform ranks are Zipf's law with exponent one.
            drawn = np.exp(rng.random(len(at)) * np.log(items)).astype(np.int64)
            # Each other event, while there are some left, is of an item that has not come up yet.
            fresh = (at % 2 == 0) & (at // 2 < items)
            drawn[fresh] = once[at[fresh] // 2]
            to.write_table(pa.table({"user": at // HISTORY, "item": drawn, "timestamp": at}))
