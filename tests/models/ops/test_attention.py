"""Attention, causal and two-way: every form against the reference in fp64, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_forms import assert_matches, offsets_of, triton

from models import ops
from models.ops.attention import reference

LAYOUTS = [[], [0, 0], [1], [1, 1, 1], [5, 1, 17, 0, 64, 2], [290, 1, 260, 3]]
SHORT_LAYOUTS = [[], [1], [0, 3, 1, 0, 70, 1, 5, 0]]  # for the interpreter, which is slow
SLACK = 2  # two products in a row: the second takes the rounding of the first

both_ways = pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-way"])


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def inputs_of(lengths, heads, width, dtype=torch.float32):
    """Queries, keys and values that differ from each other."""
    return [normal(sum(lengths), heads, width, dtype=dtype).roll(i, 0) for i in range(3)]


def assert_agrees(lengths, causal, inputs, device="cpu", slack=SLACK):
    offsets = offsets_of(lengths)

    def operation(*qkv):
        tensors = [tensor.to(device) for tensor in qkv]
        return ops.attention(*tensors, offsets.to(device), causal).cpu()

    assert_matches(
        operation, lambda *qkv: reference.attention(*qkv, offsets, causal), inputs, slack=slack
    )


@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("lengths", LAYOUTS)
def test_buckets(lengths, dtype, causal):
    assert_agrees(lengths, causal, inputs_of(lengths, 2, 16, dtype))


@both_ways
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 70), max_size=8))
def test_buckets_over_random_layouts(causal, lengths):
    assert_agrees(lengths, causal, inputs_of(lengths, 2, 8))


@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 20, 128])
@pytest.mark.parametrize("lengths", SHORT_LAYOUTS)
def test_triton(lengths, width, dtype, causal):
    # The gradient makes the weights again, and exp makes the rounding of a score, which reaches
    # sqrt(width) where a key equals the query, a relative one of its weight.
    slack = max(SLACK, width**0.5 / 2)
    with triton() as device:
        assert_agrees(lengths, causal, inputs_of(lengths, 2, width, dtype), device, slack)


@both_ways
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(0, 20), max_size=4), width=st.integers(1, 40))
def test_triton_over_random_layouts(causal, lengths, width):
    with triton() as device:
        assert_agrees(lengths, causal, inputs_of(lengths, 1, width), device)


@both_ways
def test_triton_is_right_for_sharp_logits(causal):
    q, k, v = inputs_of([70, 9], 1, 16)
    with triton() as device:
        # Logits of hundreds are rounded as many times as coarsely as those of about one.
        assert_agrees([70, 9], causal, [10 * q, 10 * k, v], device, slack=20)


@both_ways
@pytest.mark.parametrize("width", [128, 129])
def test_triton_leaves_heads_that_are_too_wide_to_the_buckets(causal, width):
    used = []
    with triton() as device:
        from models.ops.attention import triton as kernels

        with pytest.MonkeyPatch.context() as patch:
            inner = kernels.attention
            patch.setattr(kernels, "attention", lambda *a: used.append(1) or inner(*a))
            assert_agrees([5, 3], causal, inputs_of([5, 3], 1, width), device)
    assert bool(used) == (width == 128)


def test_two_way_tokens_see_the_later_ones_of_their_segment_and_no_other():
    x, offsets = normal(12, 1, 8), offsets_of([3, 9])
    changed = x.clone()
    changed[11] += 1.0
    before, after = (ops.attention(v, v, v, offsets, causal=False) for v in (x, changed))
    assert torch.equal(before[:3], after[:3])
    assert not (before[3:] == after[3:]).all(2).any()
