"""What one worker counts of an evaluation, and later all of them together."""

import numpy as np

from pipeline.evaluate.blocks import Queries
from pipeline.evaluate.catalogue import Catalogue, list_metrics
from pipeline.evaluate.groups import (
    EVERYBODY,
    TARGET_GROUPS,
    USER_GROUPS,
    groups_of_targets,
    groups_of_users,
)
from pipeline.evaluate.intervals import Sums
from pipeline.evaluate.lists import top_k
from pipeline.evaluate.metrics import half_places, user_metrics
from pipeline.evaluate.per_user import PerUserWriter
from pipeline.evaluate.protocol import Group, Protocol
from pipeline.evaluate.ranking import Ranks, rank_targets
from pipeline.evaluate.sampled import rank_among_sampled
from pipeline.evaluate.scores import Scores
from pipeline.world import World


class Tally:
    """Sums over the users so far.

    catalogue: None where targets are not grouped by their popularity. per_user: keeps the rows.
    """

    def __init__(
        self, protocol: Protocol, catalogue: Catalogue | None, per_user: PerUserWriter | None
    ) -> None:
        self._protocol = protocol
        self._catalogue = catalogue
        self._per_user = per_user
        self.users: Sums | None = None  # in USER_GROUPS, ties against the target
        self.expected: Sums | None = None  # everybody, ties in random order
        self.targets: Sums | None = None  # in TARGET_GROUPS, each target by itself
        self.without_target = self.without_history = 0
        # By list length and item: whether it has been in a list.
        self._covered: np.ndarray | None = None
        if protocol.lists:
            assert catalogue is not None, "lists are measured by the popularity of their items"
            self._covered = np.zeros((len(protocol.ks), len(catalogue.counts)), dtype=bool)

    def add(self, scores: Scores, queries: Queries) -> None:
        """Rank the targets of one batch, and count.

        A batch of nobody helps those who rank together with this worker.
        """
        ks, offsets = self._protocol.ks, queries.offsets.numpy()
        ranks = self._rank(scores, queries)
        lists = np.zeros((0, max(ks)), np.int64)
        if self._covered is not None:
            lists = top_k(scores, max(ks), queries.seen, queries.name)[0].cpu().numpy()
        if not len(queries.keys):
            return
        values = user_metrics(ranks, offsets, ks, "against")
        number = np.diff(offsets)
        if self._covered is not None:
            assert self._catalogue is not None
            for k, row in zip(ks, self._covered, strict=True):
                row[lists[:, :k]] = True
            values |= list_metrics(lists, self._catalogue, ks)
        places = half_places(ranks, offsets, "against")
        groups = groups_of_users(queries.history)
        self.users = _sum(self.users, Sums.of(values, places, number, groups))
        by_chance = user_metrics(ranks, offsets, ks, "random")
        places = half_places(ranks, offsets, "random")
        self.expected = _sum(self.expected, Sums.of(by_chance, places, number, groups[:, :1]))
        if self._catalogue is not None:
            self._add_targets(ranks, queries, self._catalogue)
        if self._per_user is not None:
            self._per_user.add(queries, ranks, values)

    def _rank(self, scores: Scores, queries: Queries) -> Ranks:
        if self._protocol.candidates != "all":
            return rank_among_sampled(scores, queries, self._protocol)
        return rank_targets(scores, queries.targets, queries.offsets, queries.seen, queries.name)

    def _add_targets(self, ranks: Ranks, queries: Queries, catalogue: Catalogue) -> None:
        """Count every target as if it were its user's only one."""
        targets, owners = queries.targets.numpy(), np.diff(queries.offsets.numpy())
        each = np.arange(len(targets) + 1)
        groups = groups_of_targets(targets, np.repeat(queries.known, owners), catalogue)
        values = user_metrics(ranks, each, self._protocol.ks, "against")
        places = half_places(ranks, each, "against")
        counted = Sums.of(values, places, np.ones_like(places), groups)
        self.targets = _sum(self.targets, counted)

    def merge(self, world: World) -> None:
        """Add up over all workers, exactly; afterwards all hold the same."""
        sums = self.users, self.expected, self.targets
        skipped = self.without_target, self.without_history
        for other, (without_target, without_history) in _others(world, (sums, skipped)):
            self.users = _sum(self.users, other[0])
            self.expected = _sum(self.expected, other[1])
            self.targets = _sum(self.targets, other[2])
            self.without_target += without_target
            self.without_history += without_history
        if self._covered is not None:
            bits = np.bitwise_or.reduce(world.gather(np.packbits(self._covered)))
            covered = np.unpackbits(bits, count=self._covered.size).astype(bool)
            self._covered = covered.reshape(self._covered.shape)

    def coverage(self) -> dict[str, float]:
        """The share of the catalogue in anybody's list, by length; empty where not asked for."""
        if self._covered is None:
            return {}
        size = self._covered.shape[1] - 1
        return {
            f"coverage@{k}": int(row[1:].sum()) / size
            for k, row in zip(self._protocol.ks, self._covered, strict=True)
        }

    def groups(self) -> dict[str, dict[str, Group]]:
        """Means of every group that somebody is in."""
        found: dict[str, dict[str, Group]] = {}
        for sums, names in ((self.users, USER_GROUPS), (self.targets, TARGET_GROUPS)):
            for place, (kind, name) in enumerate(names):
                if sums is None or kind == EVERYBODY or not sums.rows[place]:
                    continue
                found.setdefault(kind, {})[name] = Group(
                    users=int(sums.rows[place]) if sums is self.users else None,
                    targets=sums.targets(place),
                    metrics=sums.means(place),
                    half_widths=sums.half_widths(place),
                )
        return found


def _sum(a: Sums | None, b: Sums | None) -> Sums | None:
    return a if b is None else b if a is None else a + b


def _others(world: World, mine: tuple) -> list:
    return [kept for rank, kept in enumerate(world.gather(mine)) if rank != world.rank]
