"""For whom a model ranks well: users by the length of their history, targets by popularity.

Also targets by whether training knew their user and their item.
"""

from itertools import pairwise

import numpy as np

from pipeline.evaluate.catalogue import BANDS, Catalogue

EVERYBODY = "all"
_FROM = (0, 1, 5, 10, 20, 50, 100, 200, 500, 1000)  # the shortest history of each group
_LENGTHS = tuple(
    str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(_FROM)
)
HISTORIES = (*_LENGTHS, f"{_FROM[-1]}+")
STARTS = tuple(
    f"{user} user, {item} item" for user in ("cold", "warm") for item in ("cold", "warm")
)

USER_GROUPS = ((EVERYBODY, EVERYBODY), *(("history", name) for name in HISTORIES))
"""Groups of users, as (what they are grouped by, which): events before the part, gaps included."""

TARGET_GROUPS = (
    *(("popularity", name) for name in BANDS),
    *(("start", name) for name in STARTS),
)
"""Groups of targets: by ``catalogue.BANDS``; cold is who or what has no event in training."""


def groups_of_users(history: np.ndarray) -> np.ndarray:
    """bool ``[U, G]``: who is in which of ``USER_GROUPS``. history: int64 ``[U]``."""
    bins = np.searchsorted(_FROM, history, side="right") - 1
    return np.concatenate([np.ones((len(bins), 1), bool), _marked(bins, len(HISTORIES))], axis=1)


def groups_of_targets(targets: np.ndarray, known: np.ndarray, catalogue: Catalogue) -> np.ndarray:
    """bool ``[m, G]``: which target is in which of ``TARGET_GROUPS``.

    targets: items ``[m]``. known: bool ``[m]``, whether the target's user has training events.
    """
    start = 2 * known + (catalogue.counts[targets] > 0)
    band = catalogue.band(targets)
    return np.concatenate([_marked(band, len(BANDS)), _marked(start, len(STARTS))], axis=1)


def _marked(groups: np.ndarray, number: int) -> np.ndarray:
    marks: np.ndarray = groups[:, None] == np.arange(number)
    return marks
