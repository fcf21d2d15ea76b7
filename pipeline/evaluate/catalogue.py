"""What training knows of the items: how popular each is, and what a list of them says of that."""

from collections.abc import Sequence

import numpy as np

BANDS = ("head", "mid", "tail", "unseen")
# Head: the most popular items, which together have half of the training events; mid: those up to
# four fifths; tail: the others.
_BEFORE = (0.5, 0.8)


class Catalogue:
    """The items by their training events.

    counts: int64 ``[V + 1]``; entry 0 is no item. Nothing else of this size is kept: equally
    popular items are alike.
    """

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts
        self._levels, items = np.unique(counts[1:], return_counts=True)
        self._events = int(counts[1:].sum())
        size = len(counts) - 1
        self._percentile = (np.cumsum(items) - items / 2) / size
        self._information = np.log2(self._events + size) - np.log2(self._levels + 1.0)
        events = self._levels * items
        above = self._events - np.cumsum(events)  # of all more popular items
        self._band = np.searchsorted(_BEFORE, above / max(1, self._events), side="right")
        self._band[self._levels == 0] = BANDS.index("unseen")

    def _level(self, items: np.ndarray) -> np.ndarray:
        level: np.ndarray = np.searchsorted(self._levels, self.counts[items])
        return level

    def band(self, items: np.ndarray) -> np.ndarray:
        """The place in ``BANDS`` of each item; equally popular items share their band."""
        found: np.ndarray = self._band[self._level(items)]
        return found

    def percentile(self, items: np.ndarray) -> np.ndarray:
        """The share of the catalogue less popular than each item, half of its equals included."""
        found: np.ndarray = self._percentile[self._level(items)]
        return found

    def information(self, items: np.ndarray) -> np.ndarray:
        """``-log2 p`` of each item, in bits: ``p`` its share of the training events.

        One event is added to every item, so that what was never seen has finite information.
        """
        found: np.ndarray = self._information[self._level(items)]
        return found


def list_metrics(
    lists: np.ndarray, catalogue: Catalogue, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """What each user's list is like: ``popularity@k`` and ``novelty@k``, float64 ``[U]`` by name.

    lists: int64 ``[U, k]``, best first; 0 where there was no candidate left.

    - popularity@k: the mean percentile of popularity of its items: .5 where items are recommended
      whatever their popularity, near 1 for the most popular ones. The average recommendation
      popularity of Yin et al. 2012 with percentiles for counts, so that data sets can be compared.
    - novelty@k: the mean self-information of its items, in bits (Zhou et al. 2010; Vargas and
      Castells 2011, global popularity).

    A list without an item has 0 in both.
    """
    there = lists > 0
    number = np.maximum(1, np.cumsum(there, axis=1))
    metrics = {}
    for name, of in (("popularity", catalogue.percentile), ("novelty", catalogue.information)):
        sums = np.cumsum(np.where(there, of(lists), 0.0), axis=1)
        for k in ks:
            metrics[f"{name}@{k}"] = sums[:, k - 1] / number[:, k - 1]
    return metrics
