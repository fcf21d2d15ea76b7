"""What makes a data set exist: the manifest, and the index that every read is checked against.

``prepare`` writes both, the manifest last; every later stage opens a data set through
``open_dataset``, which refuses one whose index is not the one the manifest names.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import storage
from pipeline.errors import DamagedError, LonghaulError, first_mistake
from pipeline.member import Head, Member, decode_head, decode_member, sha256
from pipeline.transient import read_again

ReadRange = Callable[[str, int, int], bytes]
"""Reads the bytes ``[start, stop)`` at a URL."""

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
INDEX = "index.parquet"
ITEMS = "items.parquet"
BAD_ROWS = "bad_rows.json"  # a report for people, not among the files that the manifest lists
USERS = "users"
# What the map of items counts as recent: the last days of training, or without times the last
# events of each user's training part.
RECENT_DAYS, RECENT_EVENTS = 7, 10
SHARDS = "shards"

INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),  # its path, as in the manifest
        ("member", pa.string()),  # WebDataset key
        ("start", pa.int64()),  # byte range of the member in its shard
        ("stop", pa.int64()),
        ("sha256", pa.string()),  # of that byte range
        ("head", pa.int64()),  # how many of the bytes are the member's head
        ("head_sha256", pa.string()),
        ("users", pa.int64()),
        ("events", pa.int64()),
        ("train_events", pa.int64()),
    ]
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Strict):
    """A file of the data set: its path relative to the manifest, or the URL of one that belongs to
    the data set that this one extends."""

    path: str
    bytes: int
    sha256: str


class Split(_Strict):
    """How histories are cut. Times are in the manifest's unit; windows are half-open."""

    kind: Literal["leave_one_out", "time"]
    train_end: int | None = None
    validation: tuple[int, int] | None = None
    test: tuple[int, int] | None = None


class Base(_Strict):
    """The data set that another one extends, whose files it shares."""

    url: str
    fingerprint: str


class Lineage(_Strict):
    """What the data set was made from, and with which options."""

    base: Base | None = None
    inputs: list[File]
    options: dict[str, object]
    version: str


class Manifest(_Strict):
    """The data set's own description; see ``docs/formats.md`` for every field."""

    schema_version: Literal[3]
    catalogue_size: int
    users: int
    events: int
    members: int
    user_type: Literal["int64", "string"]
    item_type: Literal["int64", "string"]
    timestamp_unit: Literal["s", "ms", "us", "ns"] | None
    actions: list[str] | None
    split: Split
    counts: dict[str, int]  # events in, and what each filter removed, in the order applied
    index: File
    items: File
    user_keys: list[File]  # one a shard
    shards: list[File]
    lineage: Lineage


@dataclass(frozen=True)
class Dataset:
    """An opened data set: where it is, its manifest, and its index as columns.

    ``start``, ``stop``, ``head``, ``users``, ``events``, ``train_events``: i64 ``[M]``, one entry a
    member; bytes ``start`` up to ``start + head`` of its shard are its head.
    """

    url: str
    manifest: Manifest
    shard: list[str]
    member: list[str]
    start: np.ndarray
    stop: np.ndarray
    sha256: list[str]
    head: np.ndarray
    head_sha256: list[str]
    users: np.ndarray
    events: np.ndarray
    train_events: np.ndarray

    def __len__(self) -> int:
        return len(self.member)

    @property
    def fingerprint(self) -> str:
        """The hash of the index, which holds the hash of every member: the data's identity."""
        return self.manifest.index.sha256

    def index_rows(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of the index, by the path of the shard."""
        columns = {
            name: column.tolist() if isinstance(column, np.ndarray) else column
            for name in INDEX_SCHEMA.names
            for column in (getattr(self, name),)
        }
        found: dict[str, list[dict[str, Any]]] = {}
        for row in zip(*columns.values(), strict=True):
            named = dict(zip(columns, row, strict=True))
            found.setdefault(named["shard"], []).append(named)
        return found

    def locate(self, path: str) -> str:
        """The URL of a file that manifest or index name."""
        return path if "://" in path else storage.join(self.url, path)

    def read_items(self) -> pa.Table:
        """The item map, row ``i - 1`` for item ``i``: item, key, events, train_events."""
        return parquet_rows(self.item_map())

    def item_map(self) -> bytes:
        """The file that ``read_items`` reads, checked."""
        return self._checked(self.manifest.items)

    def read_users(self, shard: int) -> pa.Table:
        """The users of a shard, by (hash, key): key, member (in the shard), position, events."""
        return parquet_rows(self._checked(self.manifest.user_keys[shard]))

    def first_member(self, shard: int) -> int:
        """Which member is the first of a shard."""
        return self.shard.index(self.manifest.shards[shard].path)

    def _checked(self, file: File) -> bytes:
        url = self.locate(file.path)
        content = storage.read_bytes(url)
        if sha256(content) != file.sha256:
            raise LonghaulError(
                f"{url} is damaged: it does not have the hash in {MANIFEST}; "
                "copy or prepare the data set again"
            )
        return content

    def name(self, member: int) -> str:
        """Shard and member in words, for errors."""
        shard = self.locate(self.shard[member])
        return f"member {self.member[member]} of {shard}"

    def read(self, member: int) -> Member:
        """One member, checked against the index. Raises LonghaulError as ``fetch_head`` does."""
        start, stop = int(self.start[member]), int(self.stop[member])
        read = storage.read_bytes
        content = self._fetch(member, start, stop, self.sha256[member], read)
        return decode_member(content, self.name(member))

    def fetch_head(self, member: int, read: ReadRange = storage.read_bytes) -> bytes:
        """The bytes of a member's head, read by their range and checked against the index.

        Bytes that are missing or differ are read again, since they may have suffered on the way.
        Raises LonghaulError, naming shard and member, where they go on doing so.
        """
        start = int(self.start[member])
        stop = start + int(self.head[member])
        return self._fetch(member, start, stop, self.head_sha256[member], read)

    def decode_head(self, member: int, content: bytes) -> Head:
        """The head whose checked bytes are ``content``."""
        return decode_head(content, self.name(member))

    def _fetch(self, member: int, start: int, stop: int, wanted: str, read: ReadRange) -> bytes:
        url = self.locate(self.shard[member])

        def fetch() -> bytes:
            try:
                content = read(url, start, stop)
            except LonghaulError as error:
                raise LonghaulError(f"{self.name(member)}: {error}") from error
            if len(content) != stop - start:
                raise DamagedError(
                    f"{self.name(member)} is cut short: the index says bytes {start} to {stop}, "
                    f"{len(content)} could be read; copy or prepare the data set again"
                )
            if sha256(content) != wanted:
                raise DamagedError(
                    f"{self.name(member)} is damaged: its bytes {start} to {stop} do not have the "
                    "hash in the index; copy or prepare the data set again"
                )
            return content

        return read_again(fetch)


def open_dataset(url: str) -> Dataset:
    """Open the data set at ``url``.

    Raises LonghaulError where there is none, it has another schema version, or its index is not
    the one the manifest was written for.
    """
    url = storage.absolute(url)
    manifest_url = storage.join(url, MANIFEST)
    if not storage.exists(manifest_url):
        raise LonghaulError(
            f"no data set at {url}: {MANIFEST} is missing "
            "(write one with `longhaul prepare`; an interrupted one leaves no manifest)"
        )
    document = storage.read_json(manifest_url)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise LonghaulError(
            f"{manifest_url} has schema_version {version}, this longhaul reads {SCHEMA_VERSION}; "
            "prepare the data set again"
        )
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        raise LonghaulError(f"{manifest_url}: {first_mistake(error)}") from error
    index_url = storage.join(url, manifest.index.path)
    content = storage.read_bytes(index_url)
    if sha256(content) != manifest.index.sha256:
        raise LonghaulError(
            f"{index_url} is not the index that {MANIFEST} names (its hash differs); "
            "copy or prepare the data set again"
        )
    table = parquet_rows(content).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    columns = {name: table.column(name) for name in INDEX_SCHEMA.names}

    def integers(name: str) -> np.ndarray:
        # Not to_numpy, which loads pandas: near a second.
        return np.array(np.from_dlpack(columns[name].combine_chunks()))

    return Dataset(
        url=url,
        manifest=manifest,
        shard=columns["shard"].to_pylist(),
        member=columns["member"].to_pylist(),
        start=integers("start"),
        stop=integers("stop"),
        sha256=columns["sha256"].to_pylist(),
        head=integers("head"),
        head_sha256=columns["head_sha256"].to_pylist(),
        users=integers("users"),
        events=integers("events"),
        train_events=integers("train_events"),
    )


def parquet_rows(content: bytes) -> pa.Table:
    """The rows of a Parquet file. Not ``pq.read_table``, which loads pandas too."""
    return pq.ParquetFile(io.BytesIO(content)).read()
