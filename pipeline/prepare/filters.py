"""Rare items and short users: what stays, found in passes over the runs with nothing rewritten.

It follows from the items: a user stays who has enough events with the items that do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.manifest import Split
from pipeline.prepare.counts import Counts
from pipeline.prepare.histories import histories_of
from pipeline.prepare.options import PrepareOptions
from pipeline.prepare.runs import StoredRun
from pipeline.prepare.tally import Tally, tally
from pipeline.prepare.tasks import Advance


@dataclass
class Survey:
    """What stays of some runs: a tally of it, and the events of each item, i64 ``[V]``."""

    tally: Tally
    item_events: np.ndarray

    def __add__(self, other: "Survey") -> "Survey":
        return Survey(self.tally + other.tally, self.item_events + other.item_events)


def survey_runs(
    runs: list[StoredRun], stay: np.ndarray, least: int, split: Split | None, advance: Advance
) -> Survey:
    """What stays with the items that ``stay``, bool ``[V]``, of users who keep ``least`` events.

    split: None where only events and users are counted, and times need not be read.
    """
    found = Survey(Tally(), np.zeros(len(stay), np.int64))
    ids = np.where(stay, np.arange(1, len(stay) + 1), 0).astype(np.uint32)
    for run in runs:
        lengths = run.lengths()
        for part in histories_of(run, lengths, ids[run.codes()], least, only_items=split is None):
            if split is None:
                counted = Tally(users=len(part.users), events=len(part.items))
            else:
                counted = tally(part.lengths, part.times, part.actions, split)
            found.tally += counted
            found.item_events += np.bincount(part.items, minlength=len(stay) + 1)[1:]
        advance(int(lengths.sum()))
    return found


SurveyAll = Callable[[np.ndarray, int, Split | None], Survey]
"""``survey_runs`` of all runs together."""


def filter_counts(
    start: Survey, options: PrepareOptions, split: Split, counts: Counts, survey: SurveyAll
) -> tuple[Survey, np.ndarray]:
    """Drop rare items and short users, once each or until nothing changes.

    start: of all there is. Returns what is left, and which items stay, bool ``[V]``.
    """
    item_least, user_least = options.min_item_events, options.min_user_events
    if options.count_filter == "k_core":
        return _core(start, item_least, user_least, split, counts, survey)
    left = int(start.item_events.sum())
    stay = start.item_events >= item_least
    if item_least > 1:
        now = int(start.item_events[stay].sum())
        counts.note("min_item_events", left - now)
        left = now
    if item_least == 1 and user_least == 1:
        return start, stay
    found = survey(stay, user_least, split)
    if user_least > 1:
        counts.note("min_user_events", left - found.tally.events)
    return found, found.item_events > 0


def _core(
    start: Survey,
    item_least: int,
    user_least: int,
    split: Split,
    counts: Counts,
    survey: SurveyAll,
) -> tuple[Survey, np.ndarray]:
    """The largest subset in which every item and every user has enough events."""
    found, stay = start, start.item_events >= max(1, item_least)
    if item_least == 1 and user_least == 1:
        return start, stay
    while True:
        found = survey(stay, user_least, None)
        still = found.item_events >= max(1, item_least)
        if (still == stay).all():
            break
        stay = still
    counts.note("k_core", int(start.item_events.sum()) - found.tally.events)
    return survey(stay, user_least, split), stay
