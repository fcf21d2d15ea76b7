"""What evaluation needs of its surroundings: a rank, a world size, and one collective."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch.distributed as dist

from pipeline.errors import LonghaulError

_CHUNK = 1 << 20  # numbers of an array that travel at once


class World(Protocol):
    """One of ``world_size`` processes; ``gather`` must be called by all of them."""

    rank: int
    world_size: int

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value``, in order of rank, on all ranks."""


@dataclass
class _ProcessGroup:
    rank: int
    world_size: int

    def gather(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered


def current_world() -> World:
    """The default process group of ``torch.distributed``, or a world of one without it."""
    if dist.is_available() and dist.is_initialized():
        return _ProcessGroup(dist.get_rank(), dist.get_world_size())
    return _ProcessGroup(0, 1)


def agree(world: World, failure: LonghaulError | None) -> None:
    """Raise on all ranks where any of them failed, so that none waits for the others."""
    told = world.gather(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for text in told:
        if text is not None:
            raise LonghaulError(text)


def total(world: World, counts: np.ndarray) -> np.ndarray:
    """Integer ``counts`` (``[n]``, the same n on all ranks) summed over the ranks."""
    summed = counts.copy()
    if world.world_size > 1:
        for first in range(0, len(counts), _CHUNK):
            part = slice(first, first + _CHUNK)
            summed[part] = np.sum(world.gather(counts[part]), axis=0, dtype=counts.dtype)
    return summed
