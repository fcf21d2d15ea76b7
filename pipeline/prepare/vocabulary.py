"""All items of a log, merged from those of its runs: sorted keys, whose positions are codes."""

from collections.abc import Iterable
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline.prepare.engine import Engine
from pipeline.prepare.order import coded
from pipeline.prepare.runs import StoredRun
from pipeline.prepare.tasks import Advance, Meter, Progress

_AT_ONCE = 2**24  # keys that are merged together, where they are many

Counted = tuple[pa.Array, np.ndarray]
"""Different keys, sorted, and how many events each has, i64."""


def merge(parts: Iterable[Counted]) -> Counted:
    """The keys of all parts, with the sums of their events."""
    waiting: list[Counted] = []
    for part in parts:
        waiting.append(part)
        if sum(len(keys) for keys, _ in waiting) > _AT_ONCE:
            waiting = [_merged(waiting)]
    return _merged(waiting)


def _merged(parts: list[Counted]) -> Counted:
    if len(parts) == 1:
        return parts[0]
    keys, codes = coded(pa.concat_arrays([keys for keys, _ in parts]))
    events = np.zeros(len(keys), np.int64)
    start = 0
    for part, counted in parts:  # keys of one part differ, so no entry is met twice in one
        events[codes[start : start + len(part)]] += counted
        start += len(part)
    return keys, events


def number_items(runs: list[StoredRun], engine: Engine, progress: Progress) -> Counted:
    """All items of the runs and their events; every run learns where its own are among them."""
    keys, events = merge(run.items() for run in runs)
    tasks = {run.url: partial(_number, run, keys) for run in runs}
    meter = Meter(progress, "number", len(runs))
    for _ in engine.run(tasks, engine.limits.workers, meter.advance):
        pass
    return keys, events


def _number(run: StoredRun, keys: pa.Array, advance: Advance) -> None:
    run.number_items(keys)
    advance(1)
