"""The order of training as a pure function: permutations, lanes, and who runs which lane.

Nothing here keeps state or depends on the number of workers, so any position in an epoch can be
found again at any world size. Permutations sort hashed indices instead of calling a library's
random generator: their order must not change with a library's version.
"""

import hashlib
import heapq

import numpy as np

from pipeline.manifest import Dataset


def mix(values: np.ndarray) -> np.ndarray:
    """The SplitMix64 finaliser (Steele et al. 2014), u64 in, u64 out, a bijection."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from integers and strings; other parts, another seed."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def permutation(n: int, seed: int) -> np.ndarray:
    """A permutation of ``0..n-1`` as i64 ``[n]`` that depends on ``n`` and ``seed`` alone."""
    index = np.arange(n, dtype=np.uint64)
    keys = mix(mix(index * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)) ^ np.uint64(seed))
    return np.argsort(keys, kind="stable")


def deal(dataset: Dataset, lanes: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The members of each lane in their order of this epoch, i64 arrays.

    The members are permuted by (seed, epoch, fingerprint); each goes to the lane with the fewest
    training events so far, the lowest lane among equals.
    """
    order = permutation(len(dataset), seed_of("members", seed, epoch, dataset.fingerprint))
    dealt: list[list[int]] = [[] for _ in range(lanes)]
    load = [(0, lane) for lane in range(lanes)]
    for member in order.tolist():
        events, lane = heapq.heappop(load)
        dealt[lane].append(member)
        heapq.heappush(load, (events + int(dataset.train_events[member]), lane))
    return [np.asarray(members, dtype=np.int64) for members in dealt]


def lanes_of(rank: int, world_size: int, lanes: int) -> range:
    """The lanes that ``rank`` runs; ranks share them out evenly, in order."""
    return range(rank * lanes // world_size, (rank + 1) * lanes // world_size)


def micro_steps(world_size: int, lanes: int) -> int:
    """Micro-batches that every rank runs a step: the most lanes any rank has."""
    return -(-lanes // world_size)
