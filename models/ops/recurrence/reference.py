"""The recurrence one token at a time, in autograd."""

import torch


def recurrence(
    u: torch.Tensor, decay: torch.Tensor, reset: torch.Tensor, initial: torch.Tensor | None
) -> torch.Tensor:
    """h_t = u_t + (1 - reset_t) λ h_{t-1}; shapes as in the dispatching function."""
    wide = torch.promote_types(u.dtype, torch.float32)
    re, im = decay.to(wide)
    state = torch.zeros(u.shape[1], dtype=wide, device=u.device)
    if initial is not None:
        state = initial.to(wide)
    states = []
    for t, row in enumerate(u.to(wide)):
        state_re, state_im = state.chunk(2)
        carried = torch.cat((re * state_re - im * state_im, re * state_im + im * state_re))
        state = row + torch.where(reset[t], 0.0, carried)
        states.append(state)
    return torch.stack(states).to(u.dtype) if states else empty(u, decay, initial)


def empty(u: torch.Tensor, decay: torch.Tensor, initial: torch.Tensor | None) -> torch.Tensor:
    """No tokens, but a result that every input takes part in: each gets a gradient, of zero."""
    h = u * decay.flatten()
    return (h if initial is None else h + initial).to(u.dtype)
