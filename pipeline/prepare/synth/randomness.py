"""Random numbers as functions of what they are for, in the integers that C++ has too.

A draw is 64 bits, the SplitMix64 finaliser (Steele et al. 2014) of a seed and a counter. What is
made of it is made by integer multiplication, so a compiled kernel and numpy agree to the last bit.
"""

import numpy as np

from pipeline.stream.order import mix

GAMMA = np.uint64(0x9E3779B97F4A7C15)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def draws(seed: np.ndarray | int, counter: np.ndarray) -> np.ndarray:
    """64 random bits for each of ``counter`` under each of ``seed``, u64."""
    with np.errstate(over="ignore"):
        return mix(np.asarray(seed, np.uint64) + counter.astype(np.uint64) * GAMMA)


def scaled(bits: np.ndarray, size: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """A number below ``size`` (at most 2**32), u64, and 64 more bits that are independent of it.

    They are the upper and the lower half of the product of the two.
    """
    size = np.asarray(size, np.uint64)
    with np.errstate(over="ignore"):
        carry = ((bits & _LOW) * size) >> _HALF
        return ((bits >> _HALF) * size + carry) >> _HALF, bits * size


def pick(sums: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Indices by their weights, whose running sums are ``sums``, u32; see ``running_sums``."""
    found: np.ndarray = np.searchsorted(sums, scaled(bits, int(sums[-1]))[0], side="right")
    return found


def running_sums(weights: np.ndarray) -> np.ndarray:
    """Running sums of weights as integers, u32; the last is the largest there is."""
    sums = np.cumsum(weights)
    scaled_sums: np.ndarray = np.floor(sums / sums[-1] * (2**32 - 1))
    return scaled_sums.astype(np.uint32)


def alias_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's table for weights that do not rise: (below, other), u32 ``[N]`` each.

    A draw takes one of ``N`` columns and 32 more bits: it stands for its column where those are
    less than ``below``, and for ``other`` where not. Weights above the mean give what they have
    above it, in their order, to those below it, in theirs; so who gives to whom follows from two
    running sums. A giver that is used up takes from the next.
    """
    size = len(weights)
    share = weights * (size / weights.sum())
    givers = min(int(np.count_nonzero(share > 1)), size - 1)  # equal ones may all round up
    keep, other = np.minimum(share, 1.0), np.arange(size)
    if givers:
        given, taken = np.cumsum(share[:givers] - 1), np.cumsum(1 - share[givers:])
        before = np.concatenate([[0.0], taken[:-1]])
        other[givers:] = np.minimum(np.searchsorted(given, before, side="right"), givers - 1)
        # The column that a giver runs dry in takes more of it than it has left.
        dry = np.searchsorted(taken, given, side="left")[:-1]
        dry = np.minimum(dry, len(taken) - 1)
        keep[: givers - 1] = np.clip(1 - (taken[dry] - given[:-1]), 0, 1)
        other[: givers - 1] = np.arange(1, givers)
    below = np.minimum(keep * 2**32, 2**32 - 1).astype(np.uint32)
    return below, other.astype(np.uint32)
