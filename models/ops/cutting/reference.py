"""What cutting computes, a segment at a time."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from models.ops.cutting import Events


def cut(
    events: "Events", array: np.ndarray, begin: np.ndarray, length: np.ndarray, bos: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """See ``Events.cut``."""
    items, targets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    columns = [column.tolist() for column in (array, begin, length, bos)]
    for number, start, n, first in zip(*columns, strict=True):
        held = events.arrays[number]
        before = np.zeros(1, np.int64) if first else held[start - 1 : start]
        targets.append(held[start : start + n].astype(np.int64))
        items.append(np.concatenate([before, targets[-1][:-1]])[:n].astype(np.int64))
    return np.concatenate(items), np.concatenate(targets)
