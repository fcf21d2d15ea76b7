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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_softmax_loss_of_a_large_catalogue(dtype):
    targets = torch.randint(0, 70_000, (150,), generator=torch.Generator().manual_seed(0))
    inputs = [normal(150, 40), 0.3 * normal(70_000, 40), normal(70_000)]
    assert_matches(
        lambda h, w, b: ops.full_softmax_loss(h, w, b, targets),
        lambda h, w, b: softmax.loss(h, w, b, targets),
        [x.to(dtype) for x in inputs],
        slack=2,
    )


@pytest.mark.parametrize("device", ["compiled", "triton"], indirect=True)
@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_factors_are_rounded_under_autocast(kind, device):
    """Sums are not: the loss is that of the rounded factors, to fp32."""
    inputs, targets, negatives, weights = sampled_inputs(
        (97, 64, 33, 40, 97), torch.float32, True, device
    )

    def loss(hidden, rows, bias):
        if kind == "full":
            return ops.full_softmax_loss(hidden, rows, bias, targets.clamp(min=0))
        return ops.sampled_softmax_loss(hidden, rows, bias, targets, negatives, weights, 97)

    def cast(*given):
        with torch.autocast(device, torch.bfloat16):
            return loss(*given)

    rounded = [x.bfloat16().double() for x in inputs[:2]] + [inputs[2].double()]
    found, exact = evaluate(cast, inputs), evaluate(loss, rounded)
    assert found[0].item() == pytest.approx(exact[0].item(), rel=1e-6)
    for got, want in zip(found[1:], exact[1:], strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() < 0.01 * want.norm()


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
SAMPLED = [(1, 3, 2, 1, 1), (97, 64, 33, 20, 97), (110, 20, 90, 70, 60), (60, 33, 90, 50, 1000)]
LARGE = (250, 20, 500, 300, 110)


def sampled_inputs(shape, dtype, with_bias, device):
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
    inputs = [tensor.to(device) for tensor in inputs]
    return inputs, targets.to(device), negatives.to(device), weights.to(device)


@every_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SAMPLED)
def test_sampled_softmax_loss(shape, with_bias, dtype, device):
    inputs, *rest = sampled_inputs(shape, dtype, with_bias, device)
    assert_matches(
        lambda h, w, b=None: ops.sampled_softmax_loss(h, w, b, *rest, shape[-1]),
        lambda h, w, b=None: sampled.softmax(h, w, b, *rest, shape[-1]),
        inputs,
        slack=2,
    )


@every_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SAMPLED)
def test_sampled_binary_loss(shape, with_bias, dtype, device):
    inputs, targets, negatives, _ = sampled_inputs(shape, dtype, with_bias, device)
    assert_matches(
        lambda h, w, b=None: ops.sampled_binary_loss(h, w, b, targets, negatives, 0.3, shape[-1]),
        lambda h, w, b=None: sampled.binary(h, w, b, targets, negatives, 0.3, shape[-1]),
        inputs,
        slack=2,
    )


@every_form
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_sampled_losses_are_accurate_for_sharp_logits(scale, device):
    shape = (70, 20, 90, 50, 40)
    inputs, targets, negatives, weights = sampled_inputs(shape, torch.float32, True, device)
    inputs[0] *= scale
    wide = [tensor.double() for tensor in inputs]
    found = ops.sampled_softmax_loss(*inputs, targets, negatives, weights, 110)
    want = sampled.softmax(*wide, targets, negatives, weights, 110)
    assert abs(found - want) < 1e-6 * want
    found = ops.sampled_binary_loss(*inputs, targets, negatives, 0.3, 110)
    want = sampled.binary(*wide, targets, negatives, 0.3, 110)
    assert abs(found - want) < 1e-6 * want


@pytest.mark.parametrize("dtype", DTYPES)
def test_sampled_losses_of_many_negatives(dtype, device):
    inputs, targets, negatives, weights = sampled_inputs(LARGE, dtype, True, device)
    rest = targets, negatives
    assert_matches(
        lambda *x: ops.sampled_softmax_loss(*x, *rest, weights, LARGE[-1]),
        lambda *x: sampled.softmax(*x, *rest, weights, LARGE[-1]),
        inputs,
        slack=2,
    )
    assert_matches(
        lambda *x: ops.sampled_binary_loss(*x, *rest, 0.3, LARGE[-1]),
        lambda *x: sampled.binary(*x, *rest, 0.3, LARGE[-1]),
        inputs,
        slack=2,
    )


@every_form
@pytest.mark.parametrize("blocks", [0, 1])
def test_sampled_losses_without_any_target(blocks, device):
    inputs = [x.to(device) for x in (normal(4, 8), normal(blocks, 8), normal(blocks))]
    targets = torch.full((4,), -1, device=device)
    negatives = torch.zeros(blocks, 3, dtype=torch.int64, device=device)
    losses = [
        lambda *x: ops.sampled_softmax_loss(*x, targets, negatives, negatives.float(), 4),
        lambda *x: ops.sampled_binary_loss(*x, targets, negatives, 1.0, 4),
    ]
    for loss in losses:
        assert all((output == 0).all() for output in evaluate(loss, inputs))


@every_form
def test_sampled_losses_show_what_is_not_a_number(device):
    rows = normal(50, 8).to(device)
    rows[3, 2] = float("nan")
    targets, negatives = torch.arange(5, 10).to(device), torch.tensor([[1, 3]]).to(device)
    weights = torch.zeros(1, 2, device=device)
    hidden = normal(5, 8).to(device)
    assert ops.sampled_softmax_loss(hidden, rows, None, targets, negatives, weights, 5).isnan()
    assert ops.sampled_binary_loss(hidden, rows, None, targets, negatives, 1.0, 5).isnan()


@pytest.mark.parametrize("programs", [1, 40])
@pytest.mark.parametrize("device", ["triton"], indirect=True)
def test_sampled_losses_however_they_are_shared_out(device, programs, monkeypatch):
    from models.ops.sampled import triton as kernels

    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    shape = (140, 20, 90, 40, 130)
    inputs, *rest = sampled_inputs(shape, torch.float32, True, device)
    assert_matches(
        lambda *x: ops.sampled_softmax_loss(*x, *rest, shape[-1]),
        lambda *x: sampled.softmax(*x, *rest, shape[-1]),
        inputs,
        slack=2,
    )


@every_form
def test_sampled_losses_with_blocks_to_spare(device):
    inputs, targets, negatives, weights = sampled_inputs((24, 5, 9, 4, 5), torch.float32, 1, device)
    spare = torch.cat((negatives, negatives)), torch.cat((weights, weights))
    found = evaluate(lambda *x: ops.sampled_softmax_loss(*x, targets, *spare, 5), inputs)
    want = evaluate(lambda *x: ops.sampled_softmax_loss(*x, targets, negatives, weights, 5), inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
