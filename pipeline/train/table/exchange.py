"""The way of rows between the ranks that keep them and the rank that trains with them."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline.world import World


@dataclass(frozen=True)
class Deal:
    """Which rank keeps which of ``rows`` rows: as even ranges as there are, in order."""

    rows: int
    world_size: int

    def begin(self, rank: int) -> int:
        """The first row of a rank; of the rank past the last one, the number of rows."""
        return self.rows * rank // self.world_size

    def held(self, rank: int) -> range:
        """The rows of a rank."""
        return range(self.begin(rank), self.begin(rank + 1))


class Exchange:
    """One micro-batch's rows, asked for by all ranks at once and, later, their gradients back.

    ids: int64 ``[m]``, sorted, no row twice: what this rank wants. ``asked``: int64 ``[a]``, what
    all ranks, this one too, want of the rows kept here, counted from the first one.
    """

    def __init__(self, ids: torch.Tensor, deal: Deal, world: World) -> None:
        self._world = world
        first = deal.begin(world.rank)
        if world.world_size == 1:
            self.asked = ids
            return
        begins = [deal.begin(rank) for rank in range(world.world_size + 1)]
        bounds = torch.searchsorted(ids, torch.tensor(begins, device=ids.device))
        wanted = bounds.diff()
        given = torch.empty_like(wanted)
        dist.all_to_all_single(given, wanted)
        self._wanted, self._given = wanted.tolist(), given.tolist()
        asked = ids.new_empty(sum(self._given))
        dist.all_to_all_single(asked, ids, self._given, self._wanted)
        self.asked = asked - first

    def fetch(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows asked for, ``[m, w]``; rows: those kept here, ``[held, w]``."""
        found = rows[self.asked]
        if self._world.world_size == 1:
            return found
        fetched = rows.new_empty(sum(self._wanted), rows.shape[1])
        dist.all_to_all_single(fetched, found, self._wanted, self._given)
        return fetched

    def give_back(self, gradients: torch.Tensor) -> torch.Tensor:
        """Gradients ``[m, w]`` of the rows fetched, to who keeps them: ``[a, w]``, by ``asked``."""
        if self._world.world_size == 1:
            return gradients
        received = gradients.new_empty(len(self.asked), gradients.shape[1])
        dist.all_to_all_single(received, gradients.contiguous(), self._given, self._wanted)
        return received
