"""The recurrence through the C++ kernel (recurrence.cpp)."""

from typing import Any

import torch

from models.ops import extension


def recurrence(
    u: torch.Tensor, decay: torch.Tensor, reset: torch.Tensor, initial: torch.Tensor | None
) -> torch.Tensor:
    """h for fp32 or bf16 u; the parameters are taken in fp32."""
    state = None if initial is None else initial.float()
    h: torch.Tensor = Recurrence.apply(u, decay.float(), reset, state)
    return h


class Recurrence(torch.autograd.Function):
    """Keeps h, from which the backward pass needs nothing else of the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        u: torch.Tensor,
        decay: torch.Tensor,
        reset: torch.Tensor,
        initial: torch.Tensor | None,
    ) -> torch.Tensor:
        u, decay, reset = u.contiguous(), decay.contiguous(), reset.contiguous()
        initial = None if initial is None else initial.contiguous()
        h = torch.empty_like(u)
        tokens, channels = u.shape[0], u.shape[1] // 2
        code = extension.DTYPE_CODES[u.dtype]
        extension.call("recurrence_forward", code, u, decay, reset, initial, h, tokens, channels)
        ctx.save_for_backward(h, decay, reset, initial)
        return h

    @staticmethod
    def backward(ctx: Any, dh: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        h, decay, reset, initial = ctx.saved_tensors
        dh = dh.contiguous()
        du = torch.empty_like(h)
        ddecay = torch.zeros(decay.shape, dtype=torch.float64)
        dinitial = None if initial is None else torch.zeros_like(initial)
        tokens, channels = h.shape[0], h.shape[1] // 2
        code = extension.DTYPE_CODES[h.dtype]
        arguments = (dh, h, decay, reset, initial, du, ddecay, dinitial, tokens, channels)
        extension.call("recurrence_backward", code, *arguments)
        return du, ddecay.float(), None, dinitial
