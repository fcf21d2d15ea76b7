"""The running sum with its gradient, over whatever kernel makes a pass."""

from typing import Any, Protocol

import torch


class Pass(Protocol):
    """Sums from either end of every segment, in contiguous tensors.

    `initial` enters the segment that began before token 0, in a forward pass; `last`, zeros
    beforehand, takes what leaves it at token 0 in a backward pass.
    """

    def __call__(
        self,
        x: torch.Tensor,
        reset: torch.Tensor,
        initial: torch.Tensor | None = None,
        last: torch.Tensor | None = None,
        backwards: bool = False,
    ) -> torch.Tensor: ...


def prefix_sum(
    run: Pass, x: torch.Tensor, reset: torch.Tensor, initial: torch.Tensor | None
) -> torch.Tensor:
    """S for fp32 or bf16 x; the initial sum is taken in fp32."""
    state = None if initial is None else initial.float()
    sums: torch.Tensor = PrefixSum.apply(run, x, reset, state)
    return sums


class PrefixSum(torch.autograd.Function):
    """The gradient of a running sum is the running sum of the gradient, from the other end.

    The initial sum is fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, run: Pass, x: torch.Tensor, reset: torch.Tensor, initial: torch.Tensor | None
    ) -> torch.Tensor:
        reset = reset.contiguous()
        initial = None if initial is None else initial.contiguous()
        ctx.save_for_backward(reset)
        ctx.run, ctx.has_initial = run, initial is not None
        return run(x.contiguous(), reset, initial)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (reset,) = ctx.saved_tensors
        dinitial = None
        if ctx.has_initial:
            dinitial = torch.zeros(gradient.shape[1], device=gradient.device)
        dx = ctx.run(gradient.contiguous(), reset, last=dinitial, backwards=True)
        return None, dx, None, dinitial
