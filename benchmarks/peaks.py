"""What this machine's cores can do at best: matrix products and copies."""

import time
from collections.abc import Callable

import torch

from models.ops.dense import wide
from models.ops.precision import cpu_multiplies_bf16

SIDE = 2048


def best_products(seconds: float = 2.0) -> dict[str, float]:
    """FLOP/s of the best product of two square matrices on torch's threads, by torch's library or
    by oneDNN: of "fp32", and of "bf16" where the processor multiplies it."""
    a = torch.rand(SIDE, SIDE)
    narrow = a.bfloat16()
    ways = {"fp32": [lambda: a @ a, lambda: wide.product(a, a, None)]}
    if cpu_multiplies_bf16():
        ways["bf16"] = [lambda: narrow @ narrow]
    return {
        precision: 2 * SIDE**3 / min(best_seconds(way, seconds) for way in found)
        for precision, found in ways.items()
    }


def best_copies(seconds: float = 1.0) -> float:
    """Bytes/s that torch's threads read and write."""
    much = torch.rand(1 << 26)
    to = torch.empty_like(much)
    return 2 * much.nbytes / best_seconds(lambda: to.copy_(much), seconds)


def best_seconds(act: Callable[[], object], seconds: float) -> float:
    """Of one call, the quickest within so many seconds and at least three."""
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return min(taken)
