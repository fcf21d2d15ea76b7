"""Causal linear attention through the C++ kernel (linear_attention.cpp)."""

import torch

from models.ops import extension
from models.ops.linear_attention.function import LinearAttention


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None,
) -> torch.Tensor:
    """o for fp32 or bf16 operands; the initial state is taken in fp32."""
    state = None if initial is None else initial.float()
    o: torch.Tensor = LinearAttention.apply(run, q, k, v, reset, state)
    return o


def run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None = None,
    last: torch.Tensor | None = None,
    backwards: bool = False,
) -> torch.Tensor:
    """One pass of the kernel."""
    o = torch.empty_like(v)
    code = extension.DTYPE_CODES[v.dtype]
    tensors = (q, k, v, reset, initial, o, last)
    extension.call("linear_attention", code, backwards, *tensors, *q.shape, v.shape[2])
    return o
