"""The collectives of a step by engine, stage and table, and their time over a cluster's links.

``benchmarks/scaling.py`` counts the same on real steps.
"""

import math
from dataclasses import dataclass
from typing import Literal

from cluster.hardware import Link
from cluster.plan.work import Sizes
from pipeline.config import Recipe
from pipeline.train.zero import BUCKET, LIVE

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]

_PERSISTENT = 100_000  # elements: parameters of fewer stay whole at ZeRO's stage 3
_SCALARS = 3  # all-reduces of a few numbers a step: counts, the loss, the gradient's norm


@dataclass(frozen=True)
class Collective:
    """``calls`` of a kind in a step. bytes: of their tensors where they are whole, in all."""

    kind: Kind
    bytes: float
    calls: float

    def sent(self, workers: int) -> float:
        """Bytes that a worker sends, and as many it gets: rings, and direct ways for all-to-all."""
        return (2 if self.kind == "all_reduce" else 1) * self.bytes * (workers - 1) / workers


@dataclass(frozen=True)
class Ways:
    """Workers on nodes, and the links between them. reached: the share of the bandwidth."""

    workers: int
    a_node: int
    inside: Link
    between: Link
    reached: float

    @property
    def nodes(self) -> int:
        """The last one may have fewer workers."""
        return -(-self.workers // self.a_node)

    def seconds(self, collective: Collective) -> float:
        """Bandwidth and latency, added.

        A ring crosses into a node once, whatever the workers there; of an all-to-all every worker
        of a node sends through the node's link what is for others.
        """
        w, on = self.workers, min(self.workers, self.a_node)
        if w == 1:
            return 0.0
        sent = collective.sent(w)
        near, far = sent, sent if self.nodes > 1 else 0.0
        if collective.kind == "all_to_all":
            near, far = collective.bytes * (on - 1) / w, collective.bytes * (w - on) / w * on
        moved = max(near / self.inside.bandwidth, far / self.between.bandwidth) / self.reached
        return moved + self.hops(collective) * self._latency

    def hops(self, collective: Collective) -> float:
        """Messages one after the other, as in a tree."""
        if self.workers == 1:
            return 0.0
        there_and_back = 2 if collective.kind == "all_reduce" else 1
        return collective.calls * there_and_back * math.ceil(math.log2(self.workers))

    @property
    def _latency(self) -> float:
        return self.between.latency if self.nodes > 1 else self.inside.latency


def collectives_of(recipe: Recipe, sizes: Sizes) -> list[Collective]:
    """Of a step. None at one worker."""
    if sizes.workers == 1:
        return []
    found = [Collective("all_reduce", 0, _SCALARS), *_gradients(recipe, sizes)]
    if sizes.sharded:
        found += _rows(recipe, sizes)
        if recipe.train.loss.name == "full_softmax":
            found += _hidden_states(sizes)
    return found


def _gradients(recipe: Recipe, sizes: Sizes) -> list[Collective]:
    """Of the engine's parameters, and their new weights."""
    p, micro, low = sizes.engine, sizes.micro, sizes.low
    buckets = -(-p // BUCKET) + 1
    stage = recipe.train.zero_stage if recipe.train.engine == "deepspeed" else 0
    if stage == 0:
        return [Collective("all_reduce", 4 * p, buckets)]
    if stage == 3:
        small = sum(number for number in sizes.parameters if number < _PERSISTENT)
        large = [number for number in sizes.parameters if number >= _PERSISTENT]
        # Kept from the forward to the backward pass while they are few enough.
        times = micro * (1 if sum(large) <= LIVE else 2)
        return [
            Collective("reduce_scatter", low * p * micro, buckets * micro),
            Collective("all_gather", low * sum(large) * times, len(large) * times),
            Collective("all_gather", low * small, 1),
        ]
    times = micro if stage == 2 else 1
    return [
        Collective("all_reduce", low * p * times, buckets * times),
        Collective("all_gather", low * p, buckets),
    ]


def _rows(recipe: Recipe, sizes: Sizes) -> list[Collective]:
    """Ids to who keeps their rows, rows back, gradients there."""
    stored = 2 if recipe.train.table.storage == "bf16" else 4
    size = 8 + (stored + 4) * sizes.width
    return [Collective("all_to_all", sizes.micro * sizes.fetched * size, 4 * sizes.micro)]


def _hidden_states(sizes: Sizes) -> list[Collective]:
    """All workers' states and targets to each; three sums of a number a token; gradients."""
    tokens = sizes.tokens * sizes.workers * sizes.micro
    return [
        Collective("all_gather", tokens * (4 * sizes.d + 8), 3 * sizes.micro),
        Collective("all_reduce", tokens * (4 * sizes.d + 12), 4 * sizes.micro),
    ]
