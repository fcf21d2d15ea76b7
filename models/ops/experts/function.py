"""The experts with their gradient, over whatever kernels make the two passes."""

from typing import Any, Protocol

import torch

from models.ops.experts.reference import State


class Passes(Protocol):
    """A module with the kernels. ``inputs``, contiguous: scores, q, k, v, z, K, V, reset."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What each token reads."""

    def backward(self, dread: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The gradients of all inputs but reset."""


def experts(
    passes: Passes,
    scores: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    state: State,
) -> torch.Tensor:
    """What each token reads, for fp32 or bf16 q, k and v; scores and the state are in fp32."""
    read: torch.Tensor = Experts.apply(passes, scores.float(), q, k, v, *state, reset)
    return read


class Experts(torch.autograd.Function):
    """Keeps its inputs only: the backward pass finds the experts' states once more."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, *inputs: torch.Tensor) -> torch.Tensor:
        inputs = tuple(tensor.contiguous() for tensor in inputs)
        ctx.passes = passes
        ctx.save_for_backward(*inputs)
        return passes.forward(*inputs)

    @staticmethod
    def backward(ctx: Any, dread: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.passes.backward(dread.contiguous(), *ctx.saved_tensors), None
