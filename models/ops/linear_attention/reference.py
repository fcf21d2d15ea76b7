"""Causal linear attention one token at a time, in autograd."""

import torch


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None,
) -> torch.Tensor:
    """o_t = q_t S_t; shapes as in the dispatching function."""
    wide = torch.promote_types(v.dtype, torch.float32)
    state = torch.zeros(*q.shape[1:], v.shape[2], dtype=wide, device=q.device)
    if initial is not None:
        state = initial.to(wide)
    outputs = []
    rows = zip(q.to(wide), k.to(wide), v.to(wide), strict=True)
    for t, (query, key, value) in enumerate(rows):
        state = torch.where(reset[t], 0.0, state) + key[:, :, None] * value[:, None, :]
        outputs.append((query[:, :, None] * state).sum(1))
    return torch.stack(outputs).to(v.dtype) if outputs else empty(q, k, v, initial)


def empty(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, initial: torch.Tensor | None
) -> torch.Tensor:
    """No tokens, but a result that every input takes part in: each gets a gradient, of zero."""
    o = (q * k).sum(2, keepdim=True) * v
    return (o if initial is None else o + initial.sum(1)).to(v.dtype)
