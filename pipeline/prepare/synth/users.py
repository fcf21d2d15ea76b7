"""Who the users are: how many events each has, and when."""

from dataclasses import dataclass

import numpy as np

from pipeline.prepare.synth.options import DAY, SynthOptions
from pipeline.prepare.synth.randomness import draws
from pipeline.stream.order import permutation, seed_of

# hash: the seed of all that a user does. begin: second of the log; event ``i`` comes at the second
# begin + i + floor((i + a random part of 1) * pace): strictly rising, and found without the events
# before it. done: events drawn so far. last: the last item. due: events of the slice in hand.
USER = np.dtype(
    [
        ("hash", "u8"),
        ("pace", "f8"),
        ("key", "u4"),
        ("begin", "u4"),
        ("length", "u4"),
        ("done", "u4"),
        ("last", "u4"),
        ("due", "u4"),
    ]
)


@dataclass(frozen=True, eq=False)
class Users:
    """``U`` users between two slices. state: USER ``[U]``. recent: u16 ``[U, memory]``, topics of
    the last events; event ``i`` is at ``i % memory``."""

    state: np.ndarray
    recent: np.ndarray


def draw_users(options: SynthOptions) -> Users:
    """All users before their first event."""
    random = np.random.default_rng(seed_of("synthetic users", options.seed))
    lengths = draw_lengths(options, random)
    # A user comes in the first three quarters of the time; half of them stay to the end.
    come, go = random.random((2, options.users))
    room = options.days * DAY - lengths - 1
    begin = np.floor(0.75 * room * come)
    active = (room - begin) * np.minimum(1.0, 2 * go)

    state = np.zeros(options.users, USER)
    state["hash"] = draws(seed_of("synthetic events", options.seed), np.arange(options.users))
    # In a second with many events, rows follow the order here, which says nothing of the key.
    state["key"] = 1 + permutation(options.users, seed_of("synthetic keys", options.seed))
    state["length"], state["begin"], state["pace"] = lengths, begin, active / lengths
    return Users(state, np.zeros((options.users, options.memory), np.uint16))


def draw_lengths(options: SynthOptions, random: np.random.Generator) -> np.ndarray:
    """Events of every user, i64 ``[U]``; they sum to ``options.events``.

    Above the shortest they are log-normal or, with a tail, follow a power law (Lomax's), scaled to
    the sum; what would pass the longest goes to the others by their shares.
    """
    if options.tail is None:
        shares = np.exp(random.normal(0.0, options.spread, options.users))
    else:
        shares = random.pareto(options.tail - 1, options.users)
    lengths = np.full(options.users, options.most)
    below = np.arange(options.users)  # users who do not reach the longest
    left = options.events - options.users * options.shortest
    while True:
        share = shares[below] / shares[below].sum() * left
        over = share > options.most - options.shortest
        if not over.any():
            break
        left -= int(over.sum()) * (options.most - options.shortest)
        below = below[~over]
    edges = np.floor(np.cumsum(share)).astype(np.int64)
    edges[-1:] = left
    lengths[below] = options.shortest + np.diff(edges, prepend=0)
    return lengths
