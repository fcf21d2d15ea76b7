"""What an evaluation found for each user, as Parquet: written in parts, committed at the end.

A part is a run of blocks, so its bytes follow from the data set, the protocol and the scorer alone,
whichever worker wrote it. ``users.json`` is written last, and names every part with its hash:
without it there are no results.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import storage
from pipeline.errors import LonghaulError, first_mistake
from pipeline.evaluate.blocks import Block, Queries
from pipeline.evaluate.protocol import Protocol
from pipeline.evaluate.ranking import Ranks
from pipeline.manifest import Dataset, File
from pipeline.member import sha256
from pipeline.world import World

COMMIT = "users.json"
_PARTS = 64  # a data set makes about so many parts, of
_USERS = (1024, 65_536)  # at least and about at most so many users


class PerUser(BaseModel):
    """The commit of per-user results: whose they are, and the parts in the order of the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    scorer: str
    step: int | None
    protocol: Protocol
    data: str
    catalogue_size: int
    users: int
    metrics: tuple[str, ...]
    parts: tuple[File, ...]


def plan_parts(blocks: list[Block]) -> list[list[Block]]:
    """The blocks in the parts that are written together."""
    users = sum(block.users for block in blocks)
    wanted = min(max(users // _PARTS, _USERS[0]), _USERS[1])
    parts: list[list[Block]] = []
    size = wanted
    for block in blocks:
        if size >= wanted:
            parts.append([])
            size = 0
        parts[-1].append(block)
        size += block.users
    return parts


class PerUserWriter:
    """One worker's parts of the results in a folder, a part at a time in memory.

    All workers make one, which removes what a former evaluation committed there.
    """

    def __init__(self, folder: str, world: World) -> None:
        self.folder = folder
        self._world = world
        self._rows: list[pa.Table] = []
        self._written: list[tuple[int, int, File]] = []  # number, users, file
        self._metrics: tuple[str, ...] = ()
        world.on_rank_zero(lambda: _clear(folder))

    def add(self, queries: Queries, ranks: Ranks, values: Mapping[str, np.ndarray]) -> None:
        """Rows for one batch; values: by metric, float64 ``[n]``."""
        offsets = pa.array(queries.offsets.numpy(), pa.int32())
        strings = queries.keys.dtype.kind == "S"
        keys = pa.array(queries.keys.tolist(), pa.binary() if strings else pa.int64())

        def lists(of: np.ndarray, kind: pa.DataType) -> pa.Array:
            return pa.ListArray.from_arrays(offsets, pa.array(of, kind))

        self._metrics = tuple(values)
        self._rows.append(
            pa.table(
                {
                    "user": keys.cast(pa.string()) if strings else keys,
                    "history": pa.array(queries.history, pa.int64()),
                    "known": pa.array(queries.known, pa.bool_()),
                    "targets": lists(queries.targets.numpy(), pa.int64()),
                    "ranks": lists(ranks.pessimistic, pa.int64()),
                    "ties": lists(ranks.ties, pa.int64()),
                    **{name: pa.array(value, pa.float64()) for name, value in values.items()},
                }
            )
        )

    def end_part(self, number: int) -> None:
        """Write the rows since the last part as part ``number``; one without rows is left out."""
        if not self._rows:
            return
        table = pa.concat_tables(self._rows).combine_chunks()
        self._rows = []
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", row_group_size=_USERS[1])
        content = sink.getvalue().to_pybytes()
        name = f"part-{number:06d}.parquet"
        storage.write_bytes(storage.join(self.folder, name), content)
        file = File(path=name, bytes=len(content), sha256=sha256(content))
        self._written.append((number, len(table), file))

    def commit(self, scorer: str, step: int | None, protocol: Protocol, dataset: Dataset) -> None:
        """All workers: the parts are complete; from now on they exist."""
        gathered = self._world.gather((self._written, self._metrics))
        written = sorted(part for parts, _ in gathered for part in parts)
        metrics = next(filter(None, (names for _, names in gathered)), ())
        found = PerUser(
            scorer=scorer,
            step=step,
            protocol=protocol,
            data=dataset.fingerprint,
            catalogue_size=dataset.manifest.catalogue_size,
            users=sum(users for _, users, _ in written),
            metrics=metrics,
            parts=tuple(file for _, _, file in written),
        )
        url = storage.join(self.folder, COMMIT)
        self._world.on_rank_zero(lambda: storage.write_json(url, found.model_dump(mode="json")))


def _clear(folder: str) -> None:
    """Remove a former evaluation. The commit first: what is left must not pass for whole."""
    storage.remove(storage.join(folder, COMMIT))
    for name in storage.files_below(folder):
        if name.startswith("part-"):
            storage.remove(storage.join(folder, name))


def read_commit(folder: str) -> PerUser | None:
    """What is committed in a folder, or None. Raises LonghaulError for another schema."""
    url = storage.join(folder, COMMIT)
    if not storage.exists(url):
        return None
    try:
        return PerUser.model_validate(storage.read_json(url))
    except ValidationError as error:
        raise LonghaulError(
            f"{url} is not of this longhaul: {first_mistake(error)}; evaluate again"
        ) from error


def read_parts(folder: str, found: PerUser, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The parts one after the other, some columns of them, checked against their hashes."""
    for part in found.parts:
        url = storage.join(folder, part.path)
        content = storage.read_bytes(url)
        if sha256(content) != part.sha256:
            raise LonghaulError(f"{url} is damaged: it is not what {COMMIT} names; evaluate again")
        yield pq.read_table(io.BytesIO(content), columns=list(columns))
