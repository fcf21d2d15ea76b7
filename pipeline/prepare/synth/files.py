"""A synthetic event log whose true next-item distribution is known.

A model can then be compared with the best that any model could do. The next item of a history is

    Markov * one of a few successors of the last item
    + topics * an item of a topic of the past: a past event is drawn, with weight ``decay ** age``,
      and an item of its topic by popularity within the topic
    + the rest * an item by popularity (Zipf)

and the first item of all is drawn by popularity. All of it depends on the observed history alone,
so ``Truth.next_item_distribution`` is exact. Items already seen are not excluded: they may occur
again, here and in the truth.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline import storage

EVENTS = "events.parquet"
TRUTH = "truth.npz"
_ROW_GROUP = 2**20
_START = 1_600_000_000


class SynthOptions(BaseModel):
    """Size and shape of a synthetic log."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    users: int = Field(default=20_000, ge=1, description="Number of users.")
    items: int = Field(default=2_000, ge=2, description="Number of items, with keys 1 to items.")
    events: int = Field(default=1_000_000, ge=1, description="Number of events, exactly.")
    seed: int = Field(default=0, ge=0, description="Seed of everything that is drawn.")
    topics: int = Field(default=80, ge=1, description="Number of topics the items belong to.")
    successors: int = Field(default=4, ge=1, description="Successors of each item.")
    markov: float = Field(
        default=0.5, ge=0, le=1, description="Share of events that follow the last item."
    )
    topical: float = Field(
        default=0.4, ge=0, le=1, description="Share of events that follow the topics of the past."
    )
    decay: float = Field(
        default=0.9, gt=0, lt=1, description="Weight of a past event against the one after it."
    )
    zipf: float = Field(default=1.0, ge=0, description="Exponent of the popularity of items.")
    shortest: int = Field(default=5, ge=1, description="Events of the shortest history.")
    spread: float = Field(
        default=1.0, ge=0, description="Standard deviation of the logarithm of history lengths."
    )
    days: int = Field(default=90, ge=1, description="Time that the log covers.")

    @model_validator(mode="after")
    def _fit_together(self) -> "SynthOptions":
        if self.markov + self.topical > 1:
            raise ValueError("markov and topical are shares: together at most 1")
        if self.topics > self.items:
            raise ValueError("topics cannot outnumber items")
        if self.successors >= self.items:
            raise ValueError("successors must be fewer than items")
        if self.events < self.users * self.shortest:
            raise ValueError("events must be at least users * shortest")
        return self


@dataclass(frozen=True, eq=False)
class Truth:
    """The process itself, over ``V`` items; item ``i`` here has the key ``i + 1`` in the log.

    popularity: f64 ``[V]``, sums to 1. topic: i64 ``[V]``. within: f64 ``[V]``, probability of an
    item inside its topic. successors: i64 ``[V, S]``. successor_weights: f64 ``[S]``, sums to 1.
    markov, topical, decay: as in ``SynthOptions``.
    """

    popularity: np.ndarray
    topic: np.ndarray
    within: np.ndarray
    successors: np.ndarray
    successor_weights: np.ndarray
    markov: float
    topical: float
    decay: float

    def next_item_distribution(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Probability of every item to come next, f64 ``[n, V]``; column ``i`` is key ``i + 1``.

        ``histories``: ``n`` arrays of item keys, oldest first; they may be empty.
        """
        count, size = len(histories), len(self.popularity)
        lengths = np.array([len(history) for history in histories], np.int64)
        result = np.tile(self.popularity, (count, 1))
        filled = np.flatnonzero(lengths)
        if not filled.size:
            return result
        items = (
            np.concatenate([np.asarray(histories[row], np.int64) for row in filled.tolist()]) - 1
        )
        if items.min() < 0 or items.max() >= size:
            raise ValueError(f"item keys are 1 to {size}")
        lengths = lengths[filled]
        ends = np.cumsum(lengths)
        rows = np.repeat(np.arange(len(filled)), lengths)
        age = ends[rows] - 1 - np.arange(len(items))

        topics = int(self.topic.max()) + 1
        weight = self.decay**age
        affinity = np.bincount(
            rows * topics + self.topic[items], weight, minlength=len(filled) * topics
        ).reshape(len(filled), topics)
        affinity = affinity / affinity.sum(axis=1, keepdims=True)

        rest = 1.0 - self.markov - self.topical
        mixed = rest * self.popularity + self.topical * affinity[:, self.topic] * self.within
        last = items[ends - 1]
        for rank, share in enumerate(self.successor_weights):
            # An item's successors differ, so no entry is met twice in one pass.
            mixed[np.arange(len(filled)), self.successors[last, rank]] += self.markov * share
        result[filled] = mixed
        return result

    def save(self, url: str) -> None:
        """Write the truth as ``.npz``."""
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        storage.write_bytes(url, buffer.getvalue())

    @classmethod
    def load(cls, url: str) -> "Truth":
        """Read a truth that ``save`` wrote."""
        with np.load(io.BytesIO(storage.read_bytes(url))) as arrays:
            values = {field.name: arrays[field.name] for field in fields(cls)}
        return cls(
            **{name: value if value.ndim else value.item() for name, value in values.items()}
        )


def draw_truth(options: SynthOptions, random: np.random.Generator) -> Truth:
    """A process: popularity, topics and successors, drawn once."""
    size = options.items
    popularity = 1.0 / np.arange(1, size + 1) ** options.zipf
    popularity = random.permutation(popularity / popularity.sum())
    topic = random.permutation(np.arange(size) % options.topics)
    within = popularity / np.bincount(topic, popularity)[topic]
    # Distinct successors, none of them the item itself: distinct steps around a ring, then a
    # permutation so that neighbours on the ring are no neighbours by key.
    ring = random.permutation(size)
    place = np.argsort(ring)
    steps = 1 + np.sort(random.permutation(size - 1)[: options.successors])
    successors = ring[(place[:, None] + steps) % size]
    weights = 1.0 / np.arange(1, options.successors + 1)
    return Truth(
        popularity=popularity,
        topic=topic,
        within=within,
        successors=successors,
        successor_weights=weights / weights.sum(),
        markov=options.markov,
        topical=options.topical,
        decay=options.decay,
    )


def _draw_lengths(options: SynthOptions, random: np.random.Generator) -> np.ndarray:
    """Events of every user, i64 ``[U]``, longest first; they sum to ``options.events``."""
    share = np.exp(random.normal(0.0, options.spread, options.users))
    spare = options.events - options.users * options.shortest
    lengths: np.ndarray = options.shortest + random.multinomial(spare, share / share.sum())
    return -np.sort(-lengths)


def _draw_items(truth: Truth, lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Items 0..V-1 of all histories back to back, i64 ``[T]``; one step for all users at a time."""
    starts = np.cumsum(lengths) - lengths
    items = np.empty(int(lengths.sum()), np.int64)
    by_popularity = np.cumsum(truth.popularity)
    by_topic = np.argsort(truth.topic, kind="stable")
    firsts = np.searchsorted(truth.topic[by_topic], np.arange(int(truth.topic.max()) + 2))
    # Item shares within topic k run from k to k + 1, so one search draws for any topic.
    in_topic = np.cumsum(truth.within[by_topic])
    by_rank = np.cumsum(truth.successor_weights)
    for step in range(int(lengths[0])):
        # Longest first: the users still active are a prefix.
        active = int(np.searchsorted(-lengths, -step, side="left"))
        at = starts[:active] + step
        kind, draw, past = random.random((3, active))
        popular = np.searchsorted(by_popularity, draw * by_popularity[-1], side="right")
        if step == 0:
            items[at] = popular
            continue
        rank = np.searchsorted(by_rank, draw * by_rank[-1], side="right")
        following = truth.successors[items[at - 1], rank]
        # Age by the inverse of a geometric distribution that ends at the first event.
        age = np.log1p(-past * (1.0 - truth.decay**step)) / np.log(truth.decay)
        remembered = items[at - 1 - np.minimum(age.astype(np.int64), step - 1)]
        topic = truth.topic[remembered]
        slot = np.searchsorted(in_topic, topic + draw, side="right")
        # Rounding at the edge of a topic must not lead into its neighbour.
        similar = by_topic[np.clip(slot, firsts[topic], firsts[topic + 1] - 1)]
        items[at] = np.where(
            kind < truth.markov,
            following,
            np.where(kind < truth.markov + truth.topical, similar, popular),
        )
    return items


def _draw_times(
    options: SynthOptions, lengths: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Times of all events in seconds, i64 ``[T]``, strictly rising in every history."""
    span = options.days * 86_400
    begin = random.random(len(lengths)) * span * 0.75
    length = (span - begin) * random.random(len(lengths))
    gaps = random.exponential(size=int(lengths.sum()))
    users = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    before = np.cumsum(gaps) - gaps
    elapsed = before - before[starts][users]
    total = np.bincount(users, gaps)
    seconds = begin[users] + elapsed / total[users] * length[users]
    # At least a second between two events of a user: no ties to break.
    times: np.ndarray = _START + seconds.astype(np.int64) + np.arange(len(users)) - starts[users]
    return times


def generate(options: SynthOptions, url: str) -> Truth:
    """Write ``events.parquet`` and ``truth.npz`` below ``url`` and return the truth.

    The log has the columns user (1 to users), item (1 to items) and timestamp (seconds), the
    events of all users mixed, in the order of their times. The same options give the same bytes.
    """
    random = np.random.default_rng(options.seed)
    truth = draw_truth(options, random)
    lengths = _draw_lengths(options, random)
    items = _draw_items(truth, lengths, random)
    times = _draw_times(options, lengths, random)
    users = np.repeat(random.permutation(options.users), lengths)
    by_time = np.argsort(times, kind="stable")

    schema = pa.schema([("user", pa.int64()), ("item", pa.int64()), ("timestamp", pa.int64())])
    with (
        storage.create(storage.join(url, EVENTS)) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for start in range(0, len(by_time), _ROW_GROUP):
            rows = by_time[start : start + _ROW_GROUP]
            columns = [users[rows] + 1, items[rows] + 1, times[rows]]
            writer.write_table(pa.table(columns, schema=schema))
    truth.save(storage.join(url, TRUTH))
    return truth
