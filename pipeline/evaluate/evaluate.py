"""Evaluation of a scorer on a data set: every user of a split, once, on any number of workers."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol as Interface

import numpy as np
import torch

from models.batch import PackedBatch
from pipeline.errors import LonghaulError
from pipeline.evaluate.blocks import NOBODY, Queries, plan_blocks, read_block
from pipeline.evaluate.metrics import MetricSums
from pipeline.evaluate.protocol import Protocol, Result
from pipeline.evaluate.ranking import Ranks, rank_targets, top_k
from pipeline.evaluate.scores import Scores, TableScores
from pipeline.manifest import Dataset
from pipeline.world import World, current_world

_ENCODED_TOKENS = 16_384  # at once: what lies between a batch of users and the memory of a layer


class Scorer(Interface):
    """Whatever can be evaluated."""

    def score(self, batch: PackedBatch) -> Scores:
        """Scores of all items as the next one, a query per segment; called without gradients.

        The batch is on the CPU; targets are 0. A segment of the one token 0 is an empty history.
        Called equally often on all workers.
        """


class Model(Interface):
    """A model in evaluation mode that scores by hidden states and an item table."""

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states ``[T, d]``; the last one of a segment is used."""

    def item_scores(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Table ``[V + 1, d]`` and bias ``[V + 1]`` (or None), on the model's device."""


class ModelScorer:
    """Scores of a model as it is now: asks for the item table once, when it is made.

    masks: whether the model was trained to fill gaps: then token 0 stands for the next item, at the
    end of the history, and its hidden state is the one that counts.
    """

    def __init__(self, model: Model, masks: bool = False) -> None:
        self._model = model
        self._masks = masks
        self._table, self._bias = model.item_scores()

    def score(self, batch: PackedBatch) -> TableScores:
        """See ``Scorer``. Large batches are encoded in parts, whole segments in each."""
        batch = _with_gap(batch) if self._masks else batch
        last = []
        for part in _parts(batch):
            here = part.to(self._table.device)
            last.append(self._model.encode(here)[here.offsets[1:] - 1].float())
        return TableScores(torch.cat(last), self._table, self._bias)


def _parts(batch: PackedBatch) -> Iterator[PackedBatch]:
    """Consecutive segments of a batch, up to ``_ENCODED_TOKENS`` where they are several."""
    offsets = batch.offsets.numpy()
    low = 0
    while low < len(offsets) - 1:
        fit = int(np.searchsorted(offsets, offsets[low] + _ENCODED_TOKENS, side="right")) - 1
        high = max(low + 1, fit)
        tokens = slice(offsets[low], offsets[high])
        bounds = batch.offsets[low : high + 1] - offsets[low]
        yield PackedBatch(batch.items[tokens], bounds, batch.targets[tokens])
        low = high


def _with_gap(batch: PackedBatch) -> PackedBatch:
    """Token 0 after the last event of every segment."""
    segments = len(batch.offsets) - 1
    offsets = batch.offsets + torch.arange(segments + 1)
    events = torch.ones(int(offsets[-1]), dtype=torch.bool)
    events[offsets[1:] - 1] = False
    items = torch.zeros(len(events), dtype=torch.int64)
    items[events] = batch.items
    return PackedBatch(items, offsets, torch.zeros_like(items))


class _Tally:
    """What one worker has counted, and later all of them together."""

    def __init__(self, protocol: Protocol, catalogue_size: int) -> None:
        self._ks = protocol.ks
        nobody = Ranks(np.empty(0, np.int64), np.empty(0, np.int64)), np.zeros(1, np.int64)
        self.against = MetricSums.of(*nobody, self._ks, "against")
        self.random = MetricSums.of(*nobody, self._ks, "random")
        self.without_target = self.without_history = 0
        # By list length and item: whether it has been in a list.
        self.covered: np.ndarray | None = None
        if protocol.coverage:
            self.covered = np.zeros((len(self._ks), catalogue_size + 1), dtype=bool)

    def add(self, scores: Scores, queries: Queries) -> None:
        """Rank the targets of one batch, and count."""
        ranks = rank_targets(scores, queries.targets, queries.offsets, queries.seen, queries.name)
        offsets = queries.offsets.numpy()
        self.against += MetricSums.of(ranks, offsets, self._ks, "against")
        self.random += MetricSums.of(ranks, offsets, self._ks, "random")
        if self.covered is not None:
            lists = top_k(scores, max(self._ks), queries.seen, queries.name)[0].cpu().numpy()
            for k, row in zip(self._ks, self.covered, strict=True):
                row[lists[:, :k]] = True

    def merge(self, world: World) -> None:
        """Add up over all workers, exactly; afterwards all hold the same."""
        counts = self.against, self.random, self.without_target, self.without_history
        against, random, without_target, without_history = zip(*world.gather(counts), strict=True)
        self.against = sum(against[1:], start=against[0])
        self.random = sum(random[1:], start=random[0])
        self.without_target, self.without_history = sum(without_target), sum(without_history)
        if self.covered is not None:
            bits = np.bitwise_or.reduce(world.gather(np.packbits(self.covered)))
            covered = np.unpackbits(bits, count=self.covered.size).astype(bool)
            self.covered = covered.reshape(self.covered.shape)


def evaluate(
    dataset: Dataset,
    scorer: Scorer,
    protocol: Protocol,
    world: World | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Score every user who has an event in the protocol's split, each exactly once.

    The result is the same to the last bit on any number of workers, as long as the scorer gives
    the same scores for the same batch (on a CPU: with the same number of threads). Metrics are
    defined in ``metrics.user_metrics``; coverage@k is the share of the catalogue that is in the
    ``top_k`` list of any scored user, where seen items are left out even if they are a target.

    world: the processes that share the work, all of which call this; by default the process group
    of torch.distributed, if there is one. progress: called with users done and users in all, both
    of this worker. Returns the same result (but for its seconds) on all workers.

    Raises LonghaulError, on all workers, where a score is not finite (with the user's key), a
    member of the data set is damaged, or nobody can be scored.
    """
    began = time.perf_counter()
    world = world or current_world()
    tally = _Tally(protocol, dataset.manifest.catalogue_size)
    blocks = plan_blocks(dataset, protocol)
    deals = [blocks[rank :: world.world_size] for rank in range(world.world_size)]
    mine, longest = deals[world.rank], max(sum(b.batches for b in deal) for deal in deals)
    done, everybody = 0, sum(block.users for block in mine)
    calls = 0
    failure: LonghaulError | None = None
    with torch.no_grad():
        try:
            for block in mine:
                batches, without_target, without_history = read_block(dataset, block, protocol)
                tally.without_target += without_target
                tally.without_history += without_history
                for queries in batches:
                    calls += 1
                    scores = scorer.score(queries.batch)
                    if len(queries.keys):
                        tally.add(scores, queries)
                done += block.users
                if progress is not None:
                    progress(done, everybody)
        except LonghaulError as error:
            failure = error
        for _ in range(longest - calls):
            scorer.score(NOBODY)
    world.agree(failure)
    tally.merge(world)
    if tally.against.users == 0:
        raise LonghaulError(
            f"nobody can be scored: none of the {tally.without_target} users looked at in "
            f"{dataset.url} has an event in the {protocol.split} part"
        )
    metrics = tally.against.means()
    if tally.covered is not None:
        for k, row in zip(protocol.ks, tally.covered, strict=True):
            metrics[f"coverage@{k}"] = int(row[1:].sum()) / dataset.manifest.catalogue_size
    return Result(
        metrics=metrics,
        expected=tally.random.means(),
        users=tally.against.users,
        targets=tally.against.targets,
        skipped={f"no event in the {protocol.split} part": tally.without_target},
        without_history=tally.without_history,
        protocol=protocol,
        data=dataset.fingerprint,
        catalogue_size=dataset.manifest.catalogue_size,
        seconds=time.perf_counter() - began,
    )
