"""What ranks and lists both do with a tile of scores: bar what is no candidate, and find what is no
number. All comparing of scores in evaluation and recommendation goes through here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from models.ops import add_health
from pipeline.errors import LonghaulError
from pipeline.evaluate.scores import Scores

Packed = tuple[torch.Tensor, torch.Tensor]
"""Ids of many queries back to back, int64, and offsets int64 ``[n + 1]``."""


def of_everyone(scores: Scores, packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    """What all workers that rank together ask, a place for each row of the scores."""
    parts = scores.everyone(tuple(part.cpu().numpy() for part in packed))
    ids = np.concatenate([ids for ids, _ in parts])
    # Rows that fill a worker's share up ask nothing.
    lengths = np.zeros((len(parts), scores.rows // len(parts)), np.int64)
    for row, (_, bounds) in zip(lengths, parts, strict=True):
        row[: len(bounds) - 1] = np.diff(bounds)
    return ids, np.concatenate([[0], np.cumsum(lengths)])


class Masks:
    """Where the seen items of each query lie in the tiles, without those that are spared.

    spared: sorted numbers ``query * columns + item`` of pairs that stay candidates. An item that
    is seen twice is masked twice, which changes nothing.
    """

    def __init__(self, scores: Scores, seen: Packed | None, spared: np.ndarray) -> None:
        self._scores = scores
        self._pairs = np.empty(0, np.int64)
        self._bounds = np.zeros(scores.rows + 1, np.int64)
        if seen is not None:
            ids, bounds = of_everyone(scores, seen)
            check_ids(ids, 0, scores.columns, "seen item")
            pairs = np.repeat(np.arange(scores.rows) * scores.columns, np.diff(bounds)) + ids
            keep = np.ones(len(pairs), dtype=bool)
            if len(spared):
                place = np.searchsorted(spared, pairs).clip(max=len(spared) - 1)
                keep = spared[place] != pairs
            self._pairs = pairs[keep]
            self._bounds = np.concatenate([[0], np.cumsum(keep)])[bounds]

    def of(self, q: int) -> list[torch.Tensor]:
        """For each tile of row ``q`` the flat positions that are seen; int64, on the device."""
        queries, width = self._scores.shape
        columns = self._scores.columns
        rows = slice(q * queries, min((q + 1) * queries, self._scores.rows) + 1)
        low, high = self._bounds[rows][[0, -1]]
        row, item = np.divmod(self._pairs[low:high], columns)
        tile, column = np.divmod(item, width)
        flat = (row - q * queries) * width + column
        cuts: list[int] = []
        if columns > width:
            order = np.argsort(tile, kind="stable")
            flat = flat[order]
            cuts = np.searchsorted(tile[order], np.arange(1, -(-columns // width))).tolist()
        return list(torch.tensor_split(torch.from_numpy(flat).to(self._scores.device), cuts))


def mask(tile: torch.Tensor, i: int, held: range, seen: torch.Tensor, health: torch.Tensor) -> None:
    """Put -inf on whatever is no candidate here; first see to it that ``health`` is not finite for
    rows with scores that are not."""
    first = i * tile.shape[1]
    if i == 0:
        tile[:, 0] = 0  # whatever the table holds for item 0 is no error
    add_health(tile, health)
    tile[:, : max(1, held.start) - first if first <= held.start else 0] = -torch.inf
    tile[:, max(0, held.stop - first) :] = -torch.inf
    tile.view(-1).index_fill_(0, seen, -torch.inf)


def refuse_non_finite(scores: Scores, q: int, name: Callable[[int], str]) -> None:
    """Raise for the first score in row of tiles ``q`` that is not finite.

    There may be none: finite scores near the end of the range can have a sum beyond it.
    """
    first = next(filter(None, scores.everyone(_first_non_finite(scores, q))), None)
    if first is None:
        return
    row, item, score = first
    own = range(scores.own.start, scores.own.stop)
    whose = scores.everyone(name(row - own.start) if row in own else None)
    raise LonghaulError(
        f"the score of item {item} for {next(filter(None, whose), 'nobody')} is {score}: a model "
        "that has diverged cannot be ranked"
    )


def _first_non_finite(scores: Scores, q: int) -> tuple[int, int, float] | None:
    """Row, item and score of the first one among those held here."""
    queries, width = scores.shape
    for i in scores.tiles:
        tile = scores.tile(q, i)[: scores.rows - q * queries]
        if i == 0:
            tile[:, 0] = 0
        bad = ~torch.isfinite(tile)
        if bad.any():
            row, column = (int(index) for index in bad.nonzero()[0])
            return q * queries + row, i * width + column, float(tile[row, column])
    return None


def check_ids(ids: np.ndarray, low: int, columns: int, what: str) -> None:
    if len(ids) and not (low <= ids.min() and ids.max() < columns):
        wrong = ids.max() if ids.max() >= columns else ids.min()
        raise LonghaulError(
            f"{what} {wrong} is not in the catalogue of {columns - 1} items that is scored"
        )


@contextmanager
def full_fp32() -> Iterator[None]:
    """Products of fp32 in fp32, though training may allow TF32 or bf16 for them."""
    mkldnn = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    backends = (torch.backends.cuda.matmul, mkldnn)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
