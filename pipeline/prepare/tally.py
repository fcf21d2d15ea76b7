"""What is counted of histories before they are written: sizes, parts of the split, times."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.errors import LonghaulError
from pipeline.manifest import Split
from pipeline.prepare.options import Unit
from pipeline.prepare.split import split_marks


@dataclass
class Tally:
    """Of some histories: users and events, the longest, the events in each part of the split, the
    times of the first, the last and the last training event, and the events of each action."""

    users: int = 0
    events: int = 0
    longest: int = 0
    parts: tuple[int, int, int] = (0, 0, 0)
    oldest: int | None = None
    newest: int | None = None
    newest_trained: int | None = None
    actions: tuple[int, ...] = ()

    def __add__(self, other: "Tally") -> "Tally":
        if self.events == 0 or other.events == 0:
            return self if other.events == 0 else other
        count = max(len(self.actions), len(other.actions))
        actions = np.zeros(count, np.int64)
        for each in (self, other):
            actions[: len(each.actions)] += np.array(each.actions, np.int64)
        return Tally(
            users=self.users + other.users,
            events=self.events + other.events,
            longest=max(self.longest, other.longest),
            parts=(
                self.parts[0] + other.parts[0],
                self.parts[1] + other.parts[1],
                self.parts[2] + other.parts[2],
            ),
            oldest=_either(min, self.oldest, other.oldest),
            newest=_either(max, self.newest, other.newest),
            newest_trained=_either(max, self.newest_trained, other.newest_trained),
            actions=tuple(actions.tolist()),
        )


def tally(
    lengths: np.ndarray, times: np.ndarray | None, actions: np.ndarray | None, split: Split
) -> Tally:
    """Of the histories with ``lengths``, i64 ``[U]``, whose events have these times, sorted within
    a user, and actions, each ``[T]``."""
    events = int(lengths.sum())
    if events == 0:
        return Tally()
    marks = split_marks(split, lengths, times).astype(np.int64)
    found = Tally(
        users=int((lengths > 0).sum()),
        events=events,
        longest=int(lengths.max()),
        parts=(
            int(marks[:, 0].sum()),
            int((marks[:, 2] - marks[:, 1]).sum()),
            int((lengths - marks[:, 3]).sum()),
        ),
        actions=() if actions is None else tuple(np.bincount(actions).tolist()),
    )
    if times is not None:
        starts = np.cumsum(lengths) - lengths
        trained = marks[:, 0] > 0
        last = times[(starts + marks[:, 0] - 1)[trained]]
        found.oldest, found.newest = int(times.min()), int(times.max())
        found.newest_trained = int(last.max()) if len(last) else None
    return found


def check_parts(found: Tally, split: Split, unit: Unit | None) -> None:
    """Raise LonghaulError where a part of a split by time holds no event of anybody."""
    if split.kind != "time":
        return
    windows = {
        "training": f"before {split.train_end}",
        "validation": split.validation,
        "test": split.test,
    }
    for (name, window), events in zip(windows.items(), found.parts, strict=True):
        if not events:
            raise LonghaulError(
                f"split by time: no event is left in the {name} window ({window}, {unit}); "
                f"the events left are from {found.oldest} to {found.newest}"
            )


def _either(choose: Callable[[int, int], int], one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return choose(one, other)
