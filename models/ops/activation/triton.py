"""dropout(gelu(x + bias)) through Triton kernels.

Kept are the inputs and one mask bit an element. The gradient of the bias is summed by program, over
tiles that follow from the shape alone, and then in order: the same bits every time.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from models.ops.masks import Bits
from models.ops.masks import triton as masks

ROWS = 16
MOST_COLUMNS = 128
PROGRAMS = 1056  # of a backward pass, about: eight for each processor of an H100


def gelu(x: torch.Tensor, bias: torch.Tensor, p: float, seed: torch.Tensor | None) -> torch.Tensor:
    """dropout(gelu(x + bias)); no dropout where seed is None."""
    y: torch.Tensor = Gelu.apply(x, bias.float(), masks.draw_bits(x, p, seed))
    return y


class Gelu(torch.autograd.Function):
    """The fused forward and backward passes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor, mask: Bits) -> torch.Tensor:
        x, bias = x.contiguous(), bias.contiguous()
        y = torch.empty_like(x)
        rows, columns, sizes = launch(x)
        if rows:
            grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, sizes["COLUMNS"]))
            forward_kernel[grid](x, bias, mask.bits, y, mask.scale, rows, columns, **sizes)
        ctx.save_for_backward(x, bias, mask.bits)
        ctx.scale = mask.scale
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, bias, bits = ctx.saved_tensors
        dx = torch.empty_like(x)
        rows, columns, sizes = launch(x)
        if rows == 0:
            return dx, torch.zeros_like(bias), None
        across = triton.cdiv(columns, sizes["COLUMNS"])
        grid = (min(triton.cdiv(rows, ROWS), triton.cdiv(PROGRAMS, across)), across)
        sums = bias.new_empty(grid[0], columns)
        tensors = (dy.contiguous(), x, bias, bits, dx, sums)
        backward_kernel[grid](*tensors, ctx.scale, rows, columns, **sizes)
        return dx, sums.sum(0), None


def launch(x: torch.Tensor) -> tuple[int, int, dict[str, int]]:
    """Rows and columns, and the tile of a program."""
    columns = x.shape[-1]
    block = min(MOST_COLUMNS, triton.next_power_of_2(columns))
    return x.numel() // columns, columns, {"ROWS": ROWS, "COLUMNS": block, "num_warps": 4}


@triton.jit
def forward_kernel(
    x: tl.tensor,
    bias: tl.tensor,
    bits: tl.tensor,
    y: tl.tensor,
    scale: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = row[:, None] * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    added = tl.load(bias + column, column < columns, 0.0)
    total = tl.load(x + at, inside, 0.0).to(tl.float32) + added[None, :]
    value = 0.5 * total * (1 + tl.erf(total * 0.7071067811865476))
    tl.store(y + at, masks.apply(value, bits, scale, at, inside), inside)


@triton.jit
def backward_kernel(
    dy: tl.tensor,
    x: tl.tensor,
    bias: tl.tensor,
    bits: tl.tensor,
    dx: tl.tensor,
    sums: tl.tensor,
    scale: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    known = column < columns
    added = tl.load(bias + column, known, 0.0)
    of_bias = tl.zeros((COLUMNS,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        at = row[:, None] * columns + column[None, :]
        inside = (row < rows)[:, None] & known[None, :]
        total = tl.load(x + at, inside, 0.0).to(tl.float32) + added[None, :]
        slope = 0.5 * (1 + tl.erf(total * 0.7071067811865476))
        slope += total * 0.3989422804014327 * tl.exp(-0.5 * total * total)
        gradient = tl.load(dy + at, inside, 0.0).to(tl.float32)
        gradient = masks.apply(gradient, bits, scale, at, inside) * slope
        of_bias += tl.sum(gradient, 0)
        tl.store(dx + at, gradient, inside)
    tl.store(sums + tl.program_id(0) * columns + column, of_bias, known)
