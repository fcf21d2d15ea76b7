"""Recall@10 of a model that scores padded histories: full ranking, no items of the history."""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.peers.histories import Histories, padded

ROWS = 128


def recall(
    histories: Histories, length: int, scores_of: Callable[[torch.Tensor], torch.Tensor]
) -> float:
    """scores_of: items ``[rows, length]`` -> scores of all items as the next ``[rows, V + 1]``."""
    training, targets, hits = histories.training(), histories.targets(), 0
    with torch.no_grad():
        for begin in range(0, len(training), ROWS):
            some = training[begin : begin + ROWS]
            scores = scores_of(torch.from_numpy(padded(some, length)))
            scores[:, 0] = -torch.inf
            for row, history in zip(scores, some, strict=True):
                row[torch.from_numpy(history)] = -torch.inf
            best = scores.topk(10).indices.numpy()
            hits += int(np.sum(best == targets[begin : begin + ROWS, None]))
    return hits / len(training)
