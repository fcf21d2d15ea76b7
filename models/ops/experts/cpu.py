"""The experts through the C++ kernel (experts.cpp)."""

from typing import Any

import torch

from models.ops import extension
from models.ops.experts.reference import State


def experts(
    scores: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    state: State,
) -> torch.Tensor:
    """What each token reads, for fp32 or bf16 q, k and v; scores and the state are in fp32."""
    read: torch.Tensor = Experts.apply(scores.float(), q, k, v, *state, reset)
    return read


class Experts(torch.autograd.Function):
    """Keeps its inputs only: the backward pass finds the experts' states once more."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        """inputs: scores, q, k, v, z, K, V, reset."""
        inputs = tuple(tensor.contiguous() for tensor in inputs)
        scores, q = inputs[:2]
        read = torch.empty_like(q)
        code = extension.DTYPE_CODES[q.dtype]
        extension.call("experts_forward", code, *inputs, read, *scores.shape, q.shape[2])
        ctx.save_for_backward(*inputs)
        return read

    @staticmethod
    def backward(ctx: Any, dread: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs = ctx.saved_tensors
        scores, q = inputs[:2]
        gradients = [torch.empty_like(tensor) for tensor in inputs[:-1]]
        code = extension.DTYPE_CODES[q.dtype]
        sizes = (*scores.shape, q.shape[2])
        extension.call("experts_backward", code, *inputs, dread.contiguous(), *gradients, *sizes)
        return (*gradients, None)
