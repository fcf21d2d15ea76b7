"""Whether the Triton forms of the operations can take these tensors.

The forms lie in each operation's `triton.py`, which is imported only where they are used: machines
without Triton need none of it. In tests they run on the CPU through Triton's interpreter.
"""

import functools
import importlib.util
import os

import torch

# Set by tests only: take CPU tensors too. Needs TRITON_INTERPRET=1 before Triton's first import.
interpreting = False


def serves(*tensors: torch.Tensor | None) -> bool:
    """Whether Triton kernels can take these tensors: CUDA, fp32 or bf16."""
    given = [tensor for tensor in tensors if tensor is not None]
    return (
        all(tensor.is_cuda or interpreting for tensor in given)
        and all(tensor.dtype in (torch.float32, torch.bfloat16) for tensor in given)
        and os.environ.get("LONGHAUL_GPU_KERNELS", "1") != "0"
        and _has_triton()
    )


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
