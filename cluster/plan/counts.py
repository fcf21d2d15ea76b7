"""What a plan has to know of the data: a data set's counts, or a user's word for them."""

from dataclasses import dataclass

import numpy as np

from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset, File, Lineage, Manifest, Split, open_dataset

_MEMBER_EVENTS = 1_000_000
_EVENT_BYTES = 4
"""Of an event in a member's head: its item, u32."""


@dataclass(frozen=True)
class Counts:
    """The data as a plan sees it.

    dataset: of the user's own counts it has only an index. length: of a segment, on average.
    popularity: shares of the training events, float64 ``[n]``, each once, and how many items have
    it, int64 ``[n]``; or None where nobody knows them.
    """

    dataset: Dataset
    length: int
    popularity: tuple[np.ndarray, np.ndarray] | None

    @property
    def items(self) -> int:
        """Items of the catalogue."""
        return self.dataset.manifest.catalogue_size

    @property
    def bytes(self) -> int:
        """What an epoch reads: the heads of all members."""
        return int(self.dataset.head.sum())

    @property
    def token_bytes(self) -> float:
        """What is read for a token."""
        return self.bytes / max(1, int(self.dataset.train_events.sum()))

    def distinct(self, events: float, uniform: float = 0.0) -> float:
        """Items expected among so many events drawn by popularity and so many drawn evenly.

        Where popularity is not known both are even, which is the most there can be.
        """
        if self.popularity is None:
            expected = -np.expm1((events + uniform) * np.log1p(-1 / (self.items + 1)))
            return float((self.items + 1) * expected)
        share, items = self.popularity
        missed = -(events * share + uniform / (self.items + 1))
        return float(-(items * np.expm1(missed)).sum())


def counts_of(recipe: Recipe, events: int | None, items: int | None) -> Counts:
    """From the recipe's data set, or from both numbers where they are given."""
    window = recipe.data.window.length
    if events is not None and items is not None:
        return Counts(_described(recipe, events, items), window, None)
    if events is not None or items is not None:
        raise LonghaulError("--events and --items go together: give both or neither")
    try:
        dataset = open_dataset(recipe.data.path)
    except LonghaulError as error:
        raise LonghaulError(f"{error}; or say --events and --items") from error
    train, users = int(dataset.train_events.sum()), int(dataset.users.sum())
    drawn = dataset.read_items().column("train_events").to_numpy()
    times, number = np.unique(drawn, return_counts=True)
    length = max(1, min(window, round(train / max(1, users))))
    return Counts(dataset, length, (times / max(1, drawn.sum()), number))


def _described(recipe: Recipe, events: int, items: int) -> Dataset:
    """A data set of so many events, all of them to train on, in members of a usual size."""
    members = max(1, -(-events // _MEMBER_EVENTS))
    each = np.diff(np.arange(members + 1) * events // members)
    users = np.maximum(1, each // recipe.data.window.length)
    head = each * _EVENT_BYTES + users * 24  # offsets, and where validation and test begin
    start = np.cumsum(head) - head
    none = File(path="", bytes=0, sha256="")
    manifest = Manifest(
        schema_version=3,
        catalogue_size=items,
        users=int(users.sum()),
        events=events,
        members=members,
        user_type="int64",
        item_type="int64",
        timestamp_unit=None,
        actions=None,
        split=Split(kind="leave_one_out"),
        counts={},
        index=none,
        items=none,
        user_keys=[],
        shards=[],
        lineage=Lineage(inputs=[], options={}, version=""),
    )
    names = [""] * members
    return Dataset(
        url=recipe.data.path,
        manifest=manifest,
        shard=names,
        member=names,
        start=start,
        stop=start + head,
        sha256=names,
        head=head,
        head_sha256=names,
        users=users,
        events=each,
        train_events=each,
    )
