"""Dropout masks on a GPU: the bits of reference.py, drawn once by a kernel, one bit an element.

A forward and its backward pass read the same bits, which costs a sixteenth of reading a bf16 tensor
and, unlike drawing them in every kernel, no arithmetic: a counter serves eight elements, which lie
in other lanes. The seed stays on the device, so nothing waits for it.
"""

import torch
import triton
import triton.language as tl

from models.ops.masks import Bits, reference

TILES = 32  # a program: 256 counters


def draw_bits(x: torch.Tensor, p: float, seed: torch.Tensor | None) -> Bits:
    """The mask of x's elements."""
    if seed is None:
        return Bits(None, 1.0)
    programs = triton.cdiv(x.numel(), TILES * reference.TILE)
    bits = torch.empty(programs * TILES * reference.TILE // 8, dtype=torch.uint8, device=x.device)
    if programs:
        least = reference.threshold(p)
        draw_kernel[programs,](seed, bits, least, TILES=TILES, ROUNDS=reference.ROUNDS, num_warps=4)
    return Bits(bits, reference.keep_scale(p))


@triton.jit
def draw_kernel(
    seed: tl.tensor,
    bits: tl.tensor,
    least: tl.tensor,
    TILES: tl.constexpr,
    ROUNDS: tl.constexpr,
) -> None:
    """The bytes of some tiles: byte 4 * pair + 2 * group + word of a tile holds the halves of a
    word of the four counters of a group, see reference.py."""
    tile = tl.program_id(0).to(tl.int64) * TILES
    group = tl.arange(0, TILES * 2)  # two of a tile
    counter = tile * 8 + group[:, None] * 4 + tl.arange(0, 4)[None, :]
    a = (counter & 0xFFFFFFFF).to(tl.uint32)
    b = (counter >> 32).to(tl.uint32)
    c = tl.zeros_like(a)
    d = tl.zeros_like(a)
    key = tl.load(seed)
    key0 = (key & 0xFFFFFFFF).to(tl.uint32)
    key1 = ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    first = tl.full((1, 1), 0xD2511F53, tl.uint32)
    second = tl.full((1, 1), 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(ROUNDS):
        high0, low0 = tl.umulhi(a, first), a * first
        high1, low1 = tl.umulhi(c, second), c * second
        a, b, c, d = high1 ^ b ^ key0, low1, high0 ^ d ^ key1, low0
        key0 += tl.full((), 0x9E3779B9, tl.uint32)
        key1 += tl.full((), 0xBB67AE85, tl.uint32)
    at = bits + (tile + group // 2) * 8 + group % 2 * 2
    tl.store(at, reaches(a, least))
    tl.store(at + 1, reaches(b, least))
    tl.store(at + 4, reaches(c, least))
    tl.store(at + 5, reaches(d, least))


@triton.jit
def reaches(word: tl.tensor, least: tl.tensor) -> tl.tensor:
    """One byte of the halves of four words, set where a half reaches the threshold."""
    low = ((word & 0xFFFF).to(tl.int32) >= least).to(tl.int32)
    high = ((word >> 16).to(tl.int32) >= least).to(tl.int32)
    place = 2 * tl.arange(0, 4)[None, :]
    return tl.sum((low << place) + (high << (place + 1)), 1).to(tl.uint8)


@triton.jit
def apply(
    x: tl.tensor, bits: tl.tensor, scale: tl.tensor, element: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """fp32 elements of a tensor with these numbers, zeroed or scaled; bits: None to leave them."""
    if bits is not None:
        byte = tl.load(bits + (element >> 3), inside, 0).to(tl.int32)
        kept = (byte >> (element & 7).to(tl.int32)) & 1
        x = tl.where(kept == 1, x * scale, 0.0)
    return x
