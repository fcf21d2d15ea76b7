"""From histories to files: shards with their maps of users, then the map of items and the index."""

import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline import storage
from pipeline.manifest import INDEX, INDEX_SCHEMA, ITEMS, SHARDS, USERS, File
from pipeline.member import SHARD_END, TRAIN_END, Member, encode_member, sha256
from pipeline.prepare.layout import cut_members

_ROW_GROUP = 2**20


@dataclass(frozen=True, eq=False)
class ShardHistories:
    """The histories of one shard, users by (hash, key), events by time.

    user_keys ``[U]``. lengths: i64 ``[U]``. splits: u32 ``[U, 4]``. items: u32 ``[T]``, 1..V.
    times: i64 ``[T]``, or None. actions: u8 ``[T]``, or None.
    """

    user_keys: pa.Array
    lengths: np.ndarray
    splits: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    actions: np.ndarray | None


@dataclass
class Shard:
    """What is known of a shard once it is written: its file, that of its users, and the rows for
    the index."""

    file: File
    users: File
    index: list[dict[str, Any]]


def write_shard(
    output: str,
    number: int,
    histories: ShardHistories,
    most_users: int,
    advance: Callable[[int], None],
) -> Shard:
    """Write shard ``number``: the users whose hash lies in its range, in members.

    ``advance`` hears of the events of each member. Raises LonghaulError where the write fails;
    then no such file exists.
    """
    path = f"{SHARDS}/{number:05d}.tar"
    bounds = cut_members(histories.lengths, most_users)
    offsets = np.concatenate([[0], np.cumsum(histories.lengths)])
    keys = _keys(histories.user_keys)
    index: list[dict[str, Any]] = []
    whole = hashlib.sha256()
    start = 0
    with storage.create(storage.join(output, path)) as file:
        for count, (first, last) in enumerate(pairwise(bounds.tolist())):
            key = f"{number:05d}-{count:06d}"
            member = _member(histories, offsets, keys, first, last)
            content, head = encode_member(key, member)
            file.write(content)
            whole.update(content)
            index.append(
                {
                    "shard": path,
                    "member": key,
                    "start": start,
                    "stop": start + len(content),
                    "sha256": sha256(content),
                    "head": head,
                    "head_sha256": sha256(content[:head]),
                    "users": last - first,
                    "events": len(member.items),
                    "train_events": int(member.splits[:, TRAIN_END].sum(dtype=np.int64)),
                }
            )
            start += len(content)
            advance(len(member.items))
        file.write(SHARD_END)
        whole.update(SHARD_END)
    entry = File(path=path, bytes=start + len(SHARD_END), sha256=whole.hexdigest())
    return Shard(entry, _write_users(output, number, histories, bounds), index)


def _keys(keys: pa.Array) -> np.ndarray:
    """User keys as a member stores them: i64, or UTF-8 bytes, whose width numpy decides later."""
    if pa.types.is_integer(keys.type):
        integers: np.ndarray = keys.to_numpy()
        return integers
    texts: np.ndarray = keys.cast(pa.large_binary()).to_numpy(zero_copy_only=False)
    return texts


def _member(
    histories: ShardHistories, offsets: np.ndarray, keys: np.ndarray, first: int, last: int
) -> Member:
    start, stop = int(offsets[first]), int(offsets[last])
    times, actions = histories.times, histories.actions
    users = keys[first:last]
    return Member(
        items=histories.items[start:stop],
        offsets=(offsets[first : last + 1] - start).astype(np.uint64),
        users=users.astype("S") if users.dtype == object else users,
        splits=histories.splits[first:last],
        timestamps=None if times is None else times[start:stop],
        actions=None if actions is None else actions[start:stop],
    )


def _write_users(output: str, number: int, histories: ShardHistories, bounds: np.ndarray) -> File:
    """Write the map of a shard's users, in their order there."""
    sizes = np.diff(bounds)
    members = np.repeat(np.arange(len(sizes)), sizes)
    table = pa.table(
        {
            "key": histories.user_keys,
            "member": members.astype(np.uint32),
            "position": (np.arange(len(members)) - bounds[members]).astype(np.uint32),
            "events": histories.lengths,
        }
    )
    return _write_table(output, f"{USERS}/{number:05d}.parquet", table)


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


def write_items(output: str, keys: pa.Array, counts: dict[str, np.ndarray]) -> File:
    """Write the map of items, by id; ``counts``: columns of how often each occurs, i64 ``[V]``."""
    ids = np.arange(1, len(keys) + 1, dtype=np.uint32)
    return _write_table(output, ITEMS, pa.table({"item": ids, "key": keys, **counts}))


def write_index(output: str, shards: Iterable[Shard]) -> File:
    """Write the index, one row a member."""
    rows = [row for shard in shards for row in shard.index]
    return _write_table(output, INDEX, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))


def write_document(output: str, name: str, document: BaseModel) -> None:
    """Write a model as JSON with its fields in their order, which counts rely on."""
    content = document.model_dump_json(indent=2).encode() + b"\n"
    storage.write_bytes(storage.join(output, name), content)
