"""LayerNorm(residual + dropout(x)) through Triton kernels, one forward and one backward.

A program takes some whole rows. As on the CPU nothing is kept but the inputs, one mask bit an
element and two numbers a row. The gradients of weight and bias are summed by program, over tiles
of rows that follow from the number of rows alone, and then in order: the same bits every time.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from models.ops.masks import Bits
from models.ops.masks import triton as masks

TILE = 2048  # elements that a program holds at once, where a row is no longer
PROGRAMS = 1056  # of a backward pass, at most: eight for each processor of an H100


def add_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    p: float,
    seed: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """LayerNorm(residual + dropout(x)); no dropout where seed is None."""
    mask = masks.draw_bits(x, p, seed)
    y: torch.Tensor = AddNorm.apply(x, residual, weight.float(), bias.float(), eps, mask)
    return y


class AddNorm(torch.autograd.Function):
    """The fused forward and backward passes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        mask: Bits,
    ) -> torch.Tensor:
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        residual = None if residual is None else residual.contiguous()
        y = torch.empty_like(x)
        rows, sizes = launch(x)
        statistics = x.new_empty(rows, 2, dtype=torch.float32)
        if rows:
            grid = (triton.cdiv(rows, sizes["ROWS"]),)
            tensors = (x, residual, weight, bias, mask.bits, y, statistics)
            forward_kernel[grid](*tensors, mask.scale, eps, rows, x.shape[-1], **sizes)
        ctx.save_for_backward(x, residual, weight, statistics, mask.bits)
        ctx.scale = mask.scale
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, residual, weight, statistics, bits = ctx.saved_tensors
        dx = torch.empty_like(x)
        dresidual = None if residual is None else torch.empty_like(x)
        rows, sizes = launch(x)
        if rows == 0:
            return dx, dresidual, torch.zeros_like(weight), torch.zeros_like(weight), None, None
        programs = min(PROGRAMS, triton.cdiv(rows, sizes["ROWS"]))
        sums = weight.new_empty(programs, 2, len(weight))
        tensors = (dy.contiguous(), x, residual, weight, statistics, bits, dx, dresidual, sums)
        backward_kernel[programs,](*tensors, ctx.scale, rows, x.shape[-1], **sizes)
        dweight, dbias = sums.sum(0)
        return dx, dresidual, dweight, dbias, None, None


def launch(x: torch.Tensor) -> tuple[int, dict[str, int]]:
    """The number of rows, and the tile of a program."""
    width = triton.next_power_of_2(x.shape[-1])
    sizes = {"ROWS": max(1, TILE // width), "WIDTH": width, "num_warps": 4 if width <= TILE else 8}
    return x.numel() // x.shape[-1], sizes


@triton.jit
def load_sum(
    x: tl.tensor,
    residual: tl.tensor,
    bits: tl.tensor,
    scale: tl.tensor,
    at: tl.tensor,
    inside: tl.tensor,
) -> tl.tensor:
    """residual + dropout(x) of a tile, fp32."""
    total = masks.apply(tl.load(x + at, inside, 0.0).to(tl.float32), bits, scale, at, inside)
    if residual is not None:
        total += tl.load(residual + at, inside, 0.0).to(tl.float32)
    return total


@triton.jit
def forward_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    bits: tl.tensor,
    y: tl.tensor,
    statistics: tl.tensor,
    scale: tl.tensor,
    eps: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    known = column < width
    at = row[:, None] * width + column[None, :]
    inside = (row < rows)[:, None] & known[None, :]
    total = load_sum(x, residual, bits, scale, at, inside)
    mean = tl.sum(total, 1) / width
    centred = tl.where(inside, total - mean[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    factor = tl.load(weight + column, known, 0.0)
    added = tl.load(bias + column, known, 0.0)
    tl.store(y + at, centred * inverse[:, None] * factor[None, :] + added[None, :], inside)
    tl.store(statistics + 2 * row, mean, row < rows)
    tl.store(statistics + 2 * row + 1, inverse, row < rows)


@triton.jit
def backward_kernel(
    dy: tl.tensor,
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    statistics: tl.tensor,
    bits: tl.tensor,
    dx: tl.tensor,
    dresidual: tl.tensor,
    sums: tl.tensor,
    scale: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    column = tl.arange(0, WIDTH)
    known = column < width
    factor = tl.load(weight + column, known, 0.0)
    of_weight = tl.zeros((WIDTH,), tl.float32)
    of_bias = tl.zeros((WIDTH,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        at = row[:, None] * width + column[None, :]
        inside = (row < rows)[:, None] & known[None, :]
        total = load_sum(x, residual, bits, scale, at, inside)
        mean = tl.load(statistics + 2 * row, row < rows, 0.0)
        inverse = tl.load(statistics + 2 * row + 1, row < rows, 0.0)
        normed = tl.where(inside, (total - mean[:, None]) * inverse[:, None], 0.0)
        gradient = tl.load(dy + at, inside, 0.0).to(tl.float32)
        of_weight += tl.sum(gradient * normed, 0)
        of_bias += tl.sum(gradient, 0)
        gradient *= factor[None, :]
        along = tl.sum(gradient * normed, 1) / width
        level = tl.sum(gradient, 1) / width
        gradient = (gradient - level[:, None] - normed * along[:, None]) * inverse[:, None]
        if dresidual is not None:
            tl.store(dresidual + at, gradient, inside)
        tl.store(dx + at, masks.apply(gradient, bits, scale, at, inside), inside)
    to = sums + tl.program_id(0) * 2 * width + column
    tl.store(to, of_weight, known)
    tl.store(to + width, of_bias, known)
