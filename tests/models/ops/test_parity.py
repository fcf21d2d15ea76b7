"""Every form of every operation against its reference in fp64: values, gradients, dtypes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_forms import assert_matches, compiled, evaluate, offsets_of, resets_of

from models import ops
from models.ops.activation import reference as activation
from models.ops.attention import reference as attention
from models.ops.dense import reference as dense
from models.ops.drop import reference as drop
from models.ops.norm import reference as norm
from models.ops.recurrence import reference as recurrence
from models.ops.softmax import reference as softmax

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
LAYOUTS = [[], [1], [1, 1, 1], [5, 1, 17, 0, 64, 2], [290, 1, 260, 3]]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def decay_of(channels: int) -> torch.Tensor:
    radius = torch.linspace(0.8, 0.995, channels)
    angle = torch.linspace(0.0, 6.0, channels)
    return torch.stack((radius * angle.cos(), radius * angle.sin()))


@pytest.fixture(params=[True, False], ids=["compiled", "eager"], autouse=True)
def form(request):
    with compiled(request.param):
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LAYOUTS)
@pytest.mark.parametrize("channels", [13, 128])
def test_recurrence(lengths, channels, dtype):
    reset = resets_of(lengths)
    inputs = [normal(len(reset), 2 * channels, dtype=dtype), decay_of(channels).to(dtype)]
    assert_matches(
        lambda u, decay: ops.diagonal_recurrence(u, decay, reset),
        lambda u, decay: recurrence.recurrence(u, decay, reset, None),
        inputs,
        slack=4,  # the slowest channel gathers the rounding of some 200 steps
    )


@pytest.mark.parametrize("carries", [True, False])
def test_recurrence_from_an_initial_state(carries):
    reset = resets_of([40, 3])
    reset[0] = not carries
    assert_matches(
        lambda *x: ops.diagonal_recurrence(x[0], x[1], reset, x[2]),
        lambda *x: recurrence.recurrence(x[0], x[1], reset, x[2]),
        [normal(43, 20), decay_of(10), normal(20)],
    )


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 90), max_size=8), channels=st.integers(1, 70))
def test_recurrence_over_random_layouts(lengths, channels):
    reset = resets_of(lengths)
    assert_matches(
        lambda u, decay: ops.diagonal_recurrence(u, decay, reset),
        lambda u, decay: recurrence.recurrence(u, decay, reset, None),
        [normal(len(reset), 2 * channels), decay_of(channels)],
    )


def test_recurrence_state_is_wide_when_the_input_is_narrow():
    # Sums of 4096 halves: a bf16 state would stand still at 128.
    u = torch.full((4096, 2), 0.5, dtype=torch.bfloat16)
    decay = torch.tensor([[1.0], [0.0]])
    h = ops.diagonal_recurrence(u, decay, resets_of([4096]))
    assert h[-1, 0] == 2048


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (5, 64), (70, 13), (131, 200), (2, 3, 96)])
def test_dropout_add_norm(shape, dtype, p):
    x, residual = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype).flip(0)
    weight, bias = 1 + 0.1 * normal(shape[-1]), normal(shape[-1])
    seed = torch.tensor(0)
    torch.manual_seed(7)
    seed.random_()
    seed = seed if p else None
    # A row of equal elements has no deviation: what it shows is the rounding of the inputs.
    width = {"slack": 4} if shape[-1] > 1 else {"slack": 100}
    assert_matches(
        lambda *a: ops.dropout_add_norm(*a, p=p, training=True),
        lambda *a: norm.add_norm(*a, p=p, seed=seed, eps=1e-5),
        [x, residual, weight.to(dtype), bias.to(dtype)],
        **width,
    )
    assert_matches(
        lambda x, w, b: ops.dropout_add_norm(x, None, w, b, p, training=False),
        lambda x, w, b: norm.add_norm(x, None, w, b, p, None, 1e-5),
        [x, weight.to(dtype), bias.to(dtype)],
        **width,
    )


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (5, 64), (70, 13), (131, 256), (2, 3, 96)])
def test_bias_gelu_dropout(shape, dtype, p):
    torch.manual_seed(7)
    seed = torch.tensor(0).random_() if p else None
    assert_matches(
        lambda x, b: ops.bias_gelu_dropout(x, b, p, training=True),
        lambda x, b: activation.gelu(x, b, p, seed),
        [2 * normal(*shape, dtype=dtype), normal(shape[-1], dtype=dtype)],
    )


def test_gelu_keeps_both_tails():
    x = torch.linspace(-9, 9, 4001)
    y = ops.bias_gelu_dropout(x[:, None], torch.zeros(1), 0.0, False)[:, 0]
    exact = x.double() * torch.special.ndtr(x.double())
    if y.isfinite().all():
        assert ((y - exact).abs() <= 2e-6 * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (1,), (), (130,), (5, 64), (3, 7, 11)])
def test_dropout(shape, dtype):
    torch.manual_seed(7)
    seed = torch.tensor(0).random_()
    assert_matches(
        lambda x: ops.dropout(x, 0.4, training=True),
        lambda x: drop.drop(x, 0.4, seed),
        [normal(*shape, dtype=dtype)],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(0, 8, 5), (1, 3, 2), (97, 64, 33), (250, 20, 500)])
def test_full_softmax_loss(shape, with_bias, dtype):
    tokens, width, classes = shape
    targets = torch.arange(tokens) * 7 % classes  # some are 0: not targets
    inputs = [normal(tokens, width, dtype=dtype), normal(classes, width, dtype=dtype)]
    if with_bias:
        inputs.append(normal(classes, dtype=dtype))

    def apply(loss):
        return lambda h, w, b=None: loss(h, w, b, targets)

    assert_matches(apply(ops.full_softmax_loss), apply(softmax.loss), inputs, slack=2)


def test_full_softmax_loss_of_a_large_catalogue():
    targets = torch.randint(0, 70_000, (150,), generator=torch.Generator().manual_seed(0))
    assert_matches(
        lambda h, w, b: ops.full_softmax_loss(h, w, b, targets),
        lambda h, w, b: softmax.loss(h, w, b, targets),
        [normal(150, 40), 0.3 * normal(70_000, 40), normal(70_000)],
        slack=2,
    )


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("classes", [500, 60_000])
def test_full_softmax_loss_is_accurate_for_sharp_logits(classes, scale):
    hidden, table = scale * normal(64, 32), normal(classes, 32)
    targets = torch.arange(1, 65)
    found = ops.full_softmax_loss(hidden, table, None, targets).double()
    want = torch.nn.functional.cross_entropy(
        hidden.double() @ table.double().T, targets, reduction="sum"
    )
    assert abs(found - want) < 1e-6 * want


def test_full_softmax_loss_without_any_target():
    inputs = [normal(4, 8), normal(9, 8), normal(9)]
    targets = torch.zeros(4, dtype=torch.int64)
    outputs = evaluate(lambda *x: ops.full_softmax_loss(*x, targets), inputs)
    assert all((output == 0).all() for output in outputs)


def test_full_softmax_loss_shows_what_is_not_a_number():
    table = normal(50, 8)
    table[3, 2] = float("nan")
    loss = ops.full_softmax_loss(normal(5, 8), table, None, torch.arange(5, 10))
    assert loss.isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 4, 3), (1, 4, 3), (90, 64, 256)])
def test_linear(shape, dtype):
    rows, width, out = shape
    inputs = [normal(rows, width, dtype=dtype), normal(out, width, dtype=dtype)]
    assert_matches(ops.linear, lambda x, w: dense.linear(x, w, None), inputs, slack=2)
    inputs.append(normal(out, dtype=dtype))
    assert_matches(ops.linear, dense.linear, inputs, slack=2)


def test_linear_under_autocast_rounds_to_bf16():
    x, weight, bias = normal(2, 30, 64), normal(16, 64), normal(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.linear(x, weight, bias)
    expected = dense.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), expected.float(), rtol=8e-3, atol=8e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LAYOUTS)
def test_causal_attention(lengths, dtype):
    offsets = offsets_of(lengths)
    shape = (sum(lengths), 2, 16)
    inputs = [normal(*shape, dtype=dtype).roll(i, 0) for i in range(3)]
    assert_matches(
        lambda q, k, v: ops.causal_attention(q, k, v, offsets),
        lambda q, k, v: attention.attention(q, k, v, offsets),
        inputs,
        slack=2,
    )


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 70), max_size=8))
def test_causal_attention_over_random_layouts(lengths):
    offsets = offsets_of(lengths)
    assert_matches(
        lambda q, k, v: ops.causal_attention(q, k, v, offsets),
        lambda q, k, v: attention.attention(q, k, v, offsets),
        [normal(sum(lengths), 2, 8).roll(i, 0) for i in range(3)],
        slack=2,
    )
