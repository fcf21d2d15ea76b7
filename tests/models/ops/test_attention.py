"""Attention, causal and two-way: every form against the reference in fp64, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_forms import assert_matches, offsets_of, threads, triton

from models import ops
from models.ops.attention import cpu, reference

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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "width"), [(2, 32), (1, 64), (3, 96)])
@pytest.mark.parametrize("lengths", LAYOUTS)
def test_kernel(lengths, heads, width, dtype, causal):
    assert_agrees(lengths, causal, inputs_of(lengths, heads, width, dtype))


@both_ways
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 120), max_size=8))
def test_kernel_over_random_layouts(causal, lengths):
    assert_agrees(lengths, causal, inputs_of(lengths, 2, 32))


@both_ways
def test_kernel_reads_q_k_v_where_one_product_left_them(causal):
    lengths, whole = [60, 3, 100], normal(163, 3 * 64)
    parts = [part.unflatten(-1, (2, 32)) for part in whole.requires_grad_().chunk(3, dim=-1)]
    apart = [part.detach().clone().requires_grad_() for part in parts]
    offsets, dy = offsets_of(lengths), normal(163, 2, 32)
    y, expected = (ops.attention(*given, offsets, causal) for given in (parts, apart))
    assert torch.equal(y, expected)
    (found,) = torch.autograd.grad(y, whole, dy)
    gradients = torch.autograd.grad(expected, apart, dy)
    assert torch.equal(found, torch.cat([one.flatten(1) for one in gradients], dim=1))


@both_ways
def test_kernel_gives_the_same_on_any_number_of_threads_and_beside_any_segments(causal):
    lengths = [90, 200, 64]
    q, k, v = inputs_of(lengths, 2, 32)
    offsets = offsets_of(lengths)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(ops.attention(q, k, v, offsets, causal))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    alone = ops.attention(q[90:290], k[90:290], v[90:290], offsets_of([200]), causal)
    assert torch.equal(found[0][90:290], alone)


def test_few_long_segments_are_left_to_what_divides_them():
    q, k, v = inputs_of([2000, 10], 1, 32)
    for count, served in ((1, True), (2, True), (3, False)):
        with threads(count):
            assert cpu.serves(q, k, v, offsets_of([2000, 10])) is served


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
