"""Histories out of a run: those of some users, with the items that stay."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.prepare.runs import StoredRun

# Events that are looked at together.
_CHUNK = 2**23


@dataclass(frozen=True, eq=False)
class Histories:
    """Histories of ``U`` users with ``T`` events, users by (hash, key), events by time.

    users: where they are in the run, i64 ``[U]``. lengths: i64 ``[U]``. items: u32 ``[T]``, ids.
    times: i64 ``[T]``, or None. actions: u16 ``[T]``, or None.
    """

    users: np.ndarray
    lengths: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    actions: np.ndarray | None


def histories_of(
    run: StoredRun,
    lengths: np.ndarray,
    ids: np.ndarray,
    least: int | np.ndarray,
    first: int = 0,
    last: int | None = None,
    only_items: bool = False,
) -> Iterator[Histories]:
    """What stays of the users ``first`` up to ``last`` of a run, in at least one piece.

    lengths: of all users of the run, i64 ``[U]``. ids: by the run's codes of items, u32; 0 for one
    that goes. least: the events that a user has to keep to stay, for all or for each, i64 ``[U]``.
    """
    ends = np.cumsum(lengths)
    least = np.broadcast_to(np.maximum(1, least), lengths.shape)
    last = len(lengths) if last is None else last
    while True:
        start = int(ends[first - 1]) if first else 0
        fit = int(np.searchsorted(ends, start + _CHUNK, side="right"))
        until = min(last, max(first + 1, fit))
        stop = int(ends[until - 1]) if until else 0
        found = run.events(start, stop, only_items)
        users = slice(first, until)
        yield _kept(np.arange(first, until), lengths[users], ids, least[users], *found)
        first = until
        if first >= last:
            return


def _kept(
    users: np.ndarray,
    lengths: np.ndarray,
    ids: np.ndarray,
    least: np.ndarray,
    codes: np.ndarray,
    times: np.ndarray | None,
    actions: np.ndarray | None,
) -> Histories:
    items = ids[codes]
    stays = items > 0
    before = np.concatenate([[0], np.cumsum(stays)])
    ends = np.cumsum(lengths)
    left = before[ends] - before[ends - lengths]
    enough = left >= least
    if not stays.all() or not enough.all():
        stays &= np.repeat(enough, lengths)
        items = items[stays]
        times = None if times is None else times[stays]
        actions = None if actions is None else actions[stays]
    return Histories(users[enough], left[enough], items, times, actions)
