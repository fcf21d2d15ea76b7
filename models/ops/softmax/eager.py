"""The full softmax loss through torch's chunked linear cross-entropy.

The chunk is always explicit: torch's own choice is a few rows at large catalogues, and slow.
"""

import torch
from torch import nn
from torch.nn import functional

CHUNK_FLOATS = 4 << 20  # logits held at a time
MOST_ROWS = 512
LEAST_ROWS = 16


def loss(
    hidden: torch.Tensor, table: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """The sum of the losses, fp32 (fp64 for fp64)."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if not bool((targets > 0).any()):
        # A zero that every input takes part in, so that all get a gradient.
        nothing = hidden.sum() * 0 + table.sum() * 0
        return (nothing if bias is None else nothing + bias.sum() * 0).to(wide)
    rows = max(LEAST_ROWS, min(MOST_ROWS, CHUNK_FLOATS // len(table)))
    total: torch.Tensor = functional.linear_cross_entropy(
        hidden.to(wide),
        table.to(wide),
        targets,
        linear_bias=None if bias is None else bias.to(wide),
        reduction="sum",
        ignore_index=0,
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=rows),
    )
    return total
