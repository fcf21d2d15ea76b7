"""From histories to files: one partition to one shard, then the maps and the index."""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.manifest import INDEX, INDEX_SCHEMA, ITEMS, SHARDS, USERS, File
from pipeline.member import SHARD_END, TRAIN_END, Member, encode_member, sha256
from pipeline.prepare.histories import Catalogue, Histories
from pipeline.prepare.layout import cut_members

_ROW_GROUP = 2**20


@dataclass(frozen=True, eq=False)
class Shard:
    """What is known of a shard once it is written.

    index: rows for the index. bounds: i64 ``[M + 1]``, the members in the partition's users.
    """

    file: File
    index: list[dict[str, Any]]
    bounds: np.ndarray


def _keys(keys: pa.Array) -> np.ndarray:
    """User keys as a member stores them: i64, or UTF-8 bytes padded to the longest."""
    if pa.types.is_integer(keys.type):
        integers: np.ndarray = keys.to_numpy()
        return integers
    return np.array(keys.cast(pa.large_binary()).to_numpy(zero_copy_only=False), dtype="S")


def _member(part: Histories) -> Member:
    return Member(
        items=part.items,
        offsets=part.offsets.astype(np.uint64),
        users=_keys(part.user_keys),
        splits=part.splits,
        timestamps=part.times,
        actions=part.actions,
    )


def count_items(partition: Histories, catalogue_size: int) -> np.ndarray:
    """How often each item occurs in all, and how often it is trained on, i64 ``[2, V]``."""
    lengths = partition.lengths()
    position = np.arange(len(partition.items)) - np.repeat(partition.offsets[:-1], lengths)
    trained = position < np.repeat(partition.splits[:, TRAIN_END], lengths)
    counts = [
        np.bincount(items, minlength=catalogue_size + 1)[1:]
        for items in (partition.items, partition.items[trained])
    ]
    return np.stack(counts)


def write_shard(
    output: str,
    number: int,
    partition: Histories,
    most_users: int,
    advance: Callable[[int], None],
) -> Shard:
    """Write shard ``number``: the users whose hash lies in its range, in members.

    ``advance`` hears of the events of each member. Raises LonghaulError where the write fails;
    then no such file exists.
    """
    name = f"{number:05d}.tar"
    url = storage.join(output, SHARDS, name)
    bounds = cut_members(partition.lengths(), most_users)
    index: list[dict[str, Any]] = []
    whole = hashlib.sha256()
    start = 0
    with storage.create(url) as file:
        for count in range(len(bounds) - 1):
            part = partition.slice(int(bounds[count]), int(bounds[count + 1]))
            key = f"{number:05d}-{count:06d}"
            content, head = encode_member(key, _member(part))
            file.write(content)
            whole.update(content)
            index.append(
                {
                    "shard": name,
                    "member": key,
                    "start": start,
                    "stop": start + len(content),
                    "sha256": sha256(content),
                    "head": head,
                    "head_sha256": sha256(content[:head]),
                    "users": len(part),
                    "events": len(part.items),
                    "train_events": int(part.splits[:, TRAIN_END].sum(dtype=np.int64)),
                }
            )
            start += len(content)
            advance(len(part.items))
        file.write(SHARD_END)
        whole.update(SHARD_END)
    entry = File(path=f"{SHARDS}/{name}", bytes=start + len(SHARD_END), sha256=whole.hexdigest())
    return Shard(entry, index, bounds)


def _write_table(output: str, path: str, table: pa.Table) -> File:
    """Write a Parquet file whose bytes follow from the table alone."""
    buffer = io.BytesIO()
    kinds = [pa.string() if kind == pa.large_string() else kind for kind in table.schema.types]
    schema = pa.schema(list(zip(table.schema.names, kinds, strict=True)))
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for start in range(0, len(table), _ROW_GROUP):
            # One chunk a row group: how the table was put together must not show.
            part = table.slice(start, _ROW_GROUP).combine_chunks().cast(schema)
            writer.write_table(part, row_group_size=_ROW_GROUP)
    content = buffer.getvalue()
    storage.write_bytes(storage.join(output, path), content)
    return File(path=path, bytes=len(content), sha256=sha256(content))


def write_items(output: str, catalogue: Catalogue, counts: np.ndarray) -> File:
    """Write the map of items, sorted by item; ``counts`` is the sum of ``count_items``."""
    table = pa.table(
        {
            "item": np.arange(1, len(catalogue) + 1, dtype=np.uint32),
            "key": catalogue.item_keys,
            "events": counts[0],
            "train_events": counts[1],
        }
    )
    return _write_table(output, ITEMS, table)


def write_users(output: str, histories: Histories, shards: list[Shard]) -> File:
    """Write the map of users, sorted by key."""
    sizes = [np.diff(shard.bounds) for shard in shards]
    per_member = np.concatenate(sizes)  # users of each member, in the order of the index
    members = np.repeat(np.arange(len(per_member)), per_member)
    firsts = np.concatenate([[0], np.cumsum(per_member)])
    table = pa.table(
        {
            "key": histories.user_keys,
            "shard": np.repeat(
                np.arange(len(shards), dtype=np.uint32), [int(size.sum()) for size in sizes]
            ),
            "member": members.astype(np.uint32),
            "position": (np.arange(len(members)) - firsts[members]).astype(np.uint32),
            "events": histories.lengths(),
        }
    )
    by_key = pa.compute.array_sort_indices(histories.user_keys)
    return _write_table(output, USERS, table.take(by_key))


def write_index(output: str, shards: list[Shard]) -> File:
    """Write the index, one row a member."""
    rows: Iterator[dict[str, Any]] = (row for shard in shards for row in shard.index)
    return _write_table(output, INDEX, pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA))
