"""The causal convolution: every form against the reference in fp64, and what holds beyond it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_forms import assert_matches, compiled, evaluate, resets_of, threads, triton

from models import ops
from models.ops.convolution import reference

LAYOUTS = [[], [1], [1, 1, 1], [5, 1, 17, 0, 64, 2], [290, 1, 260, 3]]
SHORT_LAYOUTS = [[], [1], [0, 3, 1, 0, 70, 1, 5, 0]]  # for the interpreter, which is slow


@pytest.fixture(params=[True, False], ids=["compiled", "eager"])
def form(request):
    with compiled(request.param):
        yield


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def inputs_of(tokens, channels, width, dtype=torch.float32):
    """x, weight and bias."""
    shapes = ((tokens, channels), (channels, width), (channels,))
    return [normal(*shape, dtype=dtype) for shape in shapes]


def assert_agrees(reset, inputs, device="cpu"):
    """The inputs are x, weight, bias and, perhaps, the tokens before."""

    def operation(x, weight, bias, initial=None):
        x, weight, bias = (tensor.to(device) for tensor in (x, weight, bias))
        initial = None if initial is None else initial.to(device)
        return ops.causal_convolution(x, weight, bias, reset.to(device), initial).cpu()

    def expected(x, weight, bias, initial=None):
        return reference.convolution(x, weight, bias, reset, initial)

    # The gradients of the parameters gather the rounding of hundreds of tokens' terms, which
    # bf16 does not show, as the sums are in fp32.
    slack = 4 if inputs[0].dtype == torch.float32 else 1
    assert_matches(operation, expected, inputs, slack)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("lengths", LAYOUTS)
@pytest.mark.parametrize(("channels", "width"), [(13, 4), (64, 4), (8, 1), (3, 7)])
def test_convolution(channels, width, lengths, dtype):
    assert_agrees(resets_of(lengths), inputs_of(sum(lengths), channels, width, dtype))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("carries", [True, False])
@pytest.mark.parametrize("lengths", [[], [1], [2, 30], [40, 3]])
@pytest.mark.parametrize("width", [1, 4])
def test_convolution_after_earlier_tokens(width, lengths, carries, dtype):
    reset = resets_of(lengths)
    reset[:1] = not carries
    inputs = inputs_of(len(reset), 10, width, dtype)
    assert_agrees(reset, [*inputs, normal(width - 1, 10, dtype=dtype)])


@pytest.mark.usefixtures("form")
def test_without_earlier_tokens_what_is_not_reset_starts_from_zero():
    reset = resets_of([20])
    reset[0] = False
    assert_agrees(reset, inputs_of(20, 5, 4))


@pytest.mark.parametrize("kernels", [True, False], ids=["compiled", "eager"])
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 90), max_size=8),
    channels=st.integers(1, 70),
    width=st.integers(1, 9),
)
def test_convolution_over_random_layouts(kernels, lengths, channels, width):
    with compiled(kernels):
        assert_agrees(resets_of(lengths), inputs_of(sum(lengths), channels, width))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", SHORT_LAYOUTS)
@pytest.mark.parametrize(("channels", "width"), [(13, 4), (70, 3), (8, 1)])
def test_triton(channels, width, lengths, dtype):
    with triton() as device:
        inputs = inputs_of(sum(lengths), channels, width, dtype)
        assert_agrees(resets_of(lengths), inputs, device)


@pytest.mark.parametrize("carries", [True, False])
def test_triton_after_earlier_tokens(carries):
    reset = resets_of([5, 70])
    reset[0] = not carries
    with triton() as device:
        assert_agrees(reset, [*inputs_of(75, 10, 4), normal(3, 10)], device)


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), max_size=4),
    channels=st.integers(1, 70),
    width=st.integers(1, 5),
)
def test_triton_over_random_layouts(lengths, channels, width):
    with triton() as device:
        assert_agrees(resets_of(lengths), inputs_of(sum(lengths), channels, width), device)


@pytest.mark.usefixtures("form")
def test_the_last_tokens_carried_over_continue_the_convolution():
    (x, weight, bias), reset = inputs_of(50, 6, 4), resets_of([50])
    whole = ops.causal_convolution(x, weight, bias, reset)
    rest = ops.causal_convolution(x[20:], weight, bias, reset[20:], x[17:20])
    assert torch.equal(rest, whole[20:])


@pytest.mark.usefixtures("form")
def test_parameters_may_be_wider_than_the_tokens():
    (x, weight, bias), reset = inputs_of(30, 6, 4), resets_of([25, 5])
    x = x.bfloat16()
    mixed = evaluate(lambda *a: ops.causal_convolution(*a, reset), [x, weight, bias])
    wide = evaluate(lambda *a: ops.causal_convolution(*a, reset), [x.float(), weight, bias])
    assert mixed[0].dtype == torch.bfloat16
    for found, expected in zip(mixed, wide, strict=True):
        assert torch.allclose(found.float(), expected, rtol=8e-3, atol=8e-2)


@pytest.mark.usefixtures("form")
def test_strided_inputs_are_taken():
    (x, weight, bias), reset = inputs_of(30, 6, 4), resets_of([25, 5])
    expected = ops.causal_convolution(x, weight, bias, reset)
    strided = (t.T.contiguous().T for t in (x, weight))
    assert torch.equal(ops.causal_convolution(*strided, bias, reset), expected)


def test_threads_change_no_bit():
    reset = resets_of([700, 1, 900, 2])
    outputs = []
    with compiled(True):
        for count in (1, 2, 7):
            with threads(count):
                inputs = inputs_of(len(reset), 100, 4)
                outputs.append(evaluate(lambda *a: ops.causal_convolution(*a, reset), inputs))
    for other in outputs[1:]:
        assert all(map(torch.equal, outputs[0], other))


X, RESET = torch.ones(4, 6), torch.zeros(4, dtype=torch.bool)
WEIGHT, BIAS = torch.ones(6, 3), torch.ones(6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.causal_convolution(X[0], WEIGHT, BIAS, RESET),
        lambda: ops.causal_convolution(X, WEIGHT[:5], BIAS, RESET),
        lambda: ops.causal_convolution(X, WEIGHT[:, :0], BIAS, RESET),
        lambda: ops.causal_convolution(X, WEIGHT, BIAS[:5], RESET),
        lambda: ops.causal_convolution(X, WEIGHT, BIAS, RESET[:3]),
        lambda: ops.causal_convolution(X, WEIGHT, BIAS, RESET.long()),
        lambda: ops.causal_convolution(X, WEIGHT, BIAS, RESET, X[:3]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        call()
