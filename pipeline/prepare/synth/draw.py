"""The log as slices of time, in their order."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.prepare.synth import kernel, reference
from pipeline.prepare.synth.options import DAY, SynthOptions
from pipeline.prepare.synth.process import build_process
from pipeline.prepare.synth.users import draw_users

# 2020-09-14, midnight: the days of the log are days.
START = 1_600_041_600
_FEWEST, _MOST = 2**20, 2**23  # events of a slice


@dataclass(frozen=True, eq=False)
class Slice:
    """Events of a part of a day, in the order of time. users, items: i32 ``[T]``, keys from 1.
    times: i64 ``[T]``, seconds."""

    day: int
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray


def slices(options: SynthOptions, threads: int) -> Iterator[Slice]:
    """All events, no slice empty.

    Memory holds the items' tables, the users with what they remember, and one slice.
    """
    process, users = build_process(options), draw_users(options)
    compiled = kernel.available()
    seconds = slice_seconds(options)
    for day in range(options.days):
        last = (day + 1) * DAY
        for start in range(day * DAY, last, seconds):
            end = min(start + seconds, last)
            if compiled:
                drawn = kernel.draw(process, users, start, end, threads)
            else:
                drawn = reference.draw(process, users, start, end)
            if len(drawn[0]):
                yield Slice(day, drawn[0], drawn[1], START + drawn[2])


def slice_seconds(options: SynthOptions) -> int:
    """Length of a slice: a day, or less where that is many events.

    Each slice looks at every user, so it has a few events of each.
    """
    events = min(max(4 * options.users, _FEWEST), _MOST)
    parts = -(-options.events // (options.days * events))
    return -(-DAY // parts)
