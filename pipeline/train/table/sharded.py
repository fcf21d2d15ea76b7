"""This rank's rows of a sharded item table: their values, their optimizer, a step's gradients.

A row of ``w`` columns is the item's vector and, where the model has biases, its bias behind it.
Checkpoints know them as ``item_embedding.weight`` and ``item_bias``, like those of a dense table.
"""

from collections.abc import Callable, Iterator

import torch

from models.item_table import FetchedRows
from models.ops import row_sums
from pipeline.config import OptimizerConfig
from pipeline.stream.order import seed_of
from pipeline.train.engine import Piece, Read
from pipeline.train.table.config import TableConfig
from pipeline.train.table.exchange import Deal, Exchange
from pipeline.train.table.rules import Rule, State
from pipeline.world import World

VECTORS, BIASES = "item_embedding.weight", "item_bias"
_BLOCK_ROWS = 1 << 16  # rows that are begun, read and updated at once: bounds what is held beside

Start = Callable[[torch.Tensor, torch.Generator], None]
"""Fills vectors ``[n, d]`` of new items."""


class ShardedTable:
    """The rows that fall to this rank. All ranks call alike.

    averaged: by what the engine divides the sum of the ranks' gradients, for which its losses are
    scaled up; what arrives here is divided by as much.
    """

    def __init__(
        self,
        fetched: FetchedRows,
        catalogue_size: int,
        config: TableConfig,
        optimizer: OptimizerConfig,
        world: World,
        *,
        seed: int,
        start: Start,
        averaged: int = 1,
    ) -> None:
        self.deal = Deal(catalogue_size + 1, world.world_size)
        self.held = self.deal.held(world.rank)
        self.bytes_moved = 0
        self._world, self._fetched, self._config, self._seed = world, fetched, config, seed
        self._averaged, self._updates = averaged, 0
        self._rule = Rule(config.optimizer, optimizer, decayed=fetched.d)
        kept, width, device = len(self.held), fetched.width, world.device
        dtype = torch.bfloat16 if config.storage == "bf16" else torch.float32
        self.rows = torch.zeros(kept, width, dtype=dtype, device=device)
        shapes = self._rule.shapes(kept, width)
        self._state: State = {k: torch.zeros(s, device=device) for k, s in shapes.items()}
        self._exchange: Exchange | None = None
        self._leaf = torch.zeros(0, width)
        self._sparse: list[tuple[torch.Tensor, torch.Tensor]] = []  # places and their gradients
        self._dense: torch.Tensor | None = None  # of all rows, where the loss touches all
        self._touched = self._nothing()
        self._begin_rows(start)

    @property
    def vectors(self) -> int:
        """Columns of a row that are the item's vector."""
        return self._fetched.d

    def _begin_rows(self, start: Start) -> None:
        """The same rows at any world size: each block has a seed of its own."""
        for number in range(self.held.start // _BLOCK_ROWS, -(-self.held.stop // _BLOCK_ROWS)):
            generator = torch.Generator().manual_seed(seed_of("rows", self._seed, number))
            block = torch.empty(_BLOCK_ROWS, self._fetched.d)
            start(block, generator)
            first = number * _BLOCK_ROWS
            low, high = max(first, self.held.start), min(first + _BLOCK_ROWS, self.held.stop)
            part = block[low - first : high - first]
            self.rows[low - self.held.start : high - self.held.start, : self._fetched.d] = part

    def fetch(self, items: torch.Tensor, training: bool) -> None:
        """Have the rows of ``items`` (int64 ``[n]``) at hand in the model until the next fetch.

        Without any, the model finds zeros for item 0: what a dead micro-batch looks up is touched
        by nobody.
        """
        ids = torch.unique(items.to(self._world.device))
        self._exchange = Exchange(ids, self.deal, self._world)
        self._leaf = self._exchange.fetch(self.rows).float().requires_grad_(training)
        if len(ids):
            self._fetched.hold(ids, self._leaf)
        else:
            self._fetched.hold(ids.new_zeros(1), self._leaf.new_zeros(1, self._leaf.shape[1]))
        if training:
            size = self.rows.element_size() * self.rows.shape[1]
            self.bytes_moved += self._exchange.bytes_moved(size)

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
        mine = sum(float(part.square().sum()) for part in gradients.split(_BLOCK_ROWS))
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
            yield from zip(touched.split(_BLOCK_ROWS), gradients.split(_BLOCK_ROWS), strict=True)
            return
        for first in range(0, len(self.rows), _BLOCK_ROWS):
            block = slice(first, min(first + _BLOCK_ROWS, len(self.rows)))
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
            (piece, part.detach().float().cpu().contiguous().view(-1).clone())
            for piece, part in self._pieces(self.held.start, self.held.stop)
        ]

    def restore(self, read: Read, updates: int) -> None:
        """Take over what is kept here of a state after so many updates."""
        self._updates = updates
        for first in range(self.held.start, self.held.stop, _BLOCK_ROWS):
            for piece, part in self._pieces(first, min(first + _BLOCK_ROWS, self.held.stop)):
                part.copy_(read(piece.tensor, piece.begin, piece.end).view(part.shape))

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[Piece, torch.Tensor]]:
        """Rows ``begin`` up to ``end`` of everything, as views into what is kept."""
        d = self._fetched.d
        here = slice(begin - self.held.start, end - self.held.start)
        for kind, tensor in {"weight": self.rows, **self._state}.items():
            if tensor.dim() == 1:
                yield Piece(f"{kind}/{VECTORS}", begin, end), tensor[here]
                continue
            yield Piece(f"{kind}/{VECTORS}", begin * d, end * d), tensor[here, :d]
            if self._fetched.biased:
                yield Piece(f"{kind}/{BIASES}", begin, end), tensor[here, d]


def _round_at_random(rows: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """fp32 to bf16, up or down with chances that keep the mean: steps below half a unit add up.

    A bf16 is the upper half of an fp32: noise below it carries over as often as it should.
    """
    bits = rows.view(torch.int32)
    drawn = torch.randint(0, 1 << 16, bits.shape, generator=noise, device=rows.device)
    return ((bits + drawn.int()) & -(1 << 16)).view(torch.float32).bfloat16()
