"""Attention through the C++ kernel (attention.cpp)."""

from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from models.ops import extension

MOST_UNEVEN = 2  # the kernel is twice as quick as torch's or quicker


def serves(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor) -> bool:
    """Whether these are on a CPU, in heads of whole registers, and can be shared out.

    A thread has a head of a segment to itself: few long segments would leave others idle.
    """
    if not extension.serves(q, k, v) or q.shape[2] % _grain():
        return False
    work = offsets.diff().double().square()
    share = float(work.sum()) * q.shape[1] / torch.get_num_threads()
    return float(work.max()) <= MOST_UNEVEN * share


@cache
def _grain() -> int:
    return extension.call("attention_grain")


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, causal: bool
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(hd)) v within each segment; all arithmetic is fp32."""
    y: torch.Tensor = Attention.apply(*map(_in_rows, (q, k, v)), offsets.contiguous(), causal)
    return y


def _in_rows(x: torch.Tensor) -> torch.Tensor:
    """With a token's heads side by side; tokens may lie apart, as where q, k, v are one product."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def _empty_like(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


class Attention(torch.autograd.Function):
    """Keeps its operands as they are, and the log of every sum of weights."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        offsets: torch.Tensor,
        causal: bool,
    ) -> torch.Tensor:
        tokens, heads, width = q.shape
        wide = q.float(), k.float(), v.float()
        y, logs = _empty_like(q), q.new_empty(tokens, heads, dtype=torch.float32)
        ctx.shape = (len(offsets) - 1, heads, width, int(causal))
        strides = [x.stride(0) for x in wide]
        extension.call("attention_forward", *wide, *strides, offsets, *ctx.shape, y, logs)
        ctx.save_for_backward(q, k, v, offsets, logs)
        return y.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, offsets, logs = ctx.saved_tensors
        wide = q.float(), k.float(), v.float()
        gradients = [_empty_like(x) for x in wide]
        arguments = [dy.float().contiguous(), *wide, *(x.stride(0) for x in wide), offsets]
        extension.call("attention_backward", *arguments, *ctx.shape, logs, *gradients)
        dq, dk, dv = (found.to(x.dtype) for found, x in zip(gradients, (q, k, v), strict=True))
        return dq, dk, dv, None, None
