"""The data card: a log, and the data set made of it, in numbers.

They are counted in the passes that are made anyway; nothing is estimated.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipeline.manifest import Manifest
from pipeline.prepare.options import PER_SECOND, Unit

CARD, PAGE = "card.json", "card.html"
_QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_CALENDAR = 400 * 365  # days
_SHARES = (0.001, 0.01, 0.1, 0.5)


@dataclass
class Traits:
    """What the times of some events tell, before repeats and counts are filtered.

    ties: events with the time of their user's event before. duplicates: those with its item as
    well. days: events by day, counted from 1970 in UTC. All are of events with times.
    """

    ties: int = 0
    duplicates: int = 0
    days: dict[int, int] = field(default_factory=dict)

    def __add__(self, other: "Traits") -> "Traits":
        days = Counter(self.days)
        days.update(other.days)
        return Traits(self.ties + other.ties, self.duplicates + other.duplicates, dict(days))


def traits(
    users: np.ndarray, items: np.ndarray, times: np.ndarray | None, unit: Unit | None
) -> Traits:
    """Of events ordered by user and time; all ``[T]``."""
    if times is None or unit is None or len(times) == 0:
        return Traits()
    tied = np.zeros(len(times), bool)
    tied[1:] = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    duplicates = 0
    if tied.any():
        # A group of events at one time begins where nothing is tied to what is before it.
        rows = np.flatnonzero(tied | np.append(tied[1:], False))
        groups, found = np.cumsum(~tied[rows]), items[rows]
        order = np.lexsort((found, groups))
        same = (np.diff(groups[order]) == 0) & (found[order][1:] == found[order][:-1])
        duplicates = int(same.sum())
    days = times // (86_400 * PER_SECOND[unit])
    first, last = int(days.min()), int(days.max())
    by_day: dict[int, int] = {}
    if last - first < _CALENDAR:  # else the unit is wrong, and every event has a day of its own
        counts = np.bincount(days - first)
        numbers = np.flatnonzero(counts)
        by_day = dict(zip((numbers + first).tolist(), counts[numbers].tolist(), strict=True))
    return Traits(int(tied.sum()), duplicates, by_day)


class Card(BaseModel):
    """A data set in numbers.

    ties, duplicates: events of the log, before repeats and counts were filtered, with the time of
    their user's event before, and with its item as well; None without times. days: events of the
    log by day. length_histogram: from, to (both counted), users. popularity: ranks of items, the
    most popular one first, and their events. top_items: the share of all events that the most
    popular items have, by the share of items.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    users: int
    items: int
    events: int
    counts: dict[str, int]
    first_event: str | None
    last_event: str | None
    ties: int | None
    duplicates: int | None
    days: dict[str, int]
    mean_length: float
    length_quantiles: dict[str, int]
    length_histogram: list[tuple[int, int, int]]
    item_quantiles: dict[str, int]
    popularity: list[tuple[int, int]]
    top_items: dict[str, float]


def card_of(
    manifest: Manifest, found: Traits, lengths: Counter[int], item_events: np.ndarray
) -> Card:
    """The card of a data set. lengths: users by number of events. item_events: i64 ``[V]``."""
    dated = manifest.timestamp_unit is not None
    days = sorted(found.days)
    values = np.array(sorted(lengths))
    users = np.array([lengths[value] for value in values.tolist()])
    popular = np.sort(item_events)[::-1]
    reached = np.cumsum(popular) / popular.sum()
    ranks = np.unique(np.geomspace(1, len(popular), 200).round().astype(np.int64))
    return Card(
        users=manifest.users,
        items=manifest.catalogue_size,
        events=manifest.events,
        counts=manifest.counts,
        first_event=date_of(days[0]) if days else None,
        last_event=date_of(days[-1]) if days else None,
        ties=found.ties if dated else None,
        duplicates=found.duplicates if dated else None,
        days={date_of(day): found.days[day] for day in days},
        mean_length=manifest.events / manifest.users,
        length_quantiles=_quantiles(values, users),
        length_histogram=_histogram(values, users),
        item_quantiles=_quantiles(popular[::-1], np.ones(len(popular), np.int64)),
        popularity=[(rank, int(popular[rank - 1])) for rank in ranks.tolist()],
        top_items={
            f"{share:g}": float(reached[max(0, round(share * len(popular)) - 1)])
            for share in _SHARES
        },
    )


def _quantiles(values: np.ndarray, counts: np.ndarray) -> dict[str, int]:
    """The least value that a share of all reaches; sorted ``values`` are met ``counts`` times."""
    reached = np.cumsum(counts)
    places = [np.searchsorted(reached, max(1, np.ceil(q * reached[-1]))) for q in _QUANTILES]
    return {f"{q:g}": int(values[place]) for q, place in zip(_QUANTILES, places, strict=True)}


def _histogram(values: np.ndarray, counts: np.ndarray) -> list[tuple[int, int, int]]:
    """Values from 1 on in bins that grow by half an octave."""
    edges = [1]
    while edges[-1] <= values[-1]:
        edges.append(max(edges[-1] + 1, round(edges[-1] * 2**0.5)))
    found, _ = np.histogram(values, edges, weights=counts)
    # The last edge of numpy's last bin belongs to it; here it lies above all values.
    bins = zip(edges[:-1], edges[1:], found.astype(np.int64).tolist(), strict=True)
    return [(start, stop - 1, users) for start, stop, users in bins]


def date_of(day: int) -> str:
    """A day since 1970 as ISO 8601; one that no calendar has, as its number."""
    try:
        return datetime.fromtimestamp(day * 86_400, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return f"day {day}"


def traits_in(card: Card) -> Traits:
    """The traits that a card tells."""
    days = {_number(text): events for text, events in card.days.items()}
    return Traits(card.ties or 0, card.duplicates or 0, days)


def _number(text: str) -> int:
    """What ``date_of`` was given."""
    if text.startswith("day "):
        return int(text.removeprefix("day "))
    return (date.fromisoformat(text) - date(1970, 1, 1)).days
