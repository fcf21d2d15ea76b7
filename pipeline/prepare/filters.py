"""Which events are kept, in the order that ``PrepareOptions`` documents."""

import numpy as np

from pipeline.errors import LonghaulError
from pipeline.prepare.log import Log
from pipeline.prepare.options import PrepareOptions


class Counts:
    """The events that each filter removed, in the order applied."""

    def __init__(self, events: int) -> None:
        self.removed: dict[str, int] = {"events_read": events}

    def note(self, name: str, before: Log, after: Log) -> Log:
        """Record what filter ``name`` removed; raises LonghaulError where it left nothing."""
        self.removed[name] = len(before) - len(after)
        if len(after) == 0:
            raise LonghaulError(
                f"no events left: {name} removed the last {len(before)} of "
                f"{self.removed['events_read']} read; relax it"
            )
        return after


def filter_rows(log: Log, options: PrepareOptions, counts: Counts) -> Log:
    """Drop events by what stands in their own row: rating and action."""
    if options.min_rating is not None:
        assert log.ratings is not None
        log = counts.note("min_rating", log, log.pick(log.ratings >= options.min_rating))
    if options.keep_actions is not None:
        assert log.actions is not None
        assert log.action_keys is not None
        present = log.action_keys.to_pylist()
        for name in options.keep_actions:
            if name not in present:
                shown = ", ".join(f"'{key}'" for key in present[:20])
                raise LonghaulError(
                    f"keep_actions names '{name}', which no event has; the data have {shown}"
                )
        kept = np.isin(np.array(present), options.keep_actions)
        log = counts.note("keep_actions", log, log.pick(kept[log.actions]))
    return log


def filter_end(log: Log, end: int, counts: Counts) -> Log:
    """Drop events at or after the end of the test window."""
    assert log.times is not None
    return counts.note("after_test", log, log.pick(log.times < end))


def filter_repeats(log: Log, options: PrepareOptions, counts: Counts) -> Log:
    """Drop repeated events of a user with an item; ``log`` is ordered by user and time."""
    if options.repeats == "none":
        return log
    if options.repeats == "consecutive":
        kept = np.ones(len(log), bool)
        kept[1:] = (log.users[1:] != log.users[:-1]) | (log.items[1:] != log.items[:-1])
    else:
        pairs = log.users.astype(np.uint64) << np.uint64(32) | log.items
        kept = np.zeros(len(log), bool)
        kept[np.unique(pairs, return_index=True)[1]] = True  # the first of each pair
    return counts.note("repeats", log, log.pick(kept))


def filter_counts(log: Log, options: PrepareOptions, counts: Counts) -> Log:
    """Drop rare items and short users, once each or until nothing changes."""
    item_least, user_least = options.min_item_events, options.min_user_events
    if options.count_filter == "one_pass":
        if item_least > 1:
            kept = _often(log.items, item_least)
            log = counts.note("min_item_events", log, log.pick(kept))
        if user_least > 1:
            kept = _often(log.users, user_least)
            log = counts.note("min_user_events", log, log.pick(kept))
        return log
    if item_least > 1 or user_least > 1:
        log = counts.note("k_core", log, log.pick(_core(log, item_least, user_least)))
    return log


def _often(codes: np.ndarray, least: int) -> np.ndarray:
    """bool ``[N]``: whether the code of a row occurs at least ``least`` times."""
    often: np.ndarray = (np.bincount(codes) >= least)[codes]
    return often


def _core(log: Log, item_least: int, user_least: int) -> np.ndarray:
    """Rows of the largest subset in which every item and every user has enough events."""
    rows = np.arange(len(log))
    users, items = log.users, log.items
    while len(rows):
        kept = _often(items, item_least) & _often(users, user_least)
        if kept.all():
            break
        rows, users, items = rows[kept], users[kept], items[kept]
    return rows
