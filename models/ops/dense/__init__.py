"""Matrix multiplication with weights."""

import torch
from torch.nn import functional

from models.ops import precision
from models.ops.dense import cpu, wide


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x Wᵀ + b, as `torch.nn.functional.linear`, fast on every CPU.

    x: ``[..., in]``; weight: ``[out, in]``; bias: ``[out]`` or None; one dtype, or any under
    autocast, which is respected. Returns ``[..., out]``. On a CPU that cannot multiply bf16,
    bf16 operands are multiplied in fp32 and the result, and each gradient, rounded to bf16: what
    bf16 hardware with fp32 accumulation computes. ValueError for shapes or dtypes that do not fit.
    """
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type) and dtype.is_floating_point:
        if dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
    elif weight.dtype != dtype or (bias is not None and bias.dtype != dtype):
        raise ValueError(f"x is {dtype}, weight {weight.dtype}: they must share a dtype")
    if precision.emulated(dtype, x.device):
        return cpu.linear(x, weight, bias)
    if dtype == torch.float32 and wide.serves(x, weight):
        return wide.linear(x, weight, bias)
    return functional.linear(x, weight, bias)
