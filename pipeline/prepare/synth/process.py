"""The process: tables from which the next item is drawn, all of them O(items).

Items are ranked by popularity; topic ``k`` of ``K`` has every ``K``th rank, from ``k`` on,
so topics are as large as each other and their most popular items differ as whole topics do. Keys
are a random permutation of the ranks. The successors of an item are fixed random steps further on
around the ring of the keys.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.prepare.synth.options import SynthOptions
from pipeline.prepare.synth.randomness import alias_table, running_sums
from pipeline.stream.order import permutation, seed_of

COLUMN = np.dtype([("below", "u4"), ("own", "u4"), ("other", "u4")])


@dataclass(frozen=True, eq=False)
class Process:
    """Tables over ``V`` items, ``K`` topics and ``S`` successors; item ``i`` has the key ``i + 1``.

    items: ``V``. columns: COLUMN ``[V]``, an alias table for each topic, one after the other, which
    begin at firsts: u32 ``[K + 1]``. topics: u16 ``[V]``. topic_sums: u32 ``[K]``, running sums of
    the topics' popularity. steps: u32 ``[S]``; rank_sums: u32 ``[S]``, running sums of their
    shares. age_sums: u32 ``[memory]``, running sums of the weights of ages. markov_below,
    topical_below: of 2**32, where the kinds of events end.
    """

    items: int
    columns: np.ndarray
    firsts: np.ndarray
    topics: np.ndarray
    topic_sums: np.ndarray
    steps: np.ndarray
    rank_sums: np.ndarray
    age_sums: np.ndarray
    markov_below: int
    topical_below: int


def key_order(options: SynthOptions) -> np.ndarray:
    """Item of every rank of popularity, i64 ``[V]``."""
    return permutation(options.items, seed_of("synthetic items", options.seed))


def rank_weights(options: SynthOptions) -> np.ndarray:
    """Popularity of every rank, f64 ``[V]``, not normalised."""
    weights: np.ndarray = np.arange(1, options.items + 1, dtype=np.float64) ** -options.zipf
    return weights


def topic_weights(options: SynthOptions) -> np.ndarray:
    """Running sums of the topics' popularity, u32 ``[K]``."""
    ranks = np.arange(options.items)
    return running_sums(np.bincount(ranks % options.topics, rank_weights(options)))


def successor_steps(options: SynthOptions) -> np.ndarray:
    """Steps around the ring of the keys, i64 ``[S]``: distinct, and none back to the item."""
    random = np.random.default_rng(seed_of("synthetic successors", options.seed))
    steps: np.ndarray = 1 + random.choice(options.items - 1, options.successors, replace=False)
    return steps


def build_process(options: SynthOptions) -> Process:
    """The process of ``options``; the same seed and catalogue, the same process."""
    order = key_order(options)
    weights = rank_weights(options)
    topics = np.empty(options.items, np.uint16)
    topics[order] = np.arange(options.items) % options.topics
    columns = np.empty(options.items, COLUMN)
    firsts = np.zeros(options.topics + 1, np.uint32)
    for topic in range(options.topics):
        own = order[topic :: options.topics]
        below, other = alias_table(weights[topic :: options.topics])
        first = int(firsts[topic])
        part = columns[first : first + len(own)]
        part["below"], part["own"], part["other"] = below, own, own[other]
        firsts[topic + 1] = first + len(own)
    return Process(
        items=options.items,
        columns=columns,
        firsts=firsts,
        topics=topics,
        topic_sums=topic_weights(options),
        steps=successor_steps(options).astype(np.uint32),
        rank_sums=rank_sums(options),
        age_sums=age_sums(options),
        markov_below=round(options.markov * 2**32),
        topical_below=round((options.markov + options.topical) * 2**32),
    )


def rank_sums(options: SynthOptions) -> np.ndarray:
    """Running sums of the shares of an item's successors, u32 ``[S]``."""
    return running_sums(1.0 / np.arange(1, options.successors + 1))


def age_sums(options: SynthOptions) -> np.ndarray:
    """Running sums of the weights of ages, the last event first, u32 ``[memory]``."""
    return running_sums(options.decay ** np.arange(options.memory))
