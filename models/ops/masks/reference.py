"""Dropout masks in torch's integer arithmetic, on any device.

Philox 4x32-7 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: the fewest
rounds that pass BigCrush). Tile t is the elements 64t to 64t + 63. It draws the counters 8t to
8t + 7, each of four words of two 16-bit halves, the low half first. The 64 halves come in the
order (words 0 and 1 or 2 and 3, counters 0-3 or 4-7, word of the pair, counter of the four, half).
An element is kept when its 16 bits reach the threshold round(p * 65536).
"""

import torch

TILE = 64
ROUNDS = 7
LOW = 0xFFFFFFFF


def threshold(p: float) -> int:
    """The number of the 65536 values of an element's bits for which it is dropped."""
    return round(p * 65536)


def keep_scale(p: float) -> float:
    """What a kept element is multiplied by: one over the exact chance of being kept."""
    kept = 65536 - threshold(p)
    return 65536 / kept if kept else 0.0


def apply(x: torch.Tensor, p: float, seed: torch.Tensor | None) -> torch.Tensor:
    """x * mask / (1 - p); x where seed is None."""
    if seed is None:
        return x
    keep = random_bits(seed, x.numel()).view(x.shape) >= threshold(p)
    return x * keep * keep_scale(p)


def random_bits(seed: torch.Tensor, count: int) -> torch.Tensor:
    """int64 ``[count]`` in 0..65535, independent and uniform, on the device of the seed."""
    tiles = -(-count // TILE)
    counters = torch.arange(tiles * 8, device=seed.device)
    words = torch.stack(philox(counters, seed), dim=-1)  # [tiles * 8, 4]
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=-1)  # [tiles * 8, 4, 2]
    # From (tile, counter four, counter, word pair, word, half).
    by_element = halves.view(tiles, 2, 4, 2, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return by_element.flatten()[:count]


def philox(
    counters: torch.Tensor, key: torch.Tensor, rounds: int = ROUNDS
) -> tuple[torch.Tensor, ...]:
    """The four 32-bit words of each 64-bit counter, as int64."""
    a, b = counters & LOW, (counters >> 32) & LOW
    c, d = torch.zeros_like(a), torch.zeros_like(a)
    key0, key1 = key & LOW, (key >> 32) & LOW
    for _ in range(rounds):
        # The products wrap modulo 2^64 in int64, which keeps both halves exact.
        product0, product1 = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (
            ((product1 >> 32) & LOW) ^ b ^ key0,
            product1 & LOW,
            ((product0 >> 32) & LOW) ^ d ^ key1,
            product0 & LOW,
        )
        key0, key1 = (key0 + 0x9E3779B9) & LOW, (key1 + 0xBB67AE85) & LOW
    return a, b, c, d
