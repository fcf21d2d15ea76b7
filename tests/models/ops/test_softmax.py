"""Every form of the losses' operations against its reference in fp64: values, gradients, dtypes."""

import pytest
import torch
from op_forms import assert_matches, evaluate, form

from models import ops
from models.ops.sampled import reference as sampled
from models.ops.softmax import reference as softmax

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.fixture(params=["compiled", "eager"], autouse=True)
def device(request):
    """The device of the form under test, which is in use meanwhile."""
    with form(request.param) as device:
        yield device


every_form = pytest.mark.parametrize("device", ["compiled", "eager", "triton"], indirect=True)


@every_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(0, 8, 5), (1, 3, 2), (97, 64, 33), (250, 20, 500)])
def test_full_softmax_loss(shape, with_bias, dtype, device):
    tokens, width, classes = shape
    targets = (torch.arange(tokens) * 7 % classes).to(device)  # some are 0: not targets
    inputs = [normal(tokens, width, dtype=dtype), normal(classes, width, dtype=dtype)]
    if with_bias:
        inputs.append(normal(classes, dtype=dtype))

    def apply(loss):
        return lambda h, w, b=None: loss(h, w, b, targets)

    inputs = [tensor.to(device) for tensor in inputs]
    assert_matches(apply(ops.full_softmax_loss), apply(softmax.loss), inputs, slack=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("programs", [1, 12])
@pytest.mark.parametrize("device", ["triton"], indirect=True)
def test_full_softmax_loss_however_it_is_shared_out(device, programs, dtype, monkeypatch):
    from models.ops.softmax import triton as kernels

    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    targets = (torch.arange(250) * 7 % 500).to(device)
    inputs = [normal(250, 70), normal(500, 70), normal(500)]
    assert_matches(
        lambda *x: ops.full_softmax_loss(*x, targets),
        lambda *x: softmax.loss(*x, targets),
        [x.to(device, dtype) for x in inputs],
        slack=2,
    )


@pytest.mark.parametrize(("width", "served"), [(128, True), (129, False)])
@pytest.mark.parametrize("device", ["triton"], indirect=True)
def test_full_softmax_loss_leaves_wide_tables_to_the_library(device, width, served, monkeypatch):
    from models.ops.softmax import triton as kernels

    asked = []
    known = kernels.loss
    monkeypatch.setattr(kernels, "loss", lambda *a: asked.append(a) or known(*a))
    inputs = [normal(5, width).to(device), normal(40, width).to(device)]
    loss = ops.full_softmax_loss(*inputs, None, torch.arange(1, 6, device=device))
    assert loss.isfinite()
    assert bool(asked) == served


def test_full_softmax_loss_of_a_large_catalogue():
    targets = torch.randint(0, 70_000, (150,), generator=torch.Generator().manual_seed(0))
    assert_matches(
        lambda h, w, b: ops.full_softmax_loss(h, w, b, targets),
        lambda h, w, b: softmax.loss(h, w, b, targets),
        [normal(150, 40), 0.3 * normal(70_000, 40), normal(70_000)],
        slack=2,
    )


@pytest.mark.parametrize(
    ("device", "classes"),
    [("compiled", 500), ("compiled", 60_000), ("eager", 500), ("eager", 60_000), ("triton", 500)],
    indirect=["device"],
)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_full_softmax_loss_is_accurate_for_sharp_logits(classes, scale, device):
    hidden, table = (scale * normal(64, 32)).to(device), normal(classes, 32).to(device)
    targets = torch.arange(1, 65, device=device)
    found = ops.full_softmax_loss(hidden, table, None, targets).double()
    want = torch.nn.functional.cross_entropy(
        hidden.double() @ table.double().T, targets, reduction="sum"
    )
    assert abs(found - want) < 1e-6 * want


@every_form
def test_full_softmax_loss_without_any_target(device):
    inputs = [x.to(device) for x in (normal(4, 8), normal(9, 8), normal(9))]
    targets = torch.zeros(4, dtype=torch.int64, device=device)
    outputs = evaluate(lambda *x: ops.full_softmax_loss(*x, targets), inputs)
    assert all((output == 0).all() for output in outputs)


@every_form
def test_full_softmax_loss_shows_what_is_not_a_number(device):
    table = normal(50, 8).to(device)
    table[3, 2] = float("nan")
    targets = torch.arange(5, 10, device=device)
    loss = ops.full_softmax_loss(normal(5, 8).to(device), table, None, targets)
    assert loss.isnan()


# Tokens, width, rows, negatives, tokens of a block.
SAMPLED = [(1, 3, 2, 1, 1), (97, 64, 33, 20, 97), (250, 20, 500, 300, 110), (400, 33, 90, 50, 1000)]


def sampled_inputs(shape, dtype, with_bias):
    """hidden, rows and bias; targets of which some are none and some among the negatives of their
    block, which name some rows twice; weights of the negatives."""
    tokens, width, classes, count, block = shape
    targets = torch.arange(tokens) * 7 % (classes + 1) - 1
    generator = torch.Generator().manual_seed(1)
    blocks = -(-tokens // block)
    negatives = torch.randint(classes, (blocks, count), generator=generator)
    weights = torch.randn(blocks, count, generator=generator)
    inputs = [normal(tokens, width, dtype=dtype), normal(classes, width, dtype=dtype)]
    if with_bias:
        inputs.append(normal(classes, dtype=dtype))
    return inputs, targets, negatives, weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SAMPLED)
def test_sampled_softmax_loss(shape, with_bias, dtype):
    inputs, *rest = sampled_inputs(shape, dtype, with_bias)
    assert_matches(
        lambda h, w, b=None: ops.sampled_softmax_loss(h, w, b, *rest, shape[-1]),
        lambda h, w, b=None: sampled.softmax(h, w, b, *rest, shape[-1]),
        inputs,
        slack=2,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SAMPLED)
def test_sampled_binary_loss(shape, with_bias, dtype):
    inputs, targets, negatives, _ = sampled_inputs(shape, dtype, with_bias)
    assert_matches(
        lambda h, w, b=None: ops.sampled_binary_loss(h, w, b, targets, negatives, 0.3, shape[-1]),
        lambda h, w, b=None: sampled.binary(h, w, b, targets, negatives, 0.3, shape[-1]),
        inputs,
        slack=2,
    )


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_sampled_losses_are_accurate_for_sharp_logits(scale):
    inputs, targets, negatives, weights = sampled_inputs((250, 20, 500, 300, 110), torch.float32, 1)
    inputs[0] *= scale
    wide = [tensor.double() for tensor in inputs]
    found = ops.sampled_softmax_loss(*inputs, targets, negatives, weights, 110)
    want = sampled.softmax(*wide, targets, negatives, weights, 110)
    assert abs(found - want) < 1e-6 * want
    found = ops.sampled_binary_loss(*inputs, targets, negatives, 0.3, 110)
    want = sampled.binary(*wide, targets, negatives, 0.3, 110)
    assert abs(found - want) < 1e-6 * want


def test_sampled_losses_without_any_target():
    inputs = [normal(4, 8), normal(0, 8), normal(0)]
    targets, negatives = torch.full((4,), -1), torch.zeros(0, 3, dtype=torch.int64)
    losses = [
        lambda *x: ops.sampled_softmax_loss(*x, targets, negatives, negatives.float(), 4),
        lambda *x: ops.sampled_binary_loss(*x, targets, negatives, 1.0, 4),
    ]
    for loss in losses:
        assert all((output == 0).all() for output in evaluate(loss, inputs))


def test_sampled_losses_show_what_is_not_a_number():
    rows = normal(50, 8)
    rows[3, 2] = float("nan")
    targets, negatives = torch.arange(5, 10), torch.tensor([[1, 3]])
    weights = torch.zeros(1, 2)
    hidden = normal(5, 8)
    assert ops.sampled_softmax_loss(hidden, rows, None, targets, negatives, weights, 5).isnan()
    assert ops.sampled_binary_loss(hidden, rows, None, targets, negatives, 1.0, 5).isnan()
