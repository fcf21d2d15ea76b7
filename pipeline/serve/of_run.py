"""What is served, from a trained run: the model's items have their keys in the run's data set."""

import numpy as np
import pyarrow as pa

from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset, open_dataset
from pipeline.serve.keys import ItemKeys, from_bytes
from pipeline.serve.model import ServedModel, hash_of, window_of
from pipeline.train.trained import Trained


def served_of(trained: Trained) -> ServedModel:
    """For serving. LonghaulError where the data set is no longer the one that was trained on."""
    recipe = trained.recipe
    dataset = open_dataset(recipe.data.path)
    if dataset.fingerprint != trained.fingerprint:
        raise LonghaulError(
            f"run {recipe.name} was trained on other data than {dataset.url} now holds, whose item "
            "keys may differ: restore the data set"
        )
    keys = item_keys(dataset)
    masks = recipe.train.objective.masks
    return ServedModel(
        model=trained.model,
        keys=keys,
        rule=recipe.serving,
        window=window_of(trained.model, masks, recipe.evaluation.max_history),
        masks=masks,
        hash=hash_of(trained.model, keys),
    )


def item_keys(dataset: Dataset) -> ItemKeys:
    """The keys of a data set's catalogue."""
    return ItemKeys(array_of(dataset.read_items().column("key")))


def array_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of keys as an array, see ``serve.keys``."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_integer(column.type):
        found: np.ndarray = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        return found
    texts = column.cast(pa.large_binary())
    _, starts, content = texts.buffers()
    offsets = np.frombuffer(starts, np.int64)[texts.offset :][: len(texts) + 1]
    used = np.frombuffer(content or b"", np.uint8)[offsets[0] : offsets[-1]]
    return from_bytes(used, offsets - offsets[0])
