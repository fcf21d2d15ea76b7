"""The experts through the C++ kernel (experts.cpp)."""

import torch

from models.ops import extension


def forward(*inputs: torch.Tensor) -> torch.Tensor:
    """See ``function.Passes``."""
    scores, q = inputs[:2]
    read = torch.empty_like(q)
    code = extension.DTYPE_CODES[q.dtype]
    extension.call("experts_forward", code, *inputs, read, *scores.shape, q.shape[2])
    return read


def backward(dread: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """See ``function.Passes``."""
    scores, q = inputs[:2]
    gradients = [torch.empty_like(tensor) for tensor in inputs[:-1]]
    code = extension.DTYPE_CODES[q.dtype]
    sizes = (*scores.shape, q.shape[2])
    extension.call("experts_backward", code, *inputs, dread, *gradients, *sizes)
    return tuple(gradients)
