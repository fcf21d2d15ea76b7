"""One slice of time in numpy: what ``draw.cpp`` computes, to the last bit."""

import numpy as np

from pipeline.prepare.synth.process import Process
from pipeline.prepare.synth.randomness import draws, pick, scaled
from pipeline.prepare.synth.users import Users

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
Events = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw(process: Process, users: Users, start: int, end: int) -> Events:
    """Users, items (i32, by their keys) and seconds (i64), ``[T]`` each, of the events before the
    second ``end`` that were not drawn yet, in the order of time; moves the users on."""
    state = users.state
    due = count(state, end)
    offsets = np.cumsum(due) - due
    keys = np.repeat(state["key"], due).astype(np.int32)
    items, seconds = np.empty(len(keys), np.int32), np.empty(len(keys), np.int64)
    for step in range(int(due.max(initial=0))):
        active = np.flatnonzero(due > step)
        at = offsets[active] + step
        seconds[at] = _seconds(state[active], state["done"][active])
        items[at] = _next_items(process, users, active) + 1
    by_time = np.argsort(seconds, kind="stable")
    return keys[by_time], items[by_time], seconds[by_time]


def count(state: np.ndarray, end: int) -> np.ndarray:
    """Events of every user before ``end`` that were not drawn yet, i64 ``[U]``."""
    length = state["length"].astype(np.int64)
    elapsed = end - state["begin"].astype(np.float64)
    # So many are over for certain; the few more are tried.
    sure = np.floor(elapsed / (state["pace"] + 1)) - 1
    until = np.clip(sure, state["done"], length).astype(np.int64)
    while (more := (until < length) & (_seconds(state, until) < end)).any():
        until += more
    due: np.ndarray = until - state["done"]
    return due


def _bits(state: np.ndarray, number: np.ndarray, use: int) -> np.ndarray:
    """Random bits of an event, one of three words, u64."""
    return draws(state["hash"], 3 * number.astype(np.uint64) + np.uint64(use))


def _seconds(state: np.ndarray, number: np.ndarray) -> np.ndarray:
    """When the event of this number comes, i64."""
    number = number.astype(np.int64)
    part = (_bits(state, number, 0) & _LOW).astype(np.float64) * 2.0**-32
    waited = ((number + part) * state["pace"]).astype(np.int64)
    seconds: np.ndarray = state["begin"] + number + waited
    return seconds


def _next_items(process: Process, users: Users, active: np.ndarray) -> np.ndarray:
    """The next item of every user of ``active``, who remembers it."""
    state, memory = users.state[active], users.recent.shape[1]
    number = state["done"].astype(np.int64)
    kind = _bits(state, number, 0) >> _HALF
    which, past = _bits(state, number, 1), _bits(state, number, 2)
    kind[number == 0] = 2**32  # nothing to follow
    follows, popular = kind < process.markov_below, kind >= process.topical_below

    # A word that decides on the age decides on the topic where there is no past to ask.
    sums = process.age_sums
    known = np.clip(number, 1, memory)
    age = np.searchsorted(sums, scaled(past, sums[known - 1])[0], side="right")
    topic = users.recent[active, (number - 1 - age) % memory].astype(np.int64)
    topic[popular] = pick(process.topic_sums, past[popular])
    first = process.firsts[topic]
    column, more = scaled(which, process.firsts[topic + 1] - first)
    chosen = process.columns[first + column.astype(np.int64)]
    similar = np.where(more >> _HALF < chosen["below"], chosen["own"], chosen["other"])

    step = process.steps[pick(process.rank_sums, which)].astype(np.int64)
    item: np.ndarray = np.where(follows, (state["last"] + step) % process.items, similar)
    users.state["last"][active] = item
    users.state["done"][active] += 1
    users.recent[active, number % memory] = process.topics[item]
    return item
