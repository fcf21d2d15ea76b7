"""The offsets of packed segments: segment s is the tokens from offsets[s] up to offsets[s + 1]."""

import torch


def check_offsets(offsets: torch.Tensor, tokens: int) -> None:
    """ValueError, in one line, unless offsets is int64 ``[S + 1]`` and rises from 0 to tokens.

    Empty segments are allowed. Costs one wait for the device, where there is one.
    """
    if offsets.dim() != 1 or len(offsets) == 0 or offsets.dtype != torch.int64:
        raise ValueError(f"offsets must be int64 [S + 1], got {offsets.dtype} {[*offsets.shape]}")
    wrong = (offsets[0] != 0) | (offsets[-1] != tokens) | (offsets.diff() < 0).any()
    if bool(wrong):
        raise ValueError(f"offsets must rise from 0 to {tokens}")
