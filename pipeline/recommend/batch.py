"""Recommendations in batch: the best items for all users of a data set, or for a few by key."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from models.batch import PackedBatch
from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.evaluate import Scorer, top_k
from pipeline.manifest import Dataset
from pipeline.member import Member
from pipeline.prepare.keys import hash_keys
from pipeline.prepare.layout import shard_of

_BATCH_TOKENS = 8192

# Member and the users in it to recommend for, i64 ``[n]``.
_Share = tuple[int, np.ndarray]


def recommend(
    dataset: Dataset,
    scorer: Scorer,
    output: str,
    *,
    k: int,
    max_history: int,
    users: Sequence[str] | None = None,
    seen: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the ``k`` best items of each user to a Parquet file; the number of users.

    Columns: ``user`` (key), ``items`` (list of item keys, best first), ``scores`` (list of
    float). The whole history counts, its newest ``max_history`` events as input. users: keys as
    text, or None for all. seen: whether items of the history may be recommended again.

    Raises LonghaulError for a key that is not in the data set.
    """
    shares = _all(dataset) if users is None else _chosen(dataset, users)
    total = dataset.manifest.users if users is None else len(set(users))
    item_keys = dataset.read_items().column("key")
    user_type = pa.int64() if dataset.manifest.user_type == "int64" else pa.string()
    schema = pa.schema(
        [
            ("user", user_type),
            ("items", pa.list_(item_keys.type)),
            ("scores", pa.list_(pa.float32())),
        ]
    )
    done = 0
    with storage.create(output) as file, pq.ParquetWriter(file, schema) as writer:
        for histories, keys in _batches(dataset, shares, max_history):
            table = _lists(scorer, histories, keys, k, max_history, seen, item_keys, schema)
            writer.write_table(table)
            done += len(keys)
            if progress is not None:
                progress(done, total)
    return done


def _lists(
    scorer: Scorer,
    histories: list[np.ndarray],
    keys: list[object],
    k: int,
    max_history: int,
    seen: bool,
    item_keys: pa.ChunkedArray,
    schema: pa.Schema,
) -> pa.Table:
    windows = _pack([history[-max_history:] for history in histories])
    batch = PackedBatch(*windows, torch.zeros_like(windows[0]))
    with torch.no_grad():
        scores = scorer.score(batch)
        everything = None if seen else _pack(histories)
        items, values = top_k(scores, k, everything, lambda row: f"user {keys[row]}")
    # Where fewer than k items are left the list is shorter; item 0 fills it up.
    found = (items > 0).cpu().numpy()
    offsets = pa.array(np.concatenate([[0], found.sum(axis=1).cumsum()]), pa.int32())
    names = item_keys.take(pa.array(items.cpu().numpy()[found] - 1)).combine_chunks()
    numbers = pa.array(values.float().cpu().numpy()[found])
    columns = [
        pa.array(keys, schema.field("user").type),
        pa.ListArray.from_arrays(offsets, names),
        pa.ListArray.from_arrays(offsets, numbers),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _pack(histories: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([0, *map(len, histories)])
    return torch.from_numpy(np.concatenate(histories).astype(np.int64)), lengths.cumsum(0)


def _batches(
    dataset: Dataset, shares: Iterator[_Share], max_history: int
) -> Iterator[tuple[list[np.ndarray], list[object]]]:
    """(histories, keys) of as many users as fit the token budget of a batch."""
    histories: list[np.ndarray] = []
    keys: list[object] = []
    tokens = 0
    for number, positions in shares:
        member = dataset.read(number)
        for position in positions.tolist():
            begin, end = map(int, member.offsets[position : position + 2])
            histories.append(member.items[begin:end])
            keys.append(_key(member, position))
            tokens += min(end - begin, max_history)
            if tokens >= _BATCH_TOKENS:
                yield histories, keys
                histories, keys, tokens = [], [], 0
    if keys:
        yield histories, keys


def _key(member: Member, position: int) -> object:
    key = member.users[position]
    return key.decode() if isinstance(key, bytes) else int(key)


def _all(dataset: Dataset) -> Iterator[_Share]:
    for member, users in enumerate(dataset.users.tolist()):
        yield member, np.arange(users)


def _chosen(dataset: Dataset, users: Sequence[str]) -> Iterator[_Share]:
    """Where the users with these keys lie, a member at a time."""
    keys: object = list(dict.fromkeys(users))
    if dataset.manifest.user_type == "int64":
        try:
            keys = list(dict.fromkeys(int(key) for key in users))
        except ValueError as error:
            raise LonghaulError(f"the users of {dataset.url} are integers: {error}") from error
    wanted = pa.array(keys)
    homes = shard_of(hash_keys(wanted), len(dataset.manifest.shards))
    for shard in np.unique(homes).tolist():
        here = wanted.filter(pa.array(homes == shard))
        table = dataset.read_users(shard)
        here = here.cast(table.schema.field("key").type)
        absent = pc.filter(here, pc.invert(pc.is_in(here, table.column("key"))))
        if len(absent):
            raise LonghaulError(f"user {absent[0].as_py()} is not in {dataset.url}")
        rows = table.filter(pc.is_in(table.column("key"), here))
        places = zip(
            (dataset.first_member(shard) + rows.column("member").to_numpy()).tolist(),
            rows.column("position").to_pylist(),
            strict=True,
        )
        for member, group in groupby(places, key=lambda place: place[0]):
            yield member, np.array([position for _, position in group])
