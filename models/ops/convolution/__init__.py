"""Depthwise causal convolution within the segments of a packed batch."""

import torch

from models.ops import extension, gpu
from models.ops.convolution import cpu, eager


def causal_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None = None,
) -> torch.Tensor:
    """y_t = bias + sum over j of weight[:, j] x_{t-w+1+j}, each channel for itself.

    x: ``[T, d]``; weight: ``[d, w]``, its last column for the token itself; bias: ``[d]``.
    reset: bool ``[T]``, True at the first token of a segment: tokens before that read as zero.
    initial: ``[w - 1, d]``, the tokens before the first one (seen where ``reset[0]`` is False),
    taken in the dtype of x, or None for zero.

    Returns y like x, summed in fp32 or wider. Values and gradients do not depend on the number
    of threads. Gradients: x, weight, bias, initial. ValueError for shapes or dtypes that do not
    fit.

    Source: the short convolution of Mamba (Gu and Dao, 2023), as used by RecGRELA (2025).
    """
    check(x, weight, bias, reset, initial)
    if initial is not None:
        # They are tokens like the others; only what comes out at their places is not wanted.
        longer = torch.cat((initial.to(x.dtype), x))
        resets = torch.cat((reset.new_zeros(len(initial)), reset))
        return causal_convolution(longer, weight, bias, resets)[len(initial) :]
    if gpu.serves(x):
        from models.ops.convolution import triton

        return triton.convolution(x, weight, bias, reset)
    if extension.serves(x):
        return cpu.convolution(x, weight, bias, reset)
    return eager.convolution(x, weight, bias, reset)


def check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None,
) -> None:
    """ValueError, in one line, for arguments that do not fit together."""
    if x.dim() != 2:
        raise ValueError(f"x must be [T, d], got {tuple(x.shape)}")
    tokens, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] == 0:
        raise ValueError(f"weight must be [{channels}, w], w > 0, got {tuple(weight.shape)}")
    if bias.shape != (channels,):
        raise ValueError(f"bias must be [{channels}], got {tuple(bias.shape)}")
    if reset.shape != (tokens,) or reset.dtype != torch.bool:
        raise ValueError(f"reset must be bool [{tokens}], got {reset.dtype} {tuple(reset.shape)}")
    before = (weight.shape[1] - 1, channels)
    if initial is not None and initial.shape != before:
        raise ValueError(f"initial must be {[*before]}, got {tuple(initial.shape)}")
