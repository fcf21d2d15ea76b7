"""Exact sums over users, by group, and from them means with their 95 % intervals.

Values and their squares are summed as integers, in units of 2^-52 and 2^-104. So sums, means and
intervals are the same to the last bit in whatever order and on however many workers they were
formed, and a variance is never lost in the difference of two large numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np

_UNIT = 1 << 52  # a value times this is rounded to an integer: below 1 an error below 2^-53
_HALF = 29  # bits; integers are summed in two halves, so values are below 2^(2 * 29 - 52) = 64
_LOW = (1 << _HALF) - 1
Z = 1.959963984540054  # the normal distribution's 97.5 % point: half of a 95 % interval


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over rows (users, or targets one by one) that add up: ``a + b`` is exactly both.

    names: of ``M`` metrics. rows: Python integers ``[G]``, one a group. first: ``[G, M + 3]``, the
    sums of the metrics in units of 2^-52, then of the rows' ranks in half places, of their
    targets, and of both together; second: the sums of their squares.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(
        cls,
        values: Mapping[str, np.ndarray],
        places: np.ndarray,
        targets: np.ndarray,
        groups: np.ndarray,
    ) -> "Sums":
        """The sums of some rows.

        values: by metric, float64 ``[R]`` in [0, 64). places: int64 ``[R]``, the sum of the ranks
        of a row's targets, in half places. targets: int64 ``[R]``, how many those are. groups: bool
        ``[R, G]``, the groups that a row is in.
        """
        units = [np.rint(value * _UNIT).astype(np.int64) for value in values.values()]
        columns = np.stack([*units, places, targets, places + targets], axis=1)
        high, low = columns >> _HALF, columns & _LOW
        squares = high * high, high * low, low * low  # each below 2^58
        parts = [high, low]
        for square in squares:
            parts += [square >> _HALF, square & _LOW]
        # All below 2^29: in float64 the sums of 2^24 of them are exact, in whatever order.
        pieces = np.concatenate(parts, axis=1).astype(np.float64)
        summed = (groups.T.astype(np.float64) @ pieces).astype(np.int64).astype(object)
        top, bottom, *halves = np.split(summed, 8, axis=1)
        both = [(halves[i] << _HALF) + halves[i + 1] for i in (0, 2, 4)]
        return cls(
            names=tuple(values),
            rows=groups.sum(0, dtype=np.int64).astype(object),
            first=(top << _HALF) + bottom,
            second=(both[0] << 2 * _HALF) + (both[1] << _HALF + 1) + both[2],
        )

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.names,
            self.rows + other.rows,
            self.first + other.first,
            self.second + other.second,
        )

    def targets(self, group: int) -> int:
        """How many targets the rows of a group have."""
        return int(self.first[group, -2])

    def means(self, group: int) -> dict[str, float]:
        """Means over a group's rows, of which there must be one; ``mean_rank`` over targets."""
        rows, first = int(self.rows[group]), self.first[group].tolist()
        means = {name: first[i] / (rows * _UNIT) for i, name in enumerate(self.names)}
        return means | {"mean_rank": first[-3] / (2 * first[-2])}

    def half_widths(self, group: int) -> dict[str, float]:
        """Half of the 95 % interval of each mean; nothing for a single row.

        The normal approximation of the mean over rows drawn apart. ``mean_rank`` is a ratio of two
        such means, its variance that of ``rank sum - mean_rank * targets`` (Cochran 1977, 6.4).
        """
        rows = int(self.rows[group])
        if rows < 2:
            return {}
        first, second = self.first[group].tolist(), self.second[group].tolist()
        widths = {}
        for i, name in enumerate(self.names):
            spread = rows * second[i] - first[i] ** 2  # rows * (rows - 1) * variance, exactly
            widths[name] = Z * sqrt(spread / (rows**2 * (rows - 1))) / _UNIT
        places, targets = first[-3], first[-2]
        products = (second[-1] - second[-3] - second[-2]) // 2
        spread = second[-3] * targets**2 - 2 * places * targets * products + places**2 * second[-2]
        widths["mean_rank"] = Z * sqrt(spread * rows / ((rows - 1) * targets**4)) / 2
        return widths
