"""Every operation on the device against its reference in fp64 on the CPU."""

import math
from functools import partial

import torch

from benchmarks.gpu.bench import Bench, Operation, Row
from benchmarks.gpu.operations import decay_of
from models import ops
from models.ops.activation import reference as activation
from models.ops.attention import reference as attention
from models.ops.convolution import reference as convolution
from models.ops.drop import reference as drop
from models.ops.experts import reference as experts
from models.ops.linear_attention import reference as linear_attention
from models.ops.lookup import reference as lookup
from models.ops.norm import reference as norm
from models.ops.prefix_sum import reference as prefix_sum
from models.ops.product_keys import reference as product_keys
from models.ops.recurrence import reference as recurrence
from models.ops.sampled import reference as sampled
from models.ops.softmax import reference as softmax

# What rounding of inputs, sums and results justifies, relative to the largest element.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def parity(bench: Bench) -> None:
    """Every operation on the device against its reference in fp64 on the CPU."""
    few = bench.device == "cpu"
    lengths = torch.tensor([5, 1, 9, 2] if few else [5, 1, 130, 64, 2, 70])
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    tokens, d, rows = int(offsets[-1]), 16 if few else 64, 20 if few else 300
    reset = torch.zeros(tokens, dtype=torch.bool)
    reset[offsets[:-1]] = True
    places = torch.arange(tokens) * 7 % rows
    targets = torch.arange(tokens) * 7 % (rows + 1) - 1
    negatives = torch.randint(rows, (2, 9 if few else 200))
    weights = torch.randn(negatives.shape)
    block = -(-tokens // 2)
    seed = torch.tensor(0)

    def drawn(p: float, where: str) -> torch.Tensor | None:
        """The seed that an operation draws on a device, as reference.py wants it."""
        torch.manual_seed(7)
        seed.copy_(torch.empty((), dtype=torch.int64, device=where).random_())
        torch.manual_seed(7)
        return seed if p else None

    # Name: the operation, its reference, both with the layout where the tensors are; the inputs.
    flags = reset.to(bench.device)
    begins = offsets.to(bench.device)
    there = {id(x): x.to(bench.device) for x in (places, targets, negatives, weights)}

    def on(x: torch.Tensor) -> torch.Tensor:
        return there[id(x)]

    normal = torch.randn
    cases: dict[str, tuple[Operation, Operation, list[torch.Tensor]]] = {
        "recurrence": (
            lambda u, a: ops.diagonal_recurrence(u, a, flags),
            lambda u, a: recurrence.recurrence(u, a, reset, None),
            [normal(tokens, 2 * d), decay_of(d, "cpu").detach()],
        ),
        "prefix sum": (
            lambda x: ops.prefix_sum(x, flags),
            lambda x: prefix_sum.prefix_sum(x, reset, None),
            [normal(tokens, d)],
        ),
        "linear attention": (
            lambda q, k, v: ops.causal_linear_attention(q, k, v, flags),
            lambda q, k, v: linear_attention.attention(q, k, v, reset, None),
            [normal(tokens, 2, 16), normal(tokens, 2, 16) / 4, normal(tokens, 2, 16)],
        ),
        "experts": (
            lambda s, q, k, v: ops.running_softmax_experts(s, q, k, v, flags),
            lambda s, q, k, v: experts.experts(s, q, k, v, reset, None),
            [normal(tokens, 2, 6), *(normal(tokens, 2, 16) for _ in range(3))],
        ),
        "convolution": (
            lambda x, w, b: ops.causal_convolution(x, w, b, flags),
            lambda x, w, b: convolution.convolution(x, w, b, reset, None),
            [normal(tokens, d), normal(d, 4), normal(d)],
        ),
        "attention": (
            lambda q, k, v: ops.attention(q, k, v, begins),
            lambda q, k, v: attention.attention(q, k, v, offsets, True),
            [normal(tokens, 2, 16) for _ in range(3)],
        ),
        "norm, dropout": (
            lambda x, y, w, b: ops.dropout_add_norm(x, y, w, b, 0.3, True),
            lambda x, y, w, b: norm.add_norm(x, y, w, b, 0.3, drawn(0.3, bench.device), 1e-5),
            [normal(tokens, d), normal(tokens, d), normal(d), normal(d)],
        ),
        "gelu, dropout": (
            lambda x, b: ops.bias_gelu_dropout(x, b, 0.3, True),
            lambda x, b: activation.gelu(x, b, 0.3, drawn(0.3, bench.device)),
            [normal(tokens, d), normal(d)],
        ),
        "dropout": (
            lambda x: ops.dropout(x, 0.3, True),
            lambda x: drop.drop(x, 0.3, drawn(0.3, bench.device)),
            [normal(tokens, d)],
        ),
        "lookup": (
            lambda table: ops.lookup(table, on(places)),
            lambda table: lookup.lookup(table, places),
            [normal(rows, d)],
        ),
        "full softmax": (
            lambda h, w, b: ops.full_softmax_loss(h, w, b, on(places)),
            lambda h, w, b: softmax.loss(h, w, b, places),
            [normal(tokens, d), normal(rows, d), normal(rows)],
        ),
        "sampled softmax": (
            lambda h, w, b: ops.sampled_softmax_loss(
                h, w, b, on(targets), on(negatives), on(weights), block
            ),
            lambda h, w, b: sampled.softmax(h, w, b, targets, negatives, weights, block),
            [normal(tokens, d), normal(rows, d), normal(rows)],
        ),
        "sampled binary": (
            lambda h, w, b: ops.sampled_binary_loss(
                h, w, b, on(targets), on(negatives), 0.3, block
            ),
            lambda h, w, b: sampled.binary(h, w, b, targets, negatives, 0.3, block),
            [normal(tokens, d), normal(rows, d), normal(rows)],
        ),
    }
    for name, (operation, reference, inputs) in cases.items():
        for dtype in TOLERANCE:
            bench.case(
                "parity",
                f"{name}, {dtype}".replace("torch.", ""),
                partial(compare, bench, operation, reference, inputs, dtype),
            )

    def best_slots() -> Row:
        query, keys = normal(tokens, 2, 16), normal(2, 2, 8, 8)
        slots = ops.product_key_top(query.to(bench.device), keys.to(bench.device), 4)[1].cpu()
        wrong = int((slots != product_keys.top(query, keys, 4)[1]).sum())
        return Row("", "", error=wrong, note="" if not wrong else f"FAILED: {wrong} other slots")

    bench.case("parity", "product keys, slots", best_slots)


def compare(
    bench: Bench,
    operation: Operation,
    reference: Operation,
    inputs: list[torch.Tensor],
    dtype: torch.dtype,
) -> Row:
    """The largest difference of values and gradients, relative to the largest element or one."""

    def evaluated(function: Operation, where: str, as_dtype: torch.dtype) -> list[torch.Tensor]:
        rounded = [x.detach().to(dtype).to(where, as_dtype, copy=True) for x in inputs]
        leaves = [x.requires_grad_() for x in rounded]
        torch.manual_seed(7)
        y = function(*leaves)
        upstream = torch.linspace(-1, 1, y.numel() or 1).view(y.shape) if y.dim() else None
        y.backward(None if upstream is None else upstream.to(dtype).to(y))
        return [y.detach(), *(x.grad for x in leaves if x.grad is not None)]

    found = evaluated(operation, bench.device, dtype)
    wanted = evaluated(reference, "cpu", torch.float64)
    errors = [
        float((got.cpu().double() - want).abs().max() / want.abs().max().clamp(min=1.0))
        for got, want in zip(found, wanted, strict=True)
    ]
    worst = max(errors, key=lambda error: math.inf if math.isnan(error) else error)
    passed = worst < TOLERANCE[dtype]
    return Row("", "", error=worst, note="" if passed else f"FAILED: above {TOLERANCE[dtype]:g}")
