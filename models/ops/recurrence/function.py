"""The recurrence with its gradient, over whatever kernels make the two passes."""

from typing import Any, Protocol

import torch


class Passes(Protocol):
    """A module with the kernels; tensors are contiguous, the parameters and the state fp32."""

    def forward(
        self,
        u: torch.Tensor,
        decay: torch.Tensor,
        reset: torch.Tensor,
        initial: torch.Tensor | None,
    ) -> torch.Tensor:
        """h."""

    def backward(
        self,
        dh: torch.Tensor,
        h: torch.Tensor,
        decay: torch.Tensor,
        reset: torch.Tensor,
        initial: torch.Tensor | None,
        dinitial: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients of u and decay; ``dinitial``, zeros beforehand, takes the state's."""


def recurrence(
    passes: Passes,
    u: torch.Tensor,
    decay: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None,
) -> torch.Tensor:
    """h for fp32 or bf16 u; the parameters are taken in fp32."""
    state = None if initial is None else initial.float()
    h: torch.Tensor = Recurrence.apply(passes, u, decay.float(), reset, state)
    return h


class Recurrence(torch.autograd.Function):
    """Keeps h, from which the backward pass needs nothing else of the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        passes: Passes,
        u: torch.Tensor,
        decay: torch.Tensor,
        reset: torch.Tensor,
        initial: torch.Tensor | None,
    ) -> torch.Tensor:
        u, decay, reset = u.contiguous(), decay.contiguous(), reset.contiguous()
        initial = None if initial is None else initial.contiguous()
        h = passes.forward(u, decay, reset, initial)
        ctx.passes = passes
        ctx.save_for_backward(h, decay, reset, initial)
        return h

    @staticmethod
    def backward(ctx: Any, dh: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        h, decay, reset, initial = ctx.saved_tensors
        dinitial = None if initial is None else torch.zeros_like(initial)
        du, ddecay = ctx.passes.backward(dh.contiguous(), h, decay, reset, initial, dinitial)
        return None, du, ddecay, None, dinitial
