"""The convolution in Triton: a program takes a tile of tokens by channels.

Tokens see each other where they have the same segment number, which both directions check; a tile
needs nothing of another one, and the sums over tokens are written out one a tile, not added up
atomically, so that every run gives the same bits.
"""

from typing import Any

import torch
import triton
import triton.language as tl

ROWS = 64
COLUMNS = 64


def convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, reset: torch.Tensor
) -> torch.Tensor:
    """y for fp32 or bf16 x; the parameters are taken in fp32."""
    y: torch.Tensor = Convolution.apply(x, weight.float().T, bias.float(), reset.cumsum(0))
    return y


class Convolution(torch.autograd.Function):
    """Keeps the inputs. The weight is ``[w, d]`` here, and segment the number of each token's."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, segment: torch.Tensor
    ) -> torch.Tensor:
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        y = torch.empty_like(x)
        forward_kernel[grid(x)](x, weight, bias, segment, y, *x.shape, len(weight), ROWS, COLUMNS)
        ctx.save_for_backward(x, weight, segment)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, segment = ctx.saved_tensors
        dx, dy = torch.empty_like(x), dy.contiguous()
        width, channels = weight.shape
        # By block of tokens: what it adds to the gradient of each row of the weight, and the bias.
        sums = weight.new_empty(grid(x)[0], width + 1, channels)
        backward_kernel[grid(x)](dy, x, weight, segment, dx, sums, *x.shape, width, ROWS, COLUMNS)
        total = sums.sum(0)
        return dx, total[:width], total[width], None


def grid(x: torch.Tensor) -> tuple[int, int]:
    """The tiles of x along both axes."""
    return triton.cdiv(x.shape[0], ROWS), triton.cdiv(x.shape[1], COLUMNS)


@triton.jit
def forward_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    segment: tl.tensor,
    y: tl.tensor,
    tokens: tl.tensor,
    channels: tl.tensor,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """y of one tile."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    fits = columns < channels
    here = tl.load(segment + rows, mask=rows < tokens, other=-1)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for lag in tl.static_range(WIDTH):
        factor = tl.load(weight + (WIDTH - 1 - lag) * channels + columns, mask=fits, other=0.0)
        earlier = load_same(x, segment, here, rows - lag, columns, tokens, channels)
        total += factor[None, :] * earlier
    total += tl.load(bias + columns, mask=fits, other=0.0)[None, :]
    at = rows[:, None] * channels + columns[None, :]
    tl.store(y + at, total, mask=(rows < tokens)[:, None] & fits[None, :])


@triton.jit
def backward_kernel(
    dy: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    segment: tl.tensor,
    dx: tl.tensor,
    sums: tl.tensor,
    tokens: tl.tensor,
    channels: tl.tensor,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """dx of one tile, and what its tokens add to the gradients of the weight and the bias."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    fits = columns < channels
    here = tl.load(segment + rows, mask=rows < tokens, other=-1)
    gradient = load_same(dy, segment, here, rows, columns, tokens, channels)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    sums += tl.program_id(0).to(tl.int64) * (WIDTH + 1) * channels + columns
    for lag in tl.static_range(WIDTH):
        row = (WIDTH - 1 - lag) * channels
        factor = tl.load(weight + row + columns, mask=fits, other=0.0)
        later = load_same(dy, segment, here, rows + lag, columns, tokens, channels)
        total += factor[None, :] * later
        earlier = load_same(x, segment, here, rows - lag, columns, tokens, channels)
        tl.store(sums + row, tl.sum(gradient * earlier, 0), mask=fits)
    tl.store(sums + WIDTH * channels, tl.sum(gradient, 0), mask=fits)
    at = rows[:, None] * channels + columns[None, :]
    tl.store(dx + at, total, mask=(rows < tokens)[:, None] & fits[None, :])


@triton.jit
def load_same(
    x: tl.tensor,
    segment: tl.tensor,
    here: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    tokens: tl.tensor,
    channels: tl.tensor,
) -> tl.tensor:
    """These rows of x in fp32; zero where there is none or its segment is not the one of here."""
    exists = (rows >= 0) & (rows < tokens)
    same = exists & (tl.load(segment + rows, mask=exists, other=-2) == here)
    at = rows[:, None] * channels + columns[None, :]
    return tl.load(x + at, mask=same[:, None] & (columns < channels)[None, :], other=0.0).to(
        tl.float32
    )
