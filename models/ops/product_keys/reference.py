"""The best slots by the scores of all n * n of them."""

import torch


def top(query: torch.Tensor, keys: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and slots; shapes as in the dispatching function."""
    wide = torch.promote_types(query.dtype, torch.float32)
    first, second = query.to(wide).chunk(2, dim=-1)
    rows, columns = keys.to(wide).unbind(1)
    scores = torch.einsum("the,hne->thn", first, rows)[..., :, None]
    scores = scores + torch.einsum("the,hne->thn", second, columns)[..., None, :]
    ranked, slots = scores.flatten(2).sort(dim=-1, descending=True, stable=True)
    return ranked[..., :k].to(query.dtype), slots[..., :k]


def read(weights: torch.Tensor, slots: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The weighted sum of rows, all of them held."""
    wide = torch.promote_types(table.dtype, torch.float32)
    return (weights.to(wide)[..., None] * table.to(wide)[slots]).sum(1).to(table.dtype)
