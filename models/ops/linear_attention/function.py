"""Causal linear attention with its gradients, over whatever kernel makes a pass."""

from typing import Any, Protocol

import torch


class Pass(Protocol):
    """Linear attention from either end of every segment, on contiguous tensors.

    `initial` enters the segment that began before token 0, in a forward pass; `last`, zeros
    beforehand, takes what leaves it at token 0 in a backward pass. Both are fp32.
    """

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        reset: torch.Tensor,
        initial: torch.Tensor | None = None,
        last: torch.Tensor | None = None,
        backwards: bool = False,
    ) -> torch.Tensor: ...


def attention(
    run: Pass,
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


class LinearAttention(torch.autograd.Function):
    """The gradients are linear attention too, with the operands in other roles.

    With S, made again, and R_t = q_tᵀ do_t + (1 - reset_{t+1}) R_{t+1}, its like from the other
    end: dq_t = do_t S_tᵀ, dk_t = v_t R_tᵀ, dv_t = k_t R_t.
    """

    @staticmethod
    def forward(
        ctx: Any,
        run: Pass,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        reset: torch.Tensor,
        initial: torch.Tensor | None,
    ) -> torch.Tensor:
        q, k, v, reset = q.contiguous(), k.contiguous(), v.contiguous(), reset.contiguous()
        initial = None if initial is None else initial.contiguous()
        ctx.save_for_backward(q, k, v, reset, initial)
        ctx.run = run
        return run(q, k, v, reset, initial)

    @staticmethod
    def backward(ctx: Any, do: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, reset, initial = ctx.saved_tensors
        do = do.contiguous()
        transposed = None if initial is None else initial.mT.contiguous()
        dinitial = None if initial is None else torch.zeros_like(initial)
        dq = ctx.run(do, v, k, reset, transposed)
        dk = ctx.run(v, do, q, reset, backwards=True)
        dv = ctx.run(k, q, do, reset, last=dinitial, backwards=True)
        return None, dq, dk, dv, None, dinitial
