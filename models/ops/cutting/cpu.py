"""Cutting through the C++ kernel (cutting.cpp)."""

from typing import TYPE_CHECKING

import numpy as np

from models.ops import extension

if TYPE_CHECKING:
    from models.ops.cutting import Events


def cut(
    events: "Events", array: np.ndarray, begin: np.ndarray, length: np.ndarray, bos: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """See ``Events.cut``."""
    items = np.empty(int(length.sum()), dtype=np.int64)
    targets = np.empty_like(items)
    given = (events.address, array, begin, length, bos)
    extension.call("cut_segments", *given, len(begin), items, targets)
    return items, targets
