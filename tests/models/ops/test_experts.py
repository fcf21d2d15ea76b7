"""The running softmax experts: every form against the reference, and what must hold beyond it."""

import functools
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_forms import (
    TOLERANCE,
    assert_matches,
    compiled,
    evaluate,
    form,
    offsets_of,
    resets_of,
    threads,
)

from models import ops
from models.ops.experts import reference

LAYOUTS = [[], [1], [1, 1, 1], [5, 1, 17, 0, 64, 2], [290, 1, 260, 3]]
SIZES = [(1, 1, 1), (2, 5, 13), (2, 20, 32)]  # heads, experts, width
FAST = ["compiled", "eager"]
# Triton's interpreter takes milliseconds a token: it is given a few tokens only.
CASES = [
    *((name, lengths) for name in FAST for lengths in LAYOUTS),
    ("triton", []),
    ("triton", [5, 1, 0, 11, 2]),
]


def inputs_of(
    tokens: int, heads: int, experts: int, width: int, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """scores, q, k and v."""
    random = torch.Generator().manual_seed(tokens + experts)
    scores = 2 * torch.randn(tokens, heads, experts, generator=random)
    rows = [torch.randn(tokens, heads, width, generator=random) for _ in range(3)]
    return [tensor.to(dtype) for tensor in (scores, *rows)]


def state_of(heads: int, experts: int, width: int) -> list[torch.Tensor]:
    """z, K and V."""
    random = torch.Generator().manual_seed(experts)
    shapes = [(heads, experts), (heads, experts, width), (heads, experts, width)]
    return [torch.randn(shape, generator=random) for shape in shapes]


def assert_equals_reference(
    inputs: list[torch.Tensor], reset: torch.Tensor, device: str, slack: float = 1.0
) -> None:
    """inputs: scores, q, k, v, and z, K, V where there is an initial state."""
    reset = reset.to(device)
    assert_matches(
        lambda *x: ops.running_softmax_experts(*x[:4], reset, x[4:] or None),
        lambda *x: reference.experts(*x[:4], reset, x[4:] or None),
        [tensor.to(device) for tensor in inputs],
        slack,
    )


def direct(scores, q, k, v, lengths):
    """The definition, for every token of its own: weights over the prefix, then the read."""
    outputs = []
    for begin, end in pairwise(offsets_of(lengths).tolist()):
        for t in range(begin, end):
            prefix = slice(begin, t + 1)
            weights = scores[prefix].softmax(0)
            keys = torch.einsum("thk,the->hke", weights, k[prefix])
            values = torch.einsum("thk,the->hke", weights, v[prefix])
            logits = torch.einsum("he,hke->hk", q[t], keys) / q.shape[-1] ** 0.5
            outputs.append(torch.einsum("hk,hke->he", logits.softmax(-1), values))
    return torch.stack(outputs)


@pytest.fixture(params=FAST)
def device(request):
    """The device of the form under test, which is in use meanwhile."""
    with form(request.param) as device:
        yield device


every_form = pytest.mark.parametrize("device", [*FAST, "triton"], indirect=True)


def test_the_reference_is_the_definition():
    lengths = [7, 1, 0, 20]
    inputs = inputs_of(28, 2, 5, 8, torch.float64)
    assert_matches(
        lambda *x: reference.experts(*x, resets_of(lengths), None),
        lambda *x: direct(*x, lengths),
        inputs,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("device", "lengths"), CASES, indirect=["device"])
def test_every_form_equals_the_reference(lengths, sizes, dtype, device):
    reset = resets_of(lengths)
    # Averages of some 300 tokens gather the rounding of as many steps.
    assert_equals_reference(inputs_of(len(reset), *sizes, dtype), reset, device, slack=2)


@pytest.mark.parametrize("lengths", LAYOUTS)
def test_fp64(lengths, device):
    reset = resets_of(lengths)
    assert_equals_reference(inputs_of(len(reset), 2, 5, 13, torch.float64), reset, device)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("carries", [True, False])
def test_an_initial_state(carries, dtype, device):
    reset = resets_of([14, 3])
    reset[0] = not carries
    inputs = [x.to(dtype) for x in inputs_of(17, 2, 5, 13) + state_of(2, 5, 13)]
    assert_equals_reference(inputs, reset, device)


def test_scores_may_be_wider_than_the_rest(device):
    reset = resets_of([30])
    scores, *rows = inputs_of(30, 2, 5, 13, torch.bfloat16)
    wide = ops.running_softmax_experts(scores.float(), *rows, reset)
    assert torch.equal(wide, ops.running_softmax_experts(scores, *rows, reset))


@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=6),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 19), st.integers(1, 37)),
    carries=st.booleans(),
)
def test_random_layouts(device, lengths, sizes, carries):
    reset = resets_of(lengths)
    reset[:1] = not carries
    inputs = inputs_of(len(reset), *sizes) + state_of(*sizes)
    # A logit is a sum of up to 37 products.
    assert_equals_reference(inputs, reset, device, slack=2)


@every_form
@pytest.mark.parametrize("scale", [100.0, 10_000.0])
def test_scores_of_any_size(scale, device):
    reset = resets_of([3, 15])
    inputs = inputs_of(18, 2, 5, 13)
    inputs[0] *= scale / 2
    assert_equals_reference(inputs, reset, device)


@pytest.mark.parametrize(
    ("device", "tokens"), [("compiled", 500), ("eager", 500), ("triton", 15)], indirect=["device"]
)
@pytest.mark.parametrize("level", [1e4, -1e4])
def test_scores_far_from_zero_keep_their_differences(level, tokens, device):
    inputs = inputs_of(tokens, 2, 5, 13)
    inputs[0] += level
    # Averages of some 500 tokens gather the rounding of as many steps.
    assert_equals_reference(inputs, resets_of([3, tokens - 3]), device, slack=2)


@functools.cache
def exact_long_segment() -> list[torch.Tensor]:
    """In eager fp64, equal to the reference (above), which would take minutes."""
    inputs = [x.double() for x in inputs_of(4096, 1, 8, 16, torch.bfloat16)]
    with compiled(False):
        return evaluate(lambda *x: ops.running_softmax_experts(*x, resets_of([4096])), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_segments(dtype, device):
    inputs = [x.to(dtype) for x in inputs_of(4096, 1, 8, 16, torch.bfloat16)]
    found = evaluate(lambda *x: ops.running_softmax_experts(*x, resets_of([4096])), inputs)
    # In fp32 it shows that an average gathers the rounding of 4,096 steps.
    tolerance = TOLERANCE[dtype] * (4 if dtype == torch.float32 else 1)
    for got, want in zip(found, exact_long_segment(), strict=True):
        assert (got - want).abs().max() < tolerance * want.abs().max().clamp(min=1.0)


def test_a_state_carried_over_continues_the_averages(device):
    scores, q, k, v = inputs_of(50, 2, 5, 13)
    reset = resets_of([50])
    whole = ops.running_softmax_experts(scores, q, k, v, reset)
    weights = scores[:20].softmax(0)
    state = (
        scores[:20].logsumexp(0),
        torch.einsum("thk,the->hke", weights, k[:20]),
        torch.einsum("thk,the->hke", weights, v[:20]),
    )
    rest = ops.running_softmax_experts(scores[20:], q[20:], k[20:], v[20:], reset[20:], state)
    assert torch.allclose(rest, whole[20:], atol=1e-6)


@every_form
def test_a_state_that_holds_nothing_equals_none(device):
    inputs = [x.to(device) for x in inputs_of(9, 2, 5, 13)]
    reset = torch.zeros(9, dtype=torch.bool, device=device)
    z, keys, values = (x.to(device) for x in state_of(2, 5, 13))
    state = (torch.full_like(z, float("-inf")), 0 * keys, 0 * values)
    assert torch.equal(
        ops.running_softmax_experts(*inputs, reset, state),
        ops.running_softmax_experts(*inputs, reset),
    )


def test_a_later_token_leaves_earlier_outputs_and_other_segments_untouched(device):
    lengths = [3, 1, 40, 300, 7]
    inputs, reset = inputs_of(351, 2, 5, 13), resets_of(lengths)
    before = ops.running_softmax_experts(*inputs, reset)
    for token in (0, 3, 20, 44, 200, 350):
        changed = [x.clone() for x in inputs]
        for x in changed:
            x[token] += 1.0
        after = ops.running_softmax_experts(*changed, reset)
        end = next(end for end in offsets_of(lengths).tolist() if end > token)
        assert torch.equal(after[:token], before[:token])
        assert torch.equal(after[end:], before[end:])
        assert not torch.equal(after[token], before[token])


def test_packed_segments_equal_separate_ones(device):
    lengths = [3, 1, 40, 300, 7]
    inputs = inputs_of(351, 2, 5, 13)
    packed = ops.running_softmax_experts(*inputs, resets_of(lengths))
    parts = zip(*(x.split(lengths) for x in inputs), strict=True)
    separate = [ops.running_softmax_experts(*part, resets_of([len(part[0])])) for part in parts]
    assert torch.allclose(packed, torch.cat(separate), atol=1e-6)


def test_threads_change_no_bit():
    reset = resets_of([700, 1, 900, 2])
    outputs = []
    for count in (1, 2, 7):
        with compiled(True), threads(count):
            outputs.append(
                evaluate(
                    lambda *x: ops.running_softmax_experts(*x, reset), inputs_of(1603, 3, 5, 13)
                )
            )
    for other in outputs[1:]:
        assert all(map(torch.equal, outputs[0], other))


@every_form
def test_strided_inputs_are_taken(device):
    reset = resets_of([10]).to(device)
    scores, *rows = (x.to(device) for x in inputs_of(10, 2, 5, 13))
    fused = torch.cat(rows, dim=-1).chunk(3, dim=-1)
    assert not fused[0].is_contiguous()
    assert torch.equal(
        ops.running_softmax_experts(scores, *fused, reset),
        ops.running_softmax_experts(scores, *rows, reset),
    )


ROWS, SCORES, RESET = torch.ones(4, 2, 6), torch.ones(4, 2, 3), torch.zeros(4, dtype=torch.bool)
STATE = (torch.ones(2, 3), torch.ones(2, 3, 6), torch.ones(2, 3, 6))


@pytest.mark.parametrize(
    "arguments",
    [
        (SCORES, ROWS[0], ROWS[0], ROWS[0], RESET),
        (SCORES, ROWS, ROWS[:3], ROWS, RESET),
        (SCORES, ROWS, ROWS, ROWS.bfloat16(), RESET),
        (SCORES[:3], ROWS, ROWS, ROWS, RESET),
        (SCORES[..., :0], ROWS, ROWS, ROWS, RESET),
        (SCORES, ROWS, ROWS, ROWS, RESET.long()),
        (SCORES, ROWS, ROWS, ROWS, RESET[:3]),
        (SCORES, ROWS, ROWS, ROWS, RESET, STATE[:2]),
        (SCORES, ROWS, ROWS, ROWS, RESET, STATE[::-1]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        ops.running_softmax_experts(*arguments)
