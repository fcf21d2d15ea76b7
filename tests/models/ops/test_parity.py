"""Every form of every operation against its reference in fp64: values, gradients, dtypes.

Those of the losses are in test_softmax.py.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_forms import assert_matches, form, resets_of, threads

from models import ops
from models.ops.activation import reference as activation
from models.ops.dense import reference as dense
from models.ops.drop import reference as drop
from models.ops.linear_attention import reference as linear_attention
from models.ops.norm import reference as norm
from models.ops.prefix_sum import reference as prefix_sum
from models.ops.recurrence import reference as recurrence

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
LAYOUTS = [[], [1], [1, 1, 1], [5, 1, 17, 0, 64, 2], [290, 1, 260, 3]]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def decay_of(channels: int) -> torch.Tensor:
    radius = torch.linspace(0.8, 0.995, channels)
    angle = torch.linspace(0.0, 6.0, channels)
    return torch.stack((radius * angle.cos(), radius * angle.sin()))


@pytest.fixture(params=["compiled", "eager"], autouse=True)
def device(request):
    """The device of the form under test, which is in use meanwhile."""
    with form(request.param) as device:
        yield device


# For operations that have a Triton form too.
every_form = pytest.mark.parametrize("device", ["compiled", "eager", "triton"], indirect=True)
# The fixture does the same before every example.
fifteen_examples = settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@every_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LAYOUTS)
@pytest.mark.parametrize("channels", [13, 128])
def test_recurrence(lengths, channels, dtype, device):
    reset = resets_of(lengths).to(device)
    inputs = [normal(len(reset), 2 * channels, dtype=dtype), decay_of(channels).to(dtype)]
    assert_matches(
        lambda u, decay: ops.diagonal_recurrence(u, decay, reset),
        lambda u, decay: recurrence.recurrence(u, decay, reset, None),
        [tensor.to(device) for tensor in inputs],
        slack=4,  # the slowest channel gathers the rounding of some 200 steps
    )


@every_form
@pytest.mark.parametrize("carries", [True, False])
def test_recurrence_from_an_initial_state(carries, device):
    reset = resets_of([40, 3]).to(device)
    reset[0] = not carries
    assert_matches(
        lambda *x: ops.diagonal_recurrence(x[0], x[1], reset, x[2]),
        lambda *x: recurrence.recurrence(x[0], x[1], reset, x[2]),
        [tensor.to(device) for tensor in (normal(43, 20), decay_of(10), normal(20))],
    )


@every_form
@fifteen_examples
@given(lengths=st.lists(st.integers(0, 90), max_size=8), channels=st.integers(1, 70))
def test_recurrence_over_random_layouts(device, lengths, channels):
    reset = resets_of(lengths).to(device)
    assert_matches(
        lambda u, decay: ops.diagonal_recurrence(u, decay, reset),
        lambda u, decay: recurrence.recurrence(u, decay, reset, None),
        [normal(len(reset), 2 * channels).to(device), decay_of(channels).to(device)],
        slack=4,  # as above: up to 90 steps of the slowest channel
    )


@every_form
def test_recurrence_state_is_wide_when_the_input_is_narrow(device):
    # Sums of 512 halves: a bf16 state would stand still at 128.
    u = torch.full((512, 2), 0.5, dtype=torch.bfloat16, device=device)
    decay = torch.tensor([[1.0], [0.0]], device=device)
    h = ops.diagonal_recurrence(u, decay, resets_of([512]).to(device))
    assert h[-1, 0] == 256


@every_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LAYOUTS)
@pytest.mark.parametrize("width", [13, 130])
def test_prefix_sum(lengths, width, dtype, device):
    reset = resets_of(lengths).to(device)
    assert_matches(
        lambda x: ops.prefix_sum(x, reset),
        lambda x: prefix_sum.prefix_sum(x, reset, None),
        [normal(len(reset), width, dtype=dtype).to(device)],
    )


@every_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("carries", [True, False])
@pytest.mark.parametrize("lengths", [[], [40, 3], [70]])
def test_prefix_sum_from_an_initial_sum(lengths, carries, dtype, device):
    reset = resets_of(lengths).to(device)
    reset[:1] = not carries
    assert_matches(
        lambda x, initial: ops.prefix_sum(x, reset, initial),
        lambda x, initial: prefix_sum.prefix_sum(x, reset, initial),
        [x.to(device) for x in (normal(len(reset), 20, dtype=dtype), normal(20, dtype=dtype))],
    )


@every_form
@fifteen_examples
@given(lengths=st.lists(st.integers(0, 90), max_size=8), width=st.integers(1, 140))
def test_prefix_sum_over_random_layouts(device, lengths, width):
    reset = resets_of(lengths).to(device)
    assert_matches(
        lambda x: ops.prefix_sum(x, reset),
        lambda x: prefix_sum.prefix_sum(x, reset, None),
        [normal(len(reset), width).to(device)],
    )


@every_form
def test_prefix_sum_neither_stands_still_nor_cancels(device):
    # A bf16 sum would stand still at 128; a difference of sums would lose the second segment.
    x = torch.full((1016, 1), 0.5, dtype=torch.bfloat16, device=device)
    x[:504] *= 2.0**60
    sums = ops.prefix_sum(x, resets_of([504, 512]).to(device))
    assert sums[-1] == 256


def heads_of(tokens: int, m: int, n: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """q, k and v of two heads; k so small that o and S are of the size of v."""
    q, k = normal(tokens, 2, m).roll(1, 0), normal(tokens, 2, m).roll(2, 0) / m**0.5
    return [x.to(device, dtype) for x in (q, k, normal(tokens, 2, n))]


@every_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LAYOUTS)
@pytest.mark.parametrize(("m", "n"), [(16, 16), (5, 67), (100, 3)])
def test_linear_attention(lengths, m, n, dtype, device):
    reset = resets_of(lengths).to(device)
    assert_matches(
        lambda q, k, v: ops.causal_linear_attention(q, k, v, reset),
        lambda q, k, v: linear_attention.attention(q, k, v, reset, None),
        heads_of(len(reset), m, n, dtype, device),
        slack=2,  # S and then o are rounded
    )


@every_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("carries", [True, False])
@pytest.mark.parametrize("lengths", [[], [40, 3], [70]])
def test_linear_attention_from_an_initial_state(lengths, carries, dtype, device):
    reset = resets_of(lengths).to(device)
    reset[:1] = not carries
    assert_matches(
        lambda q, k, v, initial: ops.causal_linear_attention(q, k, v, reset, initial),
        lambda q, k, v, initial: linear_attention.attention(q, k, v, reset, initial),
        [*heads_of(len(reset), 9, 20, dtype, device), normal(2, 9, 20, dtype=dtype).to(device)],
        slack=2,
    )


@every_form
@fifteen_examples
@given(lengths=st.lists(st.integers(0, 90), max_size=8), m=st.integers(1, 40), n=st.integers(1, 40))
def test_linear_attention_over_random_layouts(device, lengths, m, n):
    reset = resets_of(lengths).to(device)
    assert_matches(
        lambda q, k, v: ops.causal_linear_attention(q, k, v, reset),
        lambda q, k, v: linear_attention.attention(q, k, v, reset, None),
        heads_of(len(reset), m, n, torch.float32, device),
        slack=2,
    )


@every_form
def test_linear_attention_state_is_wide_when_the_operands_are_narrow(device):
    x = torch.ones(512, 1, 1, dtype=torch.bfloat16, device=device)
    reset = resets_of([512]).to(device)
    # A bf16 state would stand still at 128.
    assert ops.causal_linear_attention(x, x / 2, x, reset)[-1] == 256


def seed_drawn(device: str) -> torch.Tensor:
    """What an operation draws first after ``evaluate`` has seeded the generators."""
    torch.manual_seed(7)
    return torch.empty((), dtype=torch.int64, device=device).random_()


@every_form
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (5, 64), (70, 13), (37, 200), (2, 3, 96)])
def test_dropout_add_norm(shape, dtype, p, device):
    x, residual = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype).flip(0)
    weight, bias = 1 + 0.1 * normal(shape[-1]), normal(shape[-1])
    seed = seed_drawn(device) if p else None
    # A row of equal elements has no deviation: what it shows is the rounding of the inputs.
    width = {"slack": 4} if shape[-1] > 1 else {"slack": 100}
    assert_matches(
        lambda *a: ops.dropout_add_norm(*a, p=p, training=True),
        lambda *a: norm.add_norm(*a, p=p, seed=seed, eps=1e-5),
        [t.to(device, dtype) for t in (x, residual, weight, bias)],
        **width,
    )
    assert_matches(
        lambda x, w, b: ops.dropout_add_norm(x, None, w, b, p, training=False),
        lambda x, w, b: norm.add_norm(x, None, w, b, p, None, 1e-5),
        [t.to(device, dtype) for t in (x, weight, bias)],
        **width,
    )


@every_form
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (5, 64), (70, 13), (37, 256), (2, 3, 96)])
def test_bias_gelu_dropout(shape, dtype, p, device):
    seed = seed_drawn(device) if p else None
    assert_matches(
        lambda x, b: ops.bias_gelu_dropout(x, b, p, training=True),
        lambda x, b: activation.gelu(x, b, p, seed),
        [t.to(device, dtype) for t in (2 * normal(*shape, dtype=dtype), normal(shape[-1]))],
    )


@every_form
def test_gelu_keeps_both_tails(device):
    x = torch.linspace(-9, 9, 4001, device=device)
    y = ops.bias_gelu_dropout(x[None], torch.zeros_like(x), 0.0, False)[0]
    exact = x.double() * torch.special.ndtr(x.double())
    if y.isfinite().all():
        assert ((y - exact).abs() <= 2e-6 * exact.abs() + 1e-6).all()


@every_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (1,), (), (130,), (5, 64), (3, 7, 11)])
def test_dropout(shape, dtype, device):
    seed = seed_drawn(device)
    assert_matches(
        lambda x: ops.dropout(x, 0.4, training=True),
        lambda x: drop.drop(x, 0.4, seed),
        [normal(*shape, dtype=dtype).to(device)],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 4, 3), (1, 4, 3), (90, 64, 256)])
def test_linear(shape, dtype):
    rows, width, out = shape
    inputs = [normal(rows, width, dtype=dtype), normal(out, width, dtype=dtype)]
    assert_matches(ops.linear, lambda x, w: dense.linear(x, w, None), inputs, slack=2)
    inputs.append(normal(out, dtype=dtype))
    assert_matches(ops.linear, dense.linear, inputs, slack=2)


@pytest.mark.parametrize(("rows", "width", "out"), [(300, 64, 96), (256, 32, 64), (700, 61, 70)])
def test_linear_of_many_rows(rows, width, out):
    """As a training step has them: kernels of their own where there are 512-bit vectors."""
    inputs = [normal(rows, width), normal(out, width), normal(out)]
    assert_matches(ops.linear, dense.linear, inputs, slack=2)
    assert_matches(ops.linear, lambda x, w: dense.linear(x, w, None), inputs[:2], slack=2)


def test_a_weight_s_gradient_does_not_depend_on_the_number_of_threads():
    x, weight, bias, dy = normal(900, 64), normal(100, 64), normal(100), normal(900, 100)
    leaves = weight.requires_grad_(), bias.requires_grad_()
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(torch.autograd.grad(ops.linear(x, *leaves), leaves, dy))
    assert all(map(torch.equal, found[0], other) for other in found[1:])


def test_linear_under_autocast_rounds_to_bf16():
    x, weight, bias = normal(2, 30, 64), normal(16, 64), normal(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.linear(x, weight, bias)
    expected = dense.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), expected.float(), rtol=8e-3, atol=8e-3)


@pytest.mark.parametrize("device", ["triton"], indirect=True)
def test_gradients_however_few_programs_sum_them(device, monkeypatch):
    from models.ops.activation import triton as activation_kernels
    from models.ops.norm import triton as norm_kernels

    monkeypatch.setattr(activation_kernels, "PROGRAMS", 2)
    monkeypatch.setattr(norm_kernels, "PROGRAMS", 2)
    seed = seed_drawn(device)
    x, bias = normal(70, 130).to(device), normal(130).to(device)
    assert_matches(
        lambda x, b: ops.bias_gelu_dropout(x, b, 0.3, training=True),
        lambda x, b: activation.gelu(x, b, 0.3, seed),
        [x, bias],
    )
    assert_matches(
        lambda x, r, w, b: ops.dropout_add_norm(x, r, w, b, p=0.3, training=True),
        lambda x, r, w, b: norm.add_norm(x, r, w, b, p=0.3, seed=seed, eps=1e-5),
        [x, x.flip(0), bias.flip(0), bias],
        slack=4,
    )
