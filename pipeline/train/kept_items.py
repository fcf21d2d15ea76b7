"""The keys of a run's items, kept with the run: its data set may be extended, moved or gone.

``RUN/items.parquet`` is the data set's own map of items, byte for byte; checkpoints name its hash.
"""

import pyarrow as pa

from pipeline import storage
from pipeline.config import Recipe
from pipeline.errors import DamagedError, LonghaulError
from pipeline.manifest import ITEMS, Dataset, open_dataset, parquet_rows
from pipeline.member import sha256
from pipeline.train.checkpoint import COMMIT, Checkpoint


def keep_items(run_url: str, dataset: Dataset, anew: bool) -> None:
    """Have the map of items in the run; ``anew``: whatever is there."""
    url = storage.join(run_url, ITEMS)
    if anew or not storage.exists(url):
        storage.write_bytes(url, dataset.item_map())


def keys_of_run(run_url: str, kept: Checkpoint, recipe: Recipe) -> pa.ChunkedArray:
    """The keys of a checkpoint's items, entry ``i - 1`` that of item ``i``.

    Runs of before kept no map: theirs is that of the data set, as long as it is the same. Raises
    LonghaulError where the map is damaged or gone.
    """
    if kept.commit.items is not None:
        url = storage.join(run_url, ITEMS)
        content = storage.read_bytes(url)
        if sha256(content) != kept.commit.items:
            raise DamagedError(f"{url} is damaged: it does not have the hash in {COMMIT}")
        return parquet_rows(content).column("key")
    dataset = open_dataset(recipe.data.path)
    if dataset.fingerprint != kept.state.data.fingerprint:
        raise LonghaulError(
            f"{run_url} keeps no map of its items, and {dataset.url} holds other data than it was "
            "trained on: restore the data set"
        )
    return dataset.read_items().column("key")
