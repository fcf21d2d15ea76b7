"""The full softmax over a sharded table: every rank scores all ranks' tokens against its rows.

The hidden states travel, the table does not. Scores are made a tile at a time, twice: once for the
log of the partition sum, once for the gradients (Narayanan et al. 2021, vocabulary-parallel loss).
"""

from typing import Any

import torch
import torch.distributed as dist

from models.base import SequentialModel
from models.batch import PackedBatch
from models.losses import Drawn, Loss
from pipeline.train.table.sharded import ShardedTable
from pipeline.world import World

_TILE_FLOATS = 8 << 20  # scores held at a time
_LEAST_ROWS = 64


class ShardedFullSoftmax(Loss):
    """Cross-entropy over the whole catalogue; all ranks call it at the same micro-batch."""

    def __init__(self, model: SequentialModel, table: ShardedTable, world: World) -> None:
        super().__init__(model)
        self._table, self._world = table, world

    def items(self, batch: PackedBatch, drawn: Drawn | None) -> torch.Tensor:
        """None: the classes' rows stay where they are."""
        return batch.items[:0]

    def forward(self, batch: PackedBatch, drawn: Drawn | None = None) -> torch.Tensor:
        """The SUM of the loss over this rank's targets, fp32 ``[]``."""
        hidden = self.model.encode(batch)
        asked = batch.target_mask
        targets = batch.targets[asked]
        with torch.autocast(hidden.device.type, enabled=False):
            total: torch.Tensor = _Loss.apply(
                hidden[asked].float(), targets, self._table, self._world
            )
        return total


class _Loss(torch.autograd.Function):
    """hidden ``[n, d]`` fp32 and targets ``[n]`` of this rank; the loss sum of its targets."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, table: ShardedTable, world: World
    ) -> torch.Tensor:
        counts = world.gather(len(hidden))
        everyone, wanted = _together(hidden, targets, counts, world)
        log_sum = everyone.new_full((len(everyone),), -torch.inf)
        for rows, biases, _ in _tiles(table, len(everyone)):
            scores = _scores(everyone, rows, biases)
            log_sum = torch.logaddexp(log_sum, torch.logsumexp(scores, dim=1))
        if world.world_size > 1:
            most = log_sum.clone()
            dist.all_reduce(most, dist.ReduceOp.MAX)
            share = (log_sum - most).exp()
            dist.all_reduce(share)
            log_sum = most + share.log()
        here = (wanted >= table.held.start) & (wanted < table.held.stop)
        row = table.rows[wanted[here] - table.held.start].float()
        d = everyone.shape[1]
        reached = everyone.new_zeros(len(everyone))
        reached[here] = (everyone[here] * row[:, :d]).sum(1)
        if row.shape[1] > d:
            reached[here] += row[:, d]
        if world.world_size > 1:
            dist.all_reduce(reached)
        begin = sum(counts[: world.rank])
        mine = slice(begin, begin + len(hidden))
        ctx.save_for_backward(everyone, wanted, log_sum)
        ctx.table, ctx.world, ctx.mine = table, world, mine
        return (log_sum[mine] - reached[mine]).sum(dtype=torch.float64).float()

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        everyone, wanted, log_sum = ctx.saved_tensors
        table: ShardedTable = ctx.table
        factor, d = float(scale), everyone.shape[1]
        gradient = torch.zeros_like(everyone)
        place = wanted - table.held.start
        for rows, biases, first in _tiles(table, len(everyone)):
            share = (_scores(everyone, rows, biases) - log_sum[:, None]).exp_()
            inside = ((place >= first) & (place < first + len(rows))).nonzero().squeeze(1)
            share[inside, place[inside] - first] -= 1
            gradient.addmm_(share, rows)
            told = everyone.new_empty(len(rows), table.rows.shape[1])
            torch.mm(share.T, everyone, out=told[:, :d])
            if biases is not None:
                told[:, d] = share.sum(0)
            table.add_gradient(first, told, factor)
        if ctx.world.world_size > 1:
            dist.all_reduce(gradient)
        return gradient[ctx.mine] * factor, None, None, None


def _together(
    hidden: torch.Tensor, targets: torch.Tensor, counts: list[int], world: World
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of all ranks, by rank."""
    if world.world_size == 1:
        return hidden, targets
    most = max(counts)
    states, wanted = hidden.new_zeros(most, hidden.shape[1]), targets.new_zeros(most)
    states[: len(hidden)], wanted[: len(targets)] = hidden, targets
    all_states = [torch.empty_like(states) for _ in counts]
    all_wanted = [torch.empty_like(wanted) for _ in counts]
    dist.all_gather(all_states, states)
    dist.all_gather(all_wanted, wanted)
    parts = list(zip(all_states, all_wanted, counts, strict=True))
    return torch.cat([s[:n] for s, _, n in parts]), torch.cat([w[:n] for _, w, n in parts])


def _tiles(table: ShardedTable, tokens: int) -> Any:
    """Vectors fp32 ``[n, d]``, biases ``[n]`` or None, and the number of the first row."""
    size = tile_rows(tokens)
    d = table.vectors
    for first in range(0, len(table.rows), size):
        rows = table.rows[first : first + size].float()
        yield rows[:, :d].contiguous(), rows[:, d] if rows.shape[1] > d else None, first


def tile_rows(tokens: int) -> int:
    """Rows whose scores are made at a time, against the tokens of all ranks."""
    return max(_LEAST_ROWS, _TILE_FLOATS // max(1, tokens))


def _scores(hidden: torch.Tensor, rows: torch.Tensor, biases: torch.Tensor | None) -> torch.Tensor:
    if biases is None:
        return hidden @ rows.T
    return torch.addmm(biases, hidden, rows.T)
