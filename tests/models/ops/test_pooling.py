"""Sums over segments, and their opposite: against a loop over segments in fp64."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_forms import assert_matches, evaluate, offsets_of, threads

from models import ops
from models.ops.pooling import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
LAYOUTS = [[], [0], [1], [1, 1, 1], [0, 5, 1, 17, 0, 64, 2, 0], [290, 1, 260, 3]]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_segment_sum(shape, lengths, dtype):
    offsets = offsets_of(lengths)
    assert_matches(
        lambda x: ops.segment_sum(x, offsets),
        lambda x: reference.segment_sum(x, offsets),
        [normal(sum(lengths), *shape, dtype=dtype)],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_spread(shape, lengths, dtype):
    offsets = offsets_of(lengths)
    assert_matches(
        lambda values: ops.spread(values, offsets, sum(lengths)),
        lambda values: reference.spread(values, offsets),
        [normal(len(lengths), *shape, dtype=dtype)],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LAYOUTS)
@pytest.mark.parametrize("columns", [1, 5])
def test_segment_softmax(columns, lengths, dtype):
    offsets = offsets_of(lengths)
    assert_matches(
        lambda scores: ops.segment_softmax(scores, offsets),
        lambda scores: reference.segment_softmax(scores, offsets),
        [3 * normal(sum(lengths), columns, dtype=dtype)],
    )


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 90), max_size=8), columns=st.integers(1, 20))
def test_random_layouts(lengths, columns):
    offsets = offsets_of(lengths)
    for name, rows in (
        ("segment_sum", sum(lengths)),
        ("spread", len(lengths)),
        ("segment_softmax", sum(lengths)),
    ):
        found, expected = getattr(ops, name), getattr(reference, name)
        if name == "spread":
            found = partial(found, tokens=sum(lengths))
        inputs = [normal(rows, columns)]
        assert_matches(
            lambda x, f=found: f(x, offsets), lambda x, f=expected: f(x, offsets), inputs
        )


def test_an_empty_segment_has_a_zero_row():
    sums = ops.segment_sum(torch.ones(3, 2), offsets_of([0, 3, 0]))
    assert sums.tolist() == [[0, 0], [3, 3], [0, 0]]


def test_sums_of_a_narrow_dtype_are_wide():
    # Sums of 4096 halves: in bf16 they would stand still at 128.
    offsets = offsets_of([4096])
    halves = torch.full((4096, 1), 0.5, dtype=torch.bfloat16)
    assert ops.segment_sum(halves, offsets) == 2048
    row = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    ops.spread(row, offsets, len(halves)).backward(halves)
    assert row.grad == 2048


def test_softmax_of_logits_of_any_size():
    scores = torch.tensor([[1e30], [1e30], [-1e30], [-3e38], [3e38], [-1e4], [-1e4 - 1]])
    found = ops.segment_softmax(scores, offsets_of([3, 2, 2]))
    pair = torch.tensor([0.0, -1.0]).softmax(0)
    expected = torch.tensor([0.5, 0.5, 0.0, 0.0, 1.0, *pair.tolist()])
    assert torch.allclose(found[:, 0], expected)


@pytest.mark.parametrize("operation", [ops.segment_sum, ops.segment_softmax])
def test_threads_change_no_bit(operation):
    offsets, outputs = offsets_of([700, 1, 900, 2]), []
    for count in (1, 2, 7):
        with threads(count):
            outputs.append(evaluate(lambda x: operation(x, offsets), [normal(1603, 30)]))
    for other in outputs[1:]:
        assert all(map(torch.equal, outputs[0], other))


X, OFFSETS = torch.ones(4, 6), torch.tensor([0, 1, 4])


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.segment_sum(X, OFFSETS[:2]),
        lambda: ops.segment_sum(X, OFFSETS[1:]),
        lambda: ops.segment_sum(X, OFFSETS[:0]),
        lambda: ops.segment_sum(X, OFFSETS.int()),
        lambda: ops.segment_sum(X, torch.tensor([0, 3, 2, 4])),
        lambda: ops.segment_sum(X[0, 0], OFFSETS),
        lambda: ops.spread(X, OFFSETS, 3),
        lambda: ops.spread(X[:2], OFFSETS + 1, 4),
        lambda: ops.spread(X[0, 0], OFFSETS, 3),
        lambda: ops.segment_softmax(X[:, 0], OFFSETS),
        lambda: ops.segment_softmax(X[:3], OFFSETS),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        call()
