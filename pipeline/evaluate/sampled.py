"""Ranking among sampled candidates, as some papers do it: only where the protocol asks for it.

Metrics of samples need not order two models as those of the whole catalogue do (Krichene and
Rendle 2020); they serve to compare with what was published in this way alone.
"""

import numpy as np
import pyarrow as pa
import torch

from pipeline.errors import LonghaulError
from pipeline.evaluate.blocks import Queries
from pipeline.evaluate.protocol import Protocol
from pipeline.evaluate.ranking import Ranks, rank_targets
from pipeline.evaluate.scores import DenseScores, Scores
from pipeline.evaluate.tiles import Packed, full_fp32
from pipeline.prepare.keys import finalise, hash_keys

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def rank_among_sampled(scores: Scores, queries: Queries, protocol: Protocol) -> Ranks:
    """As ``rank_targets``, but among each user's targets and the items drawn for him.

    Scores are those of full ranking, tile by tile; items that were not drawn are passed over.
    """
    number = protocol.candidates
    assert number != "all"
    if len(scores.held) < scores.columns:
        raise LonghaulError(
            "an item table that is dealt over workers is ranked whole: set evaluation.candidates "
            "all, or evaluate with one worker"
        )
    targets = np.split(queries.targets.numpy(), queries.offsets.numpy()[1:-1])
    seen: list[np.ndarray] = [np.empty(0, np.int64)] * scores.rows
    if queries.seen is not None:
        seen = np.split(queries.seen[0].numpy(), queries.seen[1].numpy()[1:-1])
    hashes = hash_keys(_arrow(queries.keys))
    rows = []
    for row, key in enumerate(hashes):
        barred = np.concatenate([seen[row], targets[row]])
        drawn = draw(key, protocol.candidates_seed, number, scores.columns - 1, barred)
        if drawn is None:
            raise LonghaulError(
                f"{number} candidates cannot be drawn for {queries.name(row)}: fewer of the "
                f"{scores.columns - 1} items are left for him; ask for fewer, or for all"
            )
        rows.append(np.sort(np.concatenate([[0], np.unique(targets[row]), drawn])))
    kept, filling = _pick(scores, rows)
    bad = ~torch.isfinite(kept[:, 1:])
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        raise LonghaulError(
            f"the score of item {rows[row][column + 1]} for {queries.name(row)} is "
            f"{float(kept[row, column + 1])}: a model that has diverged cannot be ranked"
        )
    columns = [np.searchsorted(row, wanted) for row, wanted in zip(rows, targets, strict=True)]
    return rank_targets(
        DenseScores(kept),
        torch.from_numpy(np.concatenate(columns)),
        queries.offsets,
        filling,
        queries.name,
    )


def draw(
    key: np.uint64, seed: int, number: int, catalogue_size: int, barred: np.ndarray
) -> np.ndarray | None:
    """``number`` different items of 1..V that are not ``barred``, or None where there are not.

    They are the first such ones in a sequence of uniform draws that a user's hash and the seed
    determine, whatever is barred, and whoever asks.
    """
    barred = np.unique(barred[barred > 0])
    left = catalogue_size - len(barred)
    if left < number:
        return None
    start = finalise(np.array([seed], np.uint64) + _GOLDEN) ^ key
    length = 64 + number + number // 4
    while True:
        bits = finalise(start + np.arange(1, length + 1, dtype=np.uint64) * _GOLDEN)
        items = 1 + ((bits >> np.uint64(11)) * 2.0**-53 * catalogue_size).astype(np.int64)
        items = np.minimum(items, catalogue_size)  # a fraction next to 1 may round up
        different, first = np.unique(items, return_index=True)
        kept = ~np.isin(different, barred, assume_unique=True)
        if kept.sum() >= number:
            order = np.argsort(first[kept])[:number]
            found: np.ndarray = different[kept][order]
            return found
        length *= 2


def _arrow(keys: np.ndarray) -> pa.Array:
    if keys.dtype.kind == "S":
        return pa.array(keys.tolist(), pa.large_binary()).cast(pa.large_string())
    return pa.array(keys)


def _pick(scores: Scores, rows: list[np.ndarray]) -> tuple[torch.Tensor, Packed]:
    """The scores of the items of each row side by side; and the columns beyond a row's end.

    rows: ascending items of each query, the first of them 0.
    """
    longest = max(map(len, rows))
    kept: torch.Tensor | None = None
    lengths = np.array([len(row) for row in rows])
    at = np.repeat(np.arange(len(rows)), lengths)
    items = np.concatenate(rows)
    place = np.arange(len(items)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    queries, width = scores.shape
    q, i = at // queries, items // width
    order = np.lexsort((i, q))
    tiles = q * (1 + scores.columns // width) + i
    numbers, starts = np.unique(tiles[order], return_index=True)
    with full_fp32():
        for number, part in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            row, column = divmod(number, 1 + scores.columns // width)
            tile = scores.tile(row, column)
            if kept is None:
                kept = tile.new_zeros(len(rows), longest)
            index = [at[part] - row * queries, items[part] - column * width, at[part], place[part]]
            a, b, to, where = (torch.from_numpy(part).to(scores.device) for part in index)
            kept[to, where] = tile[a, b]
    assert kept is not None
    filling = [np.arange(length, longest) for length in lengths]
    bounds = np.concatenate([[0], np.cumsum(longest - lengths)])
    packed = torch.from_numpy(np.concatenate(filling)), torch.from_numpy(bounds)
    return kept, packed
