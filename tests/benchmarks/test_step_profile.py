"""Time counts for the outermost caller that is named, and all of it is told."""

from collections.abc import Iterator

import pytest
import torch
from torch.profiler import record_function

from benchmarks.step_profile import LOSS, PRODUCTS, shares

SQUARE = torch.rand(512, 512)


def test_an_operation_counts_for_its_outermost_named_caller() -> None:
    def steps() -> Iterator[int]:
        while True:
            with record_function("update"):
                for _ in range(20):
                    _ = SQUARE @ SQUARE
            yield 1

    found = shares(steps(), 0.3)
    assert found["update"] > 0.5
    assert found[PRODUCTS] == 0.0
    assert sum(found.values()) == pytest.approx(1.0)


def test_a_loss_s_products_count_for_the_loss() -> None:
    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x @ x

    def steps() -> Iterator[int]:
        while True:
            for _ in range(5):
                Loss.apply(SQUARE)
            _ = SQUARE @ SQUARE
            yield 1

    found = shares(steps(), 0.3)
    assert found[LOSS] > found[PRODUCTS] > 0.0
    assert sum(found.values()) == pytest.approx(1.0)
