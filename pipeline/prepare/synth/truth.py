"""The process as an evaluation asks for it: the probability of every item to come next."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.prepare.synth import process
from pipeline.prepare.synth.options import SynthOptions

_VERSION = 2


@dataclass(frozen=True, eq=False)
class Truth:
    """The process over ``V`` items; item ``i`` here has the key ``i + 1`` in the log.

    options: the log's, from which all else follows. popularity: f64 ``[V]``, sums to 1. topic: i64
    ``[V]``. within: f64 ``[V]``, probability of an item inside its topic. steps: i64 ``[S]``, from
    an item to its successors around the ring of the items. successor_weights: f64 ``[S]``, sums
    to 1. age_weights: f64 ``[memory]`` of the events of the past, the last one first.
    """

    options: SynthOptions
    popularity: np.ndarray
    topic: np.ndarray
    within: np.ndarray
    steps: np.ndarray
    successor_weights: np.ndarray
    age_weights: np.ndarray

    @classmethod
    def of(cls, options: SynthOptions) -> "Truth":
        """The truth of the log that ``options`` describe."""
        order, weights = process.key_order(options), process.rank_weights(options)
        topic = np.empty(options.items, np.int64)
        topic[order] = np.arange(options.items) % options.topics
        within = np.empty(options.items)
        within[order] = weights
        within /= np.bincount(topic, within)[topic]
        return cls(
            options=options,
            # The shares of the tables that the log is drawn from, which are rounded to 2**-32.
            popularity=_shares(process.topic_weights(options))[topic] * within,
            topic=topic,
            within=within,
            steps=process.successor_steps(options),
            successor_weights=_shares(process.rank_sums(options)),
            age_weights=_shares(process.age_sums(options)),
        )

    def next_item_distribution(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Probability of every item to come next, f64 ``[n, V]``; column ``i`` is key ``i + 1``.

        ``histories``: ``n`` arrays of item keys, oldest first; they may be empty.
        """
        result = np.tile(self.popularity, (len(histories), 1))
        size, markov, topical = len(self.popularity), self.options.markov, self.options.topical
        for row, history in zip(result, histories, strict=True):
            # No older event counts.
            items = np.asarray(history, np.int64)[: -len(self.age_weights) - 1 : -1] - 1
            if not len(items):
                continue
            if items.min() < 0 or items.max() >= size:
                raise ValueError(f"item keys are 1 to {size}")
            weights = self.age_weights[: len(items)] / self.age_weights[: len(items)].sum()
            affinity = np.bincount(self.topic[items], weights, minlength=self.options.topics)
            row *= 1.0 - markov - topical
            row += topical * affinity[self.topic] * self.within
            # An item's successors differ, so no entry is met twice.
            row[(items[0] + self.steps) % size] += markov * self.successor_weights
        return result

    @classmethod
    def load(cls, url: str) -> "Truth":
        """The truth that ``save`` wrote. Raises LonghaulError for anything else."""
        document = storage.read_json(url)
        if not isinstance(document, dict) or document.get("schema_version") != _VERSION:
            raise LonghaulError(f"{url} is not the truth of a synthetic log of this version")
        try:
            return cls.of(SynthOptions.model_validate(document.get("synthetic_log")))
        except ValidationError as error:
            raise LonghaulError(f"{url} is not the truth of a synthetic log: damaged") from error


def save(options: SynthOptions, url: str) -> None:
    """Write the truth of a log as JSON: its options say it all, at any size of the catalogue."""
    storage.write_json(url, {"schema_version": _VERSION, "synthetic_log": options.model_dump()})


def _shares(sums: np.ndarray) -> np.ndarray:
    """The probabilities that running sums stand for, f64."""
    return np.diff(sums.astype(np.float64), prepend=0.0) / float(sums[-1])
