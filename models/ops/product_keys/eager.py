"""The best slots in eager torch."""

import torch


def select(halves: torch.Tensor, k: int) -> torch.Tensor:
    """The slots ``[T, h, k]``, best first, from the halves' scores ``[T, h, 2, n]``."""
    n = halves.shape[-1]
    # torch.topk breaks ties as it likes: stable sorts do not.
    ranked, indices = halves.sort(dim=-1, descending=True, stable=True)
    a, b = pairs(k, halves.device)
    sums = ranked[:, :, 0, a] + ranked[:, :, 1, b]
    slots = indices[:, :, 0, a] * n + indices[:, :, 1, b]
    slots, by_slot = slots.sort(dim=-1)
    best = sums.gather(-1, by_slot).sort(dim=-1, descending=True, stable=True).indices
    return slots.gather(-1, best[..., :k])


def pairs(k: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The ranks (from 0) in both halves of the pairs that can be among the k best.

    The pair (a, b) comes after all other pairs of ranks up to a and up to b, and there are
    (a + 1) (b + 1) - 1 of these.
    """
    # Plain numbers, not a search in a tensor, so that an exported graph knows how many there are.
    found = [(a, b) for a in range(k) for b in range(k // (a + 1))]
    first, second = torch.tensor(found, device=device).unbind(1)
    return first, second
