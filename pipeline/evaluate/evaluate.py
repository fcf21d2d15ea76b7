"""Evaluation of a scorer on a data set: every user of a split, once, on any number of workers."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol as Interface

import numpy as np
import torch

from models.batch import PackedBatch
from pipeline.errors import LonghaulError
from pipeline.evaluate.baselines import popularity
from pipeline.evaluate.blocks import nobody, plan_blocks, read_block
from pipeline.evaluate.catalogue import Catalogue
from pipeline.evaluate.per_user import PerUserWriter, plan_parts
from pipeline.evaluate.protocol import Protocol, Result
from pipeline.evaluate.scores import Scores, TableScores
from pipeline.evaluate.tally import Tally
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
        batch = with_gap(batch) if self._masks else batch
        return TableScores(
            last_hidden(self._model.encode, batch, self._table.device), self._table, self._bias
        )


def last_hidden(
    encode: Callable[[PackedBatch], torch.Tensor], batch: PackedBatch, device: torch.device
) -> torch.Tensor:
    """The hidden state at the end of each segment, fp32 ``[S, d]``."""
    last = []
    for part in _parts(batch):
        here = part.to(device)
        last.append(encode(here)[here.offsets[1:] - 1].float())
    return torch.cat(last)


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


def with_gap(batch: PackedBatch) -> PackedBatch:
    """Token 0 after the last event of every segment."""
    segments = len(batch.offsets) - 1
    offsets = batch.offsets + torch.arange(segments + 1)
    events = torch.ones(int(offsets[-1]), dtype=torch.bool)
    events[offsets[1:] - 1] = False
    items = torch.zeros(len(events), dtype=torch.int64)
    items[events] = batch.items
    return PackedBatch(items, offsets, torch.zeros_like(items))


def evaluate(
    dataset: Dataset,
    scorer: Scorer,
    protocol: Protocol,
    world: World | None = None,
    progress: Callable[[int, int], None] | None = None,
    catalogue: Catalogue | None = None,
    per_user: PerUserWriter | None = None,
) -> Result:
    """Score every user who has an event in the protocol's split, each exactly once.

    The result is the same to the last bit on any number of workers, as long as the scorer gives
    the same scores for the same batch (on a CPU: with the same number of threads). Metrics are
    defined in ``metrics.user_metrics`` and ``catalogue.list_metrics``; coverage@k is the share of
    the catalogue that is in the ``top_k`` list of any scored user, where seen items are left out
    even if they are a target.

    world: the processes that share the work, all of which call this; by default the process group
    of torch.distributed, if there is one. progress: called with users done and users in all, both
    of this worker. catalogue: given, targets are grouped by popularity too; lists need one, and
    make it if they must. per_user: keeps what is found for each user, for its caller to commit.
    Returns the same result (but for its seconds) on all workers.

    Raises LonghaulError, on all workers, where a score is not finite (with the user's key), a
    member of the data set is damaged, or nobody can be scored.
    """
    began = time.perf_counter()
    world = world or current_world()
    if catalogue is None and protocol.lists:
        catalogue = Catalogue(popularity(dataset, world).counts)
    tally = Tally(protocol, catalogue, per_user)
    blocks = plan_blocks(dataset, protocol)
    parts = [[block] for block in blocks] if per_user is None else plan_parts(blocks)
    deals = [parts[rank :: world.world_size] for rank in range(world.world_size)]
    longest = max(sum(block.batches for part in deal for block in part) for deal in deals)
    mine = deals[world.rank]
    done, everybody = 0, sum(block.users for part in mine for block in part)
    calls = 0
    failure: LonghaulError | None = None
    with torch.no_grad():
        try:
            for number, part in enumerate(mine):
                for block in part:
                    batches, without_target, without_history = read_block(dataset, block, protocol)
                    tally.without_target += without_target
                    tally.without_history += without_history
                    for queries in batches:
                        calls += 1
                        scores = scorer.score(queries.batch)
                        if len(queries.keys) or scores.together:
                            tally.add(scores, queries)
                    done += block.users
                    if progress is not None:
                        progress(done, everybody)
                if per_user is not None:
                    per_user.end_part(world.rank + number * world.world_size)
        except LonghaulError as error:
            failure = error
        for _ in range(longest - calls):
            queries = nobody(protocol)
            scores = scorer.score(queries.batch)
            if scores.together:
                tally.add(scores, queries)
    world.agree(failure)
    tally.merge(world)
    if tally.users is None or tally.expected is None:
        raise LonghaulError(
            f"nobody can be scored: none of the {tally.without_target} users looked at in "
            f"{dataset.url} has an event in the {protocol.split} part"
        )
    return Result(
        ranking=protocol.ranking,
        metrics=tally.users.means(0) | tally.coverage(),
        half_widths=tally.users.half_widths(0),
        expected=tally.expected.means(0),
        users=int(tally.users.rows[0]),
        targets=tally.users.targets(0),
        skipped={f"no event in the {protocol.split} part": tally.without_target},
        without_history=tally.without_history,
        groups=tally.groups(),
        protocol=protocol,
        data=dataset.fingerprint,
        catalogue_size=dataset.manifest.catalogue_size,
        seconds=time.perf_counter() - began,
    )
