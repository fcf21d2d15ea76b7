"""A warm start: a new run begins with the weights of another one, items by their keys.

An engine takes them over as it resumes, from a reader that stands between it and the source: rows
of the item table come from where the source has the item's key, rows of new items as the model
starts them, and the optimizer's state is zeros, as that of a new run. So engines, stages, world
sizes and homes of the table are all alike, and a rank reads what it keeps, some rows at a time.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models import ModelConfig
from pipeline import storage
from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.train.checkpoint import Origin
from pipeline.train.engine import Engine, Read
from pipeline.train.run import differences
from pipeline.train.source import Shapes, Source, open_source
from pipeline.train.table.dealt import BIASES, BLOCK_ROWS, VECTORS
from pipeline.train.table.sharded import Start, started_rows
from pipeline.world import World

_NAMED = 3  # parameters that an error names
_NEW = -1


def begin_with(
    recipe: Recipe, dataset: Dataset, engine: Engine, world: World, warn: Callable[[str], None]
) -> Origin | None:
    """Give a new engine the weights that the recipe asks for; None where it asks for none.

    All ranks call together. warn: told on rank 0 what became of the items. Raises LonghaulError, on
    all ranks, where the source does not suit the recipe's model, or cannot be read.
    """
    url = recipe.train.init_from
    if url is None:
        return None
    whole = {name: list(shape) for name, shape in engine.shapes().items()}

    def open_and_match() -> tuple[Origin, Read, np.ndarray]:
        source = open_source(storage.absolute(url), warn)
        parameters = {name: shape for name, shape in whole.items() if "/" not in name}
        check_fit(source, recipe.model, parameters, warn)
        found = match(dataset.read_items().column("key"), source)
        origin = _origin(source, found)
        warn(
            f"the run begins with step {origin.step:,} of {origin.url}: "
            f"{origin.items_kept:,} items keep their rows, {origin.items_new:,} are new, "
            f"{origin.items_gone:,} are gone; its optimizer begins anew"
        )
        return origin, source.read, found

    origin, weights, found = world.on_rank_zero(open_and_match)
    start = partial(engine.model.start_rows, catalogue_size=dataset.manifest.catalogue_size)
    read = WarmRead(weights, torch.from_numpy(found), whole, recipe.train.seed, start)
    problem = None
    try:
        engine.restore(read, 0)
    except LonghaulError as error:
        problem = error
    world.agree(problem)
    return origin


def check_fit(
    source: Source, model: ModelConfig, shapes: Shapes, warn: Callable[[str], None]
) -> None:
    """Raise LonghaulError where the source's weights are not those of this model.

    warn: told of settings that differ and leave the weights' shapes as they are.
    """
    if source.model.name != model.name:
        raise LonghaulError(
            f"train.init_from {source.url} is a {source.model.name}, the recipe's model a "
            f"{model.name}: set model.name {source.model.name}, or leave train.init_from out"
        )
    before, now = source.model.model_dump(mode="json"), model.model_dump(mode="json")
    other = "; ".join(differences(before, now, "model"))
    wrong = []
    for name in sorted(source.shapes.keys() | shapes.keys()):
        there, here = (_by_row(name, of.get(name)) for of in (source.shapes, shapes))
        if there != here:
            wrong.append(f"{name} {_said(there)} there, {_said(here)} here")
    if wrong:
        more = f"; {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise LonghaulError(
            f"the weights of train.init_from {source.url} do not fit: "
            f"{'; '.join(wrong[:_NAMED])}{more} ({other or 'with equal settings'}): "
            "set the model as it was, or leave train.init_from out"
        )
    if other:
        warn(f"train.init_from {source.url} was trained with other settings: {other}")


def _by_row(name: str, shape: list[int] | None) -> list[int] | None:
    """A shape without the number of items, which may differ."""
    return shape[1:] if shape is not None and name in (VECTORS, BIASES) else shape


def _said(shape: list[int] | None) -> str:
    return "absent" if shape is None else str(shape)


def match(keys: pa.ChunkedArray, source: Source) -> np.ndarray:
    """Where items ``0..V`` with these keys have their rows in the source: i64 ``[V + 1]``.

    Token 0 is the same everywhere; -1 for an item that the source does not know.
    """
    here, there = _keys(keys), _keys(source.keys)
    if here.type != there.type:
        raise LonghaulError(
            f"the items of train.init_from {source.url} have {_kind(there)} as keys, those of the "
            f"data set {_kind(here)}: prepare the log with the same item column"
        )
    found = np.zeros(len(here) + 1, np.int64)
    found[1:] = pc.add(pc.fill_null(pc.index_in(here, there), _NEW - 1), 1)
    return found


def _keys(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """int64, or strings of one type whatever kept them."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.cast(pa.int64() if pa.types.is_integer(array.type) else pa.large_string())


def _kind(keys: pa.Array) -> str:
    return "integers" if pa.types.is_integer(keys.type) else "strings"


def _origin(source: Source, found: np.ndarray) -> Origin:
    kept = int((found > 0).sum())
    return Origin(
        url=source.url,
        step=source.step,
        sha256=source.sha256,
        items_kept=kept,
        items_new=len(found) - 1 - kept,
        items_gone=len(source.keys) - kept,
    )


class WarmRead:
    """Reads the state of a run that begins with weights ``read`` and has trained nothing yet.

    found: int64 ``[V + 1]``, see ``match``. shapes: whole ones, by NAME or ``KIND/NAME``. seed,
    start: of the rows of new items.
    """

    def __init__(
        self, read: Read, found: torch.Tensor, shapes: Shapes, seed: int, start: Start
    ) -> None:
        self._read, self._found, self._shapes = read, found, shapes
        self._seed, self._start = seed, start

    def __call__(self, tensor: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """See ``Read``."""
        kind, name = tensor.split("/", 1)
        shape = self._shapes.get(tensor, self._shapes[name])
        stop = math.prod(shape) if end is None else end
        if kind != "weight":
            return torch.zeros(stop - begin)
        if name not in (VECTORS, BIASES):
            return self._read(tensor, begin, stop)
        width = math.prod(shape[1:])
        rows = range(begin // width, -(-stop // width))
        part = self._rows(name, rows, width).view(-1)[begin - rows.start * width :]
        return part[: stop - begin]

    def _rows(self, name: str, rows: range, width: int) -> torch.Tensor:
        """``[n, width]`` of one row after the other; of the source a block at a time."""
        result = torch.zeros(len(rows), width)  # what a new item's bias is
        found = self._found[rows.start : rows.stop]
        if name == VECTORS and bool((found == _NEW).any()):
            for low, part in started_rows(rows, width, self._seed, self._start):
                result[low - rows.start : low - rows.start + len(part)] = part
        known = (found >= 0).nonzero().squeeze(1)
        order = known[found[known].argsort(stable=True)]
        wanted = found[order]
        blocks = torch.unique_consecutive(wanted // BLOCK_ROWS, return_counts=True)[1].tolist()
        for places, ids in zip(order.split(blocks), wanted.split(blocks), strict=True):
            low, high = int(ids[0]), int(ids[-1]) + 1
            part = self._read(f"weight/{name}", low * width, high * width).view(-1, width)
            result[places] = part[ids - low]
        return result
