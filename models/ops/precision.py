"""In which precision factors are multiplied, and what the processor can do in bfloat16."""

import functools

import torch


@functools.cache
def cpu_multiplies_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX-512 BF16, AMX, or Arm's).

    Elsewhere torch emulates it, tens of times slower than fp32.
    """
    if torch.backends.cpu.get_cpu_capability().startswith("SVE"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def factors(*tensors: torch.Tensor) -> torch.dtype:
    """What the factors of a product are rounded to: autocast's dtype, else the widest of theirs."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of this dtype should be multiplied in fp32 instead, and then rounded."""
    return dtype == torch.bfloat16 and device.type == "cpu" and not cpu_multiplies_bf16()
