"""The best items of a few users at once, by one product with the whole table.

``evaluate.ranking`` takes tiles of many users, whose scores are the same however many there are;
for one user that is a hundred times the work. Here a score may differ from it by rounding.
"""

import numpy as np
import torch

from pipeline.errors import LonghaulError

_SCORES = 1 << 24  # held at once, unless one user has more


@torch.inference_mode()
def best_items(
    hidden: torch.Tensor,
    table: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    seen: list[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` best items of each user, best first, equal scores by lower item id.

    hidden: fp32 ``[n, d]``. table: ``[V + 1, d]``, row 0 is no item; bias ``[V + 1]`` or None.
    seen: of each user the ids that are no candidates, i64. Returns items i64 ``[n, k]`` and scores
    fp32 ``[n, k]``; where fewer than ``k`` are left, item 0 with score -inf. LonghaulError where a
    score is no finite number.
    """
    found = [np.empty((0, k), np.int64)], [np.empty((0, k), np.float32)]
    at_once = max(1, _SCORES // len(table))
    for first in range(0, len(hidden), at_once):
        rows = slice(first, first + at_once)
        scores = hidden[rows] @ table.float().T
        if bias is not None:
            scores += bias
        scores[:, 0] = 0
        if not torch.isfinite(scores.sum(1)).all() and not torch.isfinite(scores).all():
            raise LonghaulError("a score is no finite number: the model has diverged")
        scores[:, 0] = -torch.inf
        for row, ids in enumerate(seen[rows]):
            scores[row, torch.from_numpy(ids).to(scores.device)] = -torch.inf
        items, values = _best(scores, k)
        found[0].append(items)
        found[1].append(values)
    return np.concatenate(found[0]), np.concatenate(found[1])


def _best(scores: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    users, columns = scores.shape
    last = scores.topk(min(k, columns), dim=1).values[:, -1:]
    # torch.topk takes any of equal scores: so all that tie with the last are looked at.
    row, item = ((scores >= last) & (scores > -torch.inf)).nonzero(as_tuple=True)
    values = scores[row, item]
    # Stable sorts, by score and then by row: equal scores stay in the order of ids.
    order = torch.sort(values, descending=True, stable=True).indices
    order = order[torch.sort(row[order], stable=True).indices]
    row, item, values = row[order], item[order], values[order]
    starts = torch.searchsorted(row, torch.arange(users, device=row.device))
    place = torch.arange(len(row), device=row.device) - starts[row]
    wanted = place < k
    items = torch.zeros(users, k, dtype=torch.int64, device=row.device)
    best = scores.new_full((users, k), -torch.inf)
    items[row[wanted], place[wanted]] = item[wanted]
    best[row[wanted], place[wanted]] = values[wanted]
    return items.cpu().numpy(), best.cpu().numpy()
