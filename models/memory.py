"""A large table of interests, read sparsely by product keys.

The keys are two codebooks of ``side`` half-keys a head, whose pairs name ``side`` squared slots;
exact top-k search costs ``2 side`` products instead of ``side`` squared (Lample et al. 2019,
arXiv 1907.05242). The query is normalised by LayerNorm: BatchNorm would mix users and time.
"""

import torch
from torch import nn

from models.base import truncated_normal_
from models.ops import linear, memory_read, product_key_top


class InterestMemory(nn.Module):
    """``side`` squared interests of width ``d``.

    heads: searches of each query, which see keys of their own. reads: slots that one head reads.
    """

    load: torch.Tensor

    def __init__(self, query_width: int, d: int, side: int, heads: int, reads: int) -> None:
        super().__init__()
        key_width = d // 2 * 2
        self.heads, self.reads = heads, reads
        self.query = nn.Linear(query_width, heads * key_width)
        self.query_norm = nn.LayerNorm(key_width)
        bound = (key_width / 2) ** -0.5
        self.keys = nn.Parameter(torch.empty(heads, 2, side, key_width // 2))
        nn.init.uniform_(self.keys, -bound, bound)
        self.interests = nn.Parameter(torch.randn(side * side, d) * d**-0.5)
        # How often each slot was read since the last diagnosis; no part of the model's state.
        self.register_buffer("load", torch.zeros(side * side), persistent=False)
        truncated_normal_(self.query.weight.data)
        nn.init.zeros_(self.query.bias)

    def search(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (softmax over a head's reads) and slots ``[n, heads, reads]``; x ``[n, w]``."""
        query = linear(x, self.query.weight, self.query.bias).unflatten(-1, (self.heads, -1))
        scores, slots = product_key_top(self.query_norm(query), self.keys, self.reads)
        if self.training:
            with torch.no_grad():
                # Whole numbers: the order of additions does not matter.
                once = self.load.new_ones(()).expand(slots.numel())
                self.load.index_add_(0, slots.flatten(), once)
        return scores.softmax(-1), slots

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """The weighted sum of what the heads find, ``[n, d]``."""
        weights, slots = self.search(x)
        return memory_read(weights.flatten(1), slots.flatten(1), self.interests)

    def usage(self) -> dict[str, float]:
        """Of the reads since the last call: share of slots used, load of the busiest slot as a
        multiple of the mean, KL divergence from even use in nats. Empty before the first read."""
        total = self.load.sum()
        if not total:
            return {}
        share = self.load / total
        used = share > 0
        told = {
            "memory_used": float(used.float().mean()),
            "memory_busiest": float(share.max() * len(share)),
            "memory_kl": float((share[used] * (share[used] * len(share)).log()).sum()),
        }
        self.load.zero_()
        return told
