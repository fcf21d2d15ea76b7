"""The experts one token at a time, in autograd."""

import torch

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # z, K and V


def experts(
    scores: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reset: torch.Tensor,
    initial: State | None,
) -> torch.Tensor:
    """What each token reads from the experts; shapes as in the dispatching function."""
    if len(q) == 0:
        return empty(scores, q, k, v, initial)
    wide = torch.promote_types(q.dtype, torch.float32)
    nothing = torch.zeros(*scores.shape[1:], q.shape[2], dtype=wide, device=q.device)
    z, keys, values = initial or (torch.full_like(nothing[..., 0], float("-inf")), nothing, nothing)
    z, keys, values = z.to(wide), keys.to(wide), values.to(wide)
    outputs = []
    for t in range(len(q)):
        score, query, key, value = (x[t].to(wide) for x in (scores, q, k, v))
        both = torch.logaddexp(z, score)
        kept = torch.where(reset[t], 0.0, torch.exp(z - both))[..., None]
        taken = torch.where(reset[t], 1.0, torch.exp(score - both))[..., None]
        keys = kept * keys + taken * key[:, None]
        values = kept * values + taken * value[:, None]
        z = torch.where(reset[t], score, both)
        logits = (keys * query[:, None]).sum(-1) / q.shape[-1] ** 0.5
        outputs.append((logits.softmax(-1)[..., None] * values).sum(1))
    return torch.stack(outputs).to(q.dtype)


def empty(
    scores: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    initial: State | None,
) -> torch.Tensor:
    """No tokens, but a result that every input takes part in: each gets a gradient, of zero."""
    result = q + k + v + scores.sum(-1, keepdim=True)
    for tensor in initial or ():
        result = result + tensor.sum()
    return result.to(q.dtype)
