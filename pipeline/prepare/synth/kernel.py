"""One slice of time through the C++ kernel (draw.cpp), which is compiled when it is first used."""

import functools
from ctypes import CDLL
from pathlib import Path

import numpy as np

from pipeline.prepare.synth.process import Process
from pipeline.prepare.synth.reference import Events
from pipeline.prepare.synth.users import Users


@functools.cache
def _library() -> CDLL | None:
    from models.ops import extension  # with torch, which the command line's help can do without

    source = Path(__file__).with_name("draw.cpp")
    return extension.load([source], "no compiled kernel, drawing events with numpy")


def available() -> bool:
    """Whether there is a compiled kernel and nobody turned it off."""
    from models.ops import extension

    return extension.enabled() and _library() is not None


def draw(process: Process, users: Users, start: int, end: int, threads: int) -> Events:
    """See ``reference.draw``; ``start`` is where the slice before ended."""
    from models.ops import extension

    library = _library()
    assert library is not None
    count = len(users.state)
    events = extension.invoke(library, "synth_count", users.state, count, end, threads)
    keys, items = np.empty((2, events), np.int32)
    times = np.empty(events, np.int64)
    extension.invoke(
        library,
        "synth_draw",
        users.state,
        users.recent,
        count,
        process.items,
        process.columns,
        process.firsts,
        process.topics,
        process.topic_sums,
        len(process.topic_sums),
        process.steps,
        process.rank_sums,
        len(process.steps),
        process.age_sums,
        len(process.age_sums),
        process.markov_below,
        process.topical_below,
        start,
        end,
        events,
        keys,
        items,
        times,
        threads,
    )
    return keys, items, times
