"""Segments cut out of events in several arrays: inputs, and what follows each of them."""

from collections.abc import Sequence

import numpy as np

from models.ops import extension
from models.ops.cutting import cpu, reference


class Events:
    """Arrays of uint32 that are cut where they lie, without being joined."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = list(arrays)
        assert all(array.dtype == np.uint32 and array.flags.c_contiguous for array in arrays)
        address = [array.__array_interface__["data"][0] for array in self.arrays]
        self.address = np.array(address, dtype=np.int64)

    def cut(
        self, array: np.ndarray, begin: np.ndarray, length: np.ndarray, bos: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items and targets, int64 ``[T]`` each, of ``S`` segments, back to back.

        array: int64 ``[S]``, which of the arrays a segment is cut from. begin: int64 ``[S]``, the
        place of its first target there. length: int64 ``[S]``, its number of targets; ``T`` is
        their sum. The input of a target is the event before it; where bos, bool ``[S]``, the
        segment's first input is 0, the empty history. All are contiguous; a place outside of an
        array is not checked for.
        """
        cut = cpu.cut if extension.available() else reference.cut
        return cut(self, array, begin, length, bos)
