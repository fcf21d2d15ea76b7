"""From histories to lists of item keys with scores, as Arrow tables and as one part's file."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.evaluate import Scorer, ShardedScorer, top_k
from pipeline.recommend.histories import Histories, Share, batches, shares_of
from pipeline.recommend.request import Request, part_name

T = TypeVar("T")

_GROUP_USERS = 16_384  # of a row group, which is what is held before it is written
_TELL, _PART = b"longhaul.request", b"longhaul.part"
_NOBODY = Histories(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(2, np.int64))


class Lister:
    """Makes the lists of a request with one scorer.

    Holds, beside the scorer, the keys of the items and the mask of candidates, and for the moment
    a batch of histories, what ``top_k`` takes, and the lists of a row group. Workers who score
    together do so batch by batch: each takes one, or nobody's where it has none and another has.
    """

    def __init__(self, request: Request, scorer: Scorer) -> None:
        dataset, candidates = request.dataset, request.candidates
        self._request, self._scorer = request, scorer
        self._world = scorer.world if isinstance(scorer, ShardedScorer) else None
        self._candidates = None if candidates is None else candidates.mask()
        self._item_keys = dataset.read_items().column("key").combine_chunks()
        self.schema = pa.schema(
            [
                ("user", pa.int64() if dataset.manifest.user_type == "int64" else pa.string()),
                ("items", pa.list_(self._item_keys.type)),
                ("scores", pa.list_(pa.float32())),
            ]
        )

    def tables(self, shares: Iterable[Share]) -> Iterator[pa.Table]:
        """The lists of these users in their order, a table a batch."""
        for histories in batches(self._request.dataset, shares):
            if self._world is not None:
                self._world.gather(True)
            yield self._table(histories)

    def in_company(self, make: Callable[[], T]) -> T:
        """``make()``, which may make tables, then company for those who still make theirs.

        All workers who score together call this. Raises on this one alone what ``make`` raised, or
        what went wrong with a batch of another.
        """
        try:
            made = make()
        except LonghaulError:
            with contextlib.suppress(LonghaulError):  # the first one is told
                self._accompany()
            raise
        self._accompany()
        return made

    def _accompany(self) -> None:
        """Score nobody as often as any of the others scores. Raises in the end what went wrong."""
        failure: LonghaulError | None = None
        while self._world is not None and any(self._world.gather(False)):
            # What is wrong with a batch ends it at the same place on all workers.
            try:
                self._best(_NOBODY, "an empty history".format)
            except LonghaulError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    @torch.no_grad()
    def _best(
        self, histories: Histories, name: Callable[[int], str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self._scorer.score(histories.windows(self._request.max_history))
        seen = None if self._request.seen else histories.packed()
        return top_k(scores, self._request.k, seen, name, candidates=self._candidates)

    def _table(self, histories: Histories) -> pa.Table:
        items, values = self._best(histories, histories.name)
        # Where fewer than k items are left the list is shorter; item 0 fills it up.
        found = (items > 0).cpu().numpy()
        offsets = pa.array(np.concatenate([[0], found.sum(axis=1).cumsum()]), pa.int32())
        names = self._item_keys.take(pa.array(items.cpu().numpy()[found] - 1))
        numbers = pa.array(values.float().cpu().numpy()[found])
        columns = [
            _keys(histories.keys),
            pa.ListArray.from_arrays(offsets, names),
            pa.ListArray.from_arrays(offsets, numbers),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)


def _keys(keys: np.ndarray) -> pa.Array:
    if keys.dtype.kind == "S":
        return pa.array(keys.tolist(), pa.binary()).cast(pa.string())
    return pa.array(keys.astype(np.int64))


@dataclass(frozen=True)
class Part:
    """A part that is there: its number, users, and items in all their lists; short: users with
    fewer than were asked for."""

    number: int
    users: int
    items: int
    short: int

    def entry(self) -> dict[str, object]:
        """In the manifest."""
        return {
            "path": part_name(self.number),
            "users": self.users,
            "items": self.items,
            "short": self.short,
        }


def write_part(request: Request, lister: Lister, number: int, told: Callable[[int], None]) -> Part:
    """Write one part, whole or not at all; ``told`` of every so many users more.

    Row groups have at least ``_GROUP_USERS`` users, but for the last. The footer names the request
    and the counts, so that a part tells for itself what it is. What ``told`` raises ends it.
    """
    users = items = short = 0
    waiting: list[pa.Table] = []
    schema = lister.schema.with_metadata({_TELL: request.record().sha256})
    with (
        storage.create(request.url_of(number)) as file,
        pq.ParquetWriter(file, schema, write_page_checksum=True) as writer,
    ):
        for table in lister.tables(shares_of(request.dataset, request.range_of(number))):
            lengths = table.column("items").chunk(0).value_lengths().to_numpy()
            users, items = users + len(table), items + int(lengths.sum())
            short += int((lengths < request.k).sum())
            waiting.append(table)
            if sum(map(len, waiting)) >= _GROUP_USERS:
                _write(writer, waiting)
            told(len(table))
        _write(writer, waiting)
        part = Part(number, users, items, short)
        writer.add_key_value_metadata({_PART: f"{number} {users} {items} {short}"})
    return part


def _write(writer: pq.ParquetWriter, waiting: list[pa.Table]) -> None:
    if waiting:
        table = pa.concat_tables(waiting).cast(writer.schema)
        writer.write_table(table, row_group_size=len(table))
        waiting.clear()


def read_part(request: Request, number: int) -> Part | None:
    """The part as its footer tells it; None where it is not of this request, or cannot be read."""
    try:
        with storage.opened(request.url_of(number)) as file:
            said = pq.read_metadata(file).metadata or {}
    except pa.ArrowException:
        return None
    if said.get(_TELL) != request.record().sha256.encode() or _PART not in said:
        return None
    part = Part(*map(int, said[_PART].split()))
    return part if (part.number, part.users) == (number, len(request.range_of(number))) else None
