"""What the operations need to know of a packed batch's segments, from the reset flags alone."""

import torch

RUN = 64  # tokens


def check_reset(reset: torch.Tensor, tokens: int) -> None:
    """ValueError unless there is one flag a token."""
    if reset.shape != (tokens,) or reset.dtype != torch.bool:
        raise ValueError(f"reset must be bool [{tokens}], got {reset.dtype} {tuple(reset.shape)}")


def numbers(reset: torch.Tensor) -> torch.Tensor:
    """The number of each token's segment, int32 ``[T]``.

    0 is the segment that began before the first token; it has no tokens where ``reset[0]``.
    """
    return reset.cumsum(0, dtype=torch.int32)


def positions(reset: torch.Tensor) -> torch.Tensor:
    """The place of each token in its segment, from 0, int64 ``[T]``; token 0 has place 0."""
    tokens = torch.arange(len(reset), device=reset.device)
    return tokens - torch.where(reset, tokens, 0).cummax(0).values


def runs(reset: torch.Tensor) -> torch.Tensor:
    """Bounds of runs of whole segments, int64 ``[R + 1]``, for T > 0, without waiting for a GPU.

    Run r holds the segments that start in tokens ``r * RUN`` to ``(r + 1) * RUN - 1``, so it may
    be empty, and R follows from T alone. Token 0 always begins run 0.
    """
    tokens = torch.arange(len(reset), device=reset.device)
    starts = torch.where(reset, tokens, len(reset))
    bounds = starts.flip(0).cummin(0).values.flip(0)[::RUN].clone()
    bounds[0] = 0
    return torch.cat((bounds, bounds.new_full((1,), len(reset))))


def product_precision(dtype: torch.dtype) -> str:
    """What Triton's products of fp32 tiles are to keep, for operands that came in this dtype.

    bf16 fits into the 11 bits of tf32; fp32 needs three products, which keep some 21 bits.
    """
    return "tf32" if dtype == torch.bfloat16 else "tf32x3"
