"""The users' histories as every contender is given them: one file of arrays, known to numpy."""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Histories(NamedTuple):
    """items int64 ``[events]`` from 1 on, offsets int64 ``[users + 1]``, how many items there are.

    The last item of every user is the one that validation asks for.
    """

    items: np.ndarray
    offsets: np.ndarray
    catalogue_size: int

    def write(self, path: Path) -> None:
        """Keep them in an ``.npz``."""
        np.savez(path, items=self.items, offsets=self.offsets, size=self.catalogue_size)

    @classmethod
    def read(cls, path: str) -> "Histories":
        """What ``write`` kept."""
        kept = np.load(path)
        return cls(kept["items"], kept["offsets"], int(kept["size"]))

    def training(self) -> list[np.ndarray]:
        """Every user's items but the last."""
        ends = self.offsets[1:] - 1
        pairs = zip(self.offsets[:-1], ends, strict=True)
        return [self.items[begin:end] for begin, end in pairs]

    def targets(self) -> np.ndarray:
        """The last item of every user."""
        targets: np.ndarray = self.items[self.offsets[1:] - 1]
        return targets


def padded(histories: list[np.ndarray], length: int) -> np.ndarray:
    """The newest ``length`` items of each, zeros before them: ``[users, length]``."""
    rows = np.zeros((len(histories), length), dtype=np.int64)
    for row, history in zip(rows, histories, strict=True):
        newest = history[-length:]
        row[length - len(newest) :] = newest
    return rows
