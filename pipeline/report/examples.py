"""What the model recommends to a few users of the test, beside what they did and did next."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from pipeline import storage, world
from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.evaluate import Protocol, Scorer, rank_targets, top_k
from pipeline.evaluate.blocks import Queries, plan_blocks, read_block
from pipeline.manifest import Dataset, open_dataset
from pipeline.train.trained import load_trained

_HISTORY, _LIST = 10, 10  # items shown


@dataclass(frozen=True)
class Example:
    """One user. Items are names, or keys where there is none.

    history: the newest items that the model was given, the last one at the end. events: all
    before the test. top: the best items, with scores. target: what came next. rank: of the target
    among all candidates.
    """

    user: str
    events: int
    history: list[str]
    top: list[tuple[str, float]]
    target: str
    rank: int


def examples_of(
    recipe: Recipe, count: int, names: str | None, warn: Callable[[str], None]
) -> list[Example]:
    """The first ``count`` users of the test, by the run's best model.

    A data set has its users in the order of a hash, so the first ones are as good as any, and the
    same every time. names: ``FILE:KEY,NAME``; see ``read_names``. Raises LonghaulError where the
    run has no checkpoint, its data set nobody to test, or the file no such names.
    """
    protocol = Protocol.model_validate(
        {**recipe.evaluation.model_dump(), "split": "test", "targets": "next", "users": None}
    )
    dataset = open_dataset(recipe.data.path)
    placement = recipe.placement
    with world.alone(placement.device, placement.threads) as here, torch.no_grad():
        trained = load_trained(recipe.run_url, here.device, warn)
        if trained.fingerprint != dataset.fingerprint:
            raise LonghaulError(f"run {recipe.name} was trained on other data than {dataset.url}")
        found = _first(dataset, protocol, trained.scorer(), count)
    wanted = sorted({item for user in found for item in user.items()})
    keys = dataset.read_items().column("key").take(np.array(wanted, np.int64) - 1)
    called = {item: str(key) for item, key in zip(wanted, keys.to_pylist(), strict=True)}
    if names is not None:
        known = read_names(names, list(called.values()))
        called = {item: known.get(key, key) for item, key in called.items()}
    return [user.named(called) for user in found]


@dataclass(frozen=True)
class _Found:
    """An example by item ids."""

    user: str
    events: int
    history: list[int]
    top: list[tuple[int, float]]
    target: int
    rank: int

    def items(self) -> set[int]:
        return {*self.history, self.target, *(item for item, _ in self.top)}

    def named(self, names: dict[int, str]) -> Example:
        return Example(
            self.user,
            self.events,
            [names[item] for item in self.history],
            [(names[item], score) for item, score in self.top],
            names[self.target],
            self.rank,
        )


def _first(dataset: Dataset, protocol: Protocol, scorer: Scorer, count: int) -> list[_Found]:
    found: list[_Found] = []
    for block in plan_blocks(dataset, protocol):
        for queries in read_block(dataset, block, protocol)[0]:
            found += _in_batch(queries, scorer, count - len(found))
            if len(found) >= count:
                return found
    if not found:
        raise LonghaulError(f"{dataset.url} has no examples: no user has an event in the test part")
    return found


def _in_batch(queries: Queries, scorer: Scorer, most: int) -> Iterator[_Found]:
    if not len(queries.keys):
        return
    scores = scorer.score(queries.batch)
    items, values = top_k(scores, _LIST, queries.seen, queries.name)
    ranks = rank_targets(scores, queries.targets, queries.offsets, queries.seen, queries.name)
    bounds = queries.batch.offsets.tolist()
    for row in range(min(most, len(queries.keys))):
        window = queries.batch.items[bounds[row] : bounds[row + 1]]
        best = zip(items[row].tolist(), values[row].tolist(), strict=True)
        yield _Found(
            user=queries.name(row).removeprefix("user "),
            events=int(queries.history[row]),
            history=[item for item in window[-_HISTORY:].tolist() if item],
            top=[(item, score) for item, score in best if item],
            target=int(queries.targets[row]),
            rank=int(ranks.pessimistic[row]),
        )


def read_names(spec: str, keys: list[str]) -> dict[str, str]:
    """The names of the items with these keys, by ``FILE:KEY,NAME``: a file and two of its columns.

    The file is Parquet, CSV or TSV, by its suffix. Raises LonghaulError where it cannot be read so,
    or has a name for none of the keys.
    """
    url, colon, columns = spec.rpartition(":")
    key, comma, name = columns.partition(",")
    if not (colon and comma and key and name):
        raise LonghaulError(f"--names {spec!r} is not of the form items.parquet:key,title")
    content = io.BytesIO(storage.read_bytes(storage.absolute(url)))
    try:
        if url.endswith((".csv", ".tsv")):
            separator = "\t" if url.endswith(".tsv") else ","
            table = pl.read_csv(content, separator=separator, infer_schema=False)
        else:
            table = pl.read_parquet(content, columns=[key, name])
        pairs = table.select(pl.col(key).cast(pl.String), pl.col(name).cast(pl.String))
    except pl.exceptions.PolarsError as error:
        first = str(error).strip().splitlines()[0]
        raise LonghaulError(f"--names {spec}: {first}") from error
    rows = pairs.filter(pl.col(key).is_in(keys)).drop_nulls().iter_rows()
    found: dict[str, str] = dict(rows)
    if not found:
        raise LonghaulError(f"--names {spec}: none of the items shown has a name there")
    return found
