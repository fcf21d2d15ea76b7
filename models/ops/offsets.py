"""The offsets of packed segments: segment s is the tokens from offsets[s] up to offsets[s + 1]."""

import torch

from models.ops import checks


def check_offsets(offsets: torch.Tensor, tokens: int) -> None:
    """ValueError, in one line, unless offsets is int64 ``[S + 1]`` and rises from 0 to tokens.

    Empty segments are allowed. See ``checks.require``.
    """
    if offsets.dim() != 1 or len(offsets) == 0 or offsets.dtype != torch.int64:
        raise ValueError(f"offsets must be int64 [S + 1], got {offsets.dtype} {[*offsets.shape]}")
    rises = (offsets[0] == 0) & (offsets[-1] == tokens) & (offsets.diff() >= 0).all()
    checks.require(rises, f"offsets must rise from 0 to {tokens}")
