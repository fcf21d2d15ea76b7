"""What every model must beat: the same popular items for everybody.

Compare with the recent popularity on a split in time: it beats trained models there (eSASRec's
benchmark on ML-20M: NDCG@10 .167 for the last 7 days' popularity, .119 for SASRec with BCE).
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from models.batch import PackedBatch
from pipeline.errors import LonghaulError
from pipeline.evaluate.scores import DenseScores
from pipeline.manifest import RECENT_DAYS, RECENT_EVENTS, Dataset
from pipeline.member import TRAIN_END, Member
from pipeline.prepare.options import PER_SECOND
from pipeline.world import World, current_world

_A_DAY = {unit: 86_400 * ticks for unit, ticks in PER_SECOND.items()}


class PopularityScorer:
    """Scores an item by how often it was counted, whoever asks.

    counts: int64 ``[V + 1]``, by item; entry 0 is no item.
    """

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts
        # float32 holds integers up to 2^24 exactly: beyond, different counts could tie.
        exact = np.float32 if counts.max() <= 1 << 24 else np.float64
        self._scores = torch.from_numpy(counts.astype(exact))

    def score(self, batch: PackedBatch) -> DenseScores:
        """See ``evaluate.Scorer``."""
        return DenseScores(self._scores.expand(len(batch.offsets) - 1, -1))


def popularity(dataset: Dataset, world: World | None = None) -> PopularityScorer:
    """Counts of all events in the users' training parts, as ``prepare`` found them.

    A set without such counts is passed over once. world: as in ``evaluate``; its processes share
    the members. Raises LonghaulError, on all of them, where a member is damaged.
    """
    counted = _counted(dataset, "train_events")
    if counted is not None:
        return counted
    return _count(dataset, world or current_world(), lambda member: until_train_end(member) > 0)


def recent_popularity(
    dataset: Dataset,
    days: float = RECENT_DAYS,
    events: int = RECENT_EVENTS,
    world: World | None = None,
) -> PopularityScorer:
    """Counts of the newest events in the users' training parts.

    With timestamps: those of the last ``days`` days of training. Training ends where the split in
    time says; without such a split at the newest training event, which takes a pass of its own to
    find. Without timestamps: the last ``events`` events of each user's training part.
    Otherwise as ``popularity``, where it is asked for what ``prepare`` counts.
    """
    if (days, events) == (RECENT_DAYS, RECENT_EVENTS):
        counted = _counted(dataset, "recent_events")
        if counted is not None:
            return counted
    world = world or current_world()
    unit = dataset.manifest.timestamp_unit
    if unit is None:
        return _count(
            dataset, world, lambda member: _is_between(until_train_end(member), 1, events)
        )
    end = dataset.manifest.split.train_end
    if end is None:
        end = 1 + _newest(dataset, world)
    begin = end - round(days * _A_DAY[unit])

    def recent(member: Member) -> np.ndarray:
        assert member.timestamps is not None, "the manifest names a unit of timestamps"
        chosen: np.ndarray = (until_train_end(member) > 0) & (member.timestamps >= begin)
        return chosen

    return _count(dataset, world, recent)


def _counted(dataset: Dataset, column: str) -> PopularityScorer | None:
    """The counts in the map of items, where it has them."""
    items = dataset.read_items()
    if not {"item", column} <= set(items.column_names):
        return None
    return PopularityScorer(np.concatenate([[0], items.column(column).to_numpy()]))


def _is_between(values: np.ndarray, low: int, high: int) -> np.ndarray:
    inside: np.ndarray = (values >= low) & (values <= high)
    return inside


def until_train_end(member: Member) -> np.ndarray:
    """For each event, i64 ``[T]``: 1 for the last in a user's training part, 2 for the one before,
    ...; 0 and less past it."""
    train_end = member.offsets[:-1].astype(np.int64) + member.splits[:, TRAIN_END]
    ends: np.ndarray = np.repeat(train_end, member.lengths())
    return ends - np.arange(len(member.items))


def _count(
    dataset: Dataset, world: World, chosen: Callable[[Member], np.ndarray]
) -> PopularityScorer:
    """Counts of the events that ``chosen`` (a bool per event) picks, over all members."""
    catalogue = dataset.manifest.catalogue_size
    counts = np.zeros(catalogue + 1, np.int64)
    for member in _share(dataset, world):
        counts += np.bincount(member.items[chosen(member)], minlength=catalogue + 1)
    return PopularityScorer(world.sum_integers(counts))


def _newest(dataset: Dataset, world: World) -> int:
    """The time of the newest training event."""
    newest = -(1 << 62)
    for member in _share(dataset, world):
        assert member.timestamps is not None, "the manifest names a unit of timestamps"
        times = member.timestamps[until_train_end(member) > 0]
        newest = max(newest, int(times.max(initial=newest)))
    return int(max(world.gather(newest)))


def _share(dataset: Dataset, world: World) -> Iterator[Member]:
    """The members that fall to this worker; at the end all workers agree that none failed."""
    failure: LonghaulError | None = None
    try:
        for member in range(world.rank, len(dataset), world.world_size):
            yield dataset.read(member)
    except LonghaulError as error:
        failure = error
    world.agree(failure)
