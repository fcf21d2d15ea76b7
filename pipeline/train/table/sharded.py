"""A sharded item table in training: its rows, their optimizer, a step's gradients."""

from collections.abc import Callable, Iterator

import torch

from models.item_table import FetchedRows
from models.ops import row_sums
from pipeline.config import OptimizerConfig
from pipeline.stream.order import seed_of
from pipeline.train.engine import Piece, Read
from pipeline.train.table.config import TableConfig
from pipeline.train.table.dealt import BIASES, BLOCK_ROWS, VECTORS, DealtTable
from pipeline.train.table.rules import Rule, State
from pipeline.world import World

Start = Callable[[torch.Tensor, torch.Generator], None]
"""Fills vectors ``[n, d]`` of new items."""


class ShardedTable(DealtTable):
    """The rows that fall to this rank. All ranks call alike.

    averaged: by what the engine divides the sum of the ranks' gradients, for which its losses are
    scaled up; what arrives here is divided by as much.
    """

    def __init__(
        self,
        fetched: FetchedRows,
        config: TableConfig,
        optimizer: OptimizerConfig,
        world: World,
        *,
        seed: int,
        start: Start,
        averaged: int = 1,
    ) -> None:
        super().__init__(
            fetched, world, torch.bfloat16 if config.storage == "bf16" else torch.float32
        )
        self._config, self._seed = config, seed
        self._averaged, self._updates = averaged, 0
        self._rule = Rule(config.optimizer, optimizer, decayed=fetched.d)
        shapes = self._rule.shapes(*self.rows.shape)
        self._state: State = {k: torch.zeros(s, device=world.device) for k, s in shapes.items()}
        self._sparse: list[tuple[torch.Tensor, torch.Tensor]] = []  # places and their gradients
        self._dense: torch.Tensor | None = None  # of all rows, where the loss touches all
        self._touched = self._nothing()
        self._begin_rows(start)

    def _begin_rows(self, start: Start) -> None:
        for low, part in started_rows(self.held, self._fetched.d, self._seed, start):
            here = slice(low - self.held.start, low - self.held.start + len(part))
            self.rows[here, : self._fetched.d] = part

    def collect(self) -> None:
        """Bring the gradients of the rows fetched to those who keep them."""
        assert self._exchange is not None, "fetch() comes before collect()"
        gradient = self._leaf.grad
        if gradient is None:  # nothing was asked here; others may have been
            gradient = torch.zeros_like(self._leaf)
        received = self._exchange.give_back(gradient / self._averaged)
        self._sparse.append((self._exchange.asked, received))
        self._exchange, self._leaf = None, self._leaf.detach()[:0]

    def add_gradient(self, first: int, gradient: torch.Tensor, scale: float) -> None:
        """Add ``scale * gradient`` ``[n, w]`` of the rows kept here from number ``first`` on."""
        if self._dense is None:
            self._dense = torch.zeros(self.rows.shape, device=self.rows.device)
        part = self._dense[first : first + len(gradient)]
        part.add_(gradient, alpha=scale / self._averaged)

    def squared_norm(self) -> float:
        """Of the step's gradient of all rows on all ranks."""
        places, gradients = self._sum_up()
        if self._dense is not None:
            self._dense.index_add_(0, places, gradients)  # no place twice: in any order the same
            self._touched = self._nothing()
            gradients = self._dense
        else:
            self._touched = places, gradients
        mine = sum(float(part.square().sum()) for part in gradients.split(BLOCK_ROWS))
        return self._world.sum_float(mine)

    def _sum_up(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients that came for the same row as one; rows in their order."""
        if not self._sparse:
            return self._nothing()
        asked = torch.cat([places for places, _ in self._sparse])
        places, number = torch.unique(asked, return_inverse=True)
        # Not index_add_, which on a GPU adds in the order of chance: resume would not be exact.
        gradients = torch.cat([gradients for _, gradients in self._sparse])
        self._sparse = []
        return places, row_sums(gradients, number, len(places))

    def _nothing(self) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.zeros(0, dtype=torch.int64, device=self.rows.device)
        return places, torch.zeros(0, self.rows.shape[1], device=self.rows.device)

    def update(self, lr: float, factor: float) -> None:
        """Apply the gradient that ``squared_norm`` summed up, times ``factor``."""
        self._updates += 1
        noise = torch.Generator(self.rows.device)
        noise.manual_seed(seed_of("rounding", self._seed, self._updates, self._world.rank))
        rate = lr * self._config.lr_factor
        for places, gradients in self._blocks():
            rows, state = self.rows[places], {k: t[places] for k, t in self._state.items()}
            if rows.dtype == torch.float32:
                self._rule.update(rows, state, gradients.mul_(factor), rate)
            else:
                wide = rows.float()
                self._rule.update(wide, state, gradients.mul_(factor), rate)
                rows = _round_at_random(wide, noise)
            if not isinstance(places, slice) or rows.dtype != torch.float32:
                self.rows[places] = rows
            if not isinstance(places, slice):
                for kind, tensor in state.items():
                    self._state[kind][places] = tensor
        if self._dense is not None:
            self._dense.zero_()
        self._touched = self._nothing()

    def _blocks(self) -> Iterator[tuple[slice | torch.Tensor, torch.Tensor]]:
        """What is updated, some rows at a time: which (a slice is a view), and their gradients."""
        touched, gradients = self._touched
        if self._dense is None and not self._rule.all_rows:
            yield from zip(touched.split(BLOCK_ROWS), gradients.split(BLOCK_ROWS), strict=True)
            return
        for first in range(0, len(self.rows), BLOCK_ROWS):
            block = slice(first, min(first + BLOCK_ROWS, len(self.rows)))
            if self._dense is not None:
                yield block, self._dense[block]
                continue
            low, high = torch.searchsorted(touched, touched.new_tensor([block.start, block.stop]))
            whole = gradients.new_zeros(block.stop - block.start, gradients.shape[1])
            whole[touched[low:high] - first] = gradients[low:high]
            yield block, whole

    def shapes(self) -> dict[str, torch.Size]:
        """Whole shapes by parameter name, and by ``KIND/NAME`` where a kind has another shape."""
        count, d = self.deal.rows, self._fetched.d
        found = {VECTORS: torch.Size([count, d])}
        if self._fetched.biased:
            found[BIASES] = torch.Size([count])
        for kind, tensor in self._state.items():
            if tensor.dim() == 1:
                found[f"{kind}/{VECTORS}"] = torch.Size([count])
        return found

    def export(self) -> list[tuple[Piece, torch.Tensor]]:
        """Copies (fp32, CPU) of all that is kept here, as pieces of whole tensors."""
        return [
            (piece, _copy(part)) for piece, part in self.pieces(self.held.start, self.held.stop)
        ]

    def kinds(self) -> dict[str, torch.Tensor]:
        """See ``DealtTable``."""
        return {"weight": self.rows, **self._state}

    def resume(self, read: Read, updates: int) -> None:
        """Take over what is kept here of a state after so many updates."""
        self._updates = updates
        self.restore(read)


def started_rows(
    rows: range, d: int, seed: int, start: Start
) -> Iterator[tuple[int, torch.Tensor]]:
    """New vectors of ``rows``, some at a time: the number of the first, and fp32 ``[n, d]``.

    The same ones whatever range is asked for: each block of the table has a seed of its own.
    """
    for number in range(rows.start // BLOCK_ROWS, -(-rows.stop // BLOCK_ROWS)):
        generator = torch.Generator().manual_seed(seed_of("rows", seed, number))
        block = torch.empty(BLOCK_ROWS, d)
        start(block, generator)
        first = number * BLOCK_ROWS
        low, high = max(first, rows.start), min(first + BLOCK_ROWS, rows.stop)
        yield low, block[low - first : high - first]


def _round_at_random(rows: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """fp32 to bf16, up or down with chances that keep the mean: steps below half a unit add up.

    A bf16 is the upper half of an fp32: noise below it carries over as often as it should.
    """
    bits = rows.view(torch.int32)
    drawn = torch.randint(0, 1 << 16, bits.shape, generator=noise, device=rows.device)
    return ((bits + drawn.int()) & -(1 << 16)).view(torch.float32).bfloat16()


def _copy(part: torch.Tensor) -> torch.Tensor:
    whole = torch.contiguous_format
    return part.detach().to("cpu", torch.float32, copy=True, memory_format=whole).view(-1)
