"""Lists for a few users, found by their keys: one small file, in the order asked for."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.evaluate import Scorer
from pipeline.manifest import Dataset
from pipeline.prepare.keys import hash_keys
from pipeline.prepare.layout import shard_of
from pipeline.recommend.histories import Share
from pipeline.recommend.lists import Lister
from pipeline.recommend.request import Request
from pipeline.world import World


def recommend_users(
    request: Request, scorer: Scorer, users: Sequence[str], world: World | None = None
) -> pa.Table:
    """Write the lists of these users to the file ``request.output``; what was written.

    users: keys as text; rows are in this order, and a key given twice is one. world: the processes
    that all call this, where they score together; the first one writes, all return the same. Raises
    LonghaulError for a key that is not in the data set, and as ``recommend``.
    """
    world = world or World(0, 1, torch.device("cpu"))
    lister = world.on_every_rank(lambda: Lister(request, scorer))

    def write() -> pa.Table | None:
        return None if world.rank else _write(request, lister, users)

    return world.broadcast(world.on_every_rank(lambda: lister.in_company(write)))


def _write(request: Request, lister: Lister, users: Sequence[str]) -> pa.Table:
    keys = _as_keys(request.dataset, users)
    table = pa.concat_tables(lister.tables(_places(request.dataset, keys)))
    table = table.take(pc.index_in(keys, value_set=table.column("user").combine_chunks()))
    with storage.create(request.output) as file:
        pq.write_table(table, file)
    return table


def _as_keys(dataset: Dataset, users: Sequence[str]) -> pa.Array:
    """Different keys in the order given, of the data set's type."""
    if dataset.manifest.user_type == "string":
        return pa.array(list(dict.fromkeys(users)), pa.string())
    try:
        return pa.array(list(dict.fromkeys(int(key) for key in users)), pa.int64())
    except ValueError as error:
        raise LonghaulError(f"the users of {dataset.url} are integers: {error}") from error


def _places(dataset: Dataset, wanted: pa.Array) -> list[Share]:
    """Where the users with these keys lie, in the order of the data set."""
    found: list[Share] = []
    homes = shard_of(hash_keys(wanted), len(dataset.manifest.shards))
    for shard in np.unique(homes).tolist():
        here = wanted.filter(pa.array(homes == shard))
        table = dataset.read_users(shard)
        here = here.cast(table.schema.field("key").type)
        absent = pc.filter(here, pc.invert(pc.is_in(here, table.column("key"))))
        if len(absent):
            raise LonghaulError(f"user {absent[0].as_py()} is not in {dataset.url}")
        rows = table.filter(pc.is_in(table.column("key"), here))
        members = (dataset.first_member(shard) + rows.column("member").to_numpy()).tolist()
        places = zip(members, rows.column("position").to_pylist(), strict=True)
        for member, group in groupby(places, key=lambda place: place[0]):
            found.append((member, np.array([position for _, position in group])))
    return found
