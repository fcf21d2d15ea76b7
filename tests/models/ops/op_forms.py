"""Helpers of the operations' tests: random packed layouts, and one way to compare two forms."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from models.ops import extension, gpu

Operation = Callable[..., torch.Tensor]

# What rounding to the dtype justifies, relative to the largest element of a result
# (or to one, where all are smaller).
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3}


@contextmanager
def form(name: str) -> Iterator[str]:
    """Uses the form "compiled", "eager" or "triton"; yields the device whose tensors it takes."""
    if name == "triton":
        with triton() as device:
            yield device
    else:
        with compiled(name == "compiled"):
            yield "cpu"


@contextmanager
def compiled(on: bool) -> Iterator[None]:
    """Turns the compiled kernels on or off; skips where no compiler exists."""
    if on and not has_compiler():
        pytest.skip("no C++ compiler")
    with mock.patch.dict(os.environ, LONGHAUL_CPU_KERNELS="1" if on else "0"):
        assert extension.serves(torch.ones(1)) == on
        yield


@contextmanager
def triton() -> Iterator[str]:
    """Uses the Triton kernels; yields the device whose tensors they take.

    That is a GPU where there is one, else the CPU, through Triton's interpreter (tests/conftest.py
    asks for it). Skips where Triton is not installed.
    """
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    from triton.runtime import interpreter

    with (
        mock.patch.object(gpu, "interpreting", device == "cpu"),
        mock.patch.object(interpreter, "_convert_float", to_nearest(interpreter._convert_float)),
    ):
        assert gpu.serves(torch.ones(1, device=device))
        yield device


def to_nearest(convert: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The interpreter's conversion of floats, but fp32 to bf16 as a GPU rounds it: the
    interpreter cuts it off."""

    def converted(data: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if (str(source), str(target)) != ("fp32", "bf16"):
            return convert(data, source, target, mode)
        wide = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
        return wide.bfloat16().view(torch.uint16).numpy()

    return converted


def has_compiler() -> bool:
    """Whether the kernels can be built here."""
    try:
        extension.find_compiler()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Sets torch's number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def offsets_of(lengths: list[int]) -> torch.Tensor:
    """The packed offsets of segments of these lengths."""
    return torch.tensor([0, *lengths]).cumsum(0)


def resets_of(lengths: list[int]) -> torch.Tensor:
    """True at the first token of every segment that has one."""
    reset = torch.zeros(sum(lengths), dtype=torch.bool)
    starts = offsets_of(lengths)[:-1]
    reset[starts[torch.tensor(lengths, dtype=torch.int64) > 0]] = True
    return reset


def evaluate(operation: Operation, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The result and the gradients of all inputs, for one fixed upstream gradient and seed."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    torch.manual_seed(7)
    result = operation(*leaves)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(3))
    result.backward(upstream.to(result))
    gradients = [leaf.grad for leaf in leaves]
    assert all(gradient is not None for gradient in gradients)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert gradient is not None
        assert gradient.dtype == leaf.dtype
    return [result.detach(), *(gradient for gradient in gradients if gradient is not None)]


def assert_matches(
    operation: Operation, reference: Operation, inputs: list[torch.Tensor], slack: float = 1.0
) -> None:
    """The operation in its dtype equals the reference in fp64, to the dtype's rounding.

    The inputs are rounded to their dtype before, so that both forms see the same numbers.
    """
    tolerance = TOLERANCE[inputs[0].dtype] * slack
    found = evaluate(operation, inputs)
    expected = evaluate(reference, [tensor.double() for tensor in inputs])
    for place, (got, want) in enumerate(zip(found, expected, strict=True)):
        assert got.shape == want.shape
        if want.numel():
            error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1.0)
            assert error < tolerance, f"output {place}: {error:.1e}"
