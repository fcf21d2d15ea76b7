"""What the operations and a training step cost on one GPU, beside what its memory could do.

    python -m benchmarks.gpu --output results --minutes 8

Needs Python, torch, Triton, numpy, this checkout, and pydantic (with pydantic-core,
annotated-types and typing-inspection), which is the one package a machine with torch tends to lack:
`pip download --only-binary=:all: -d wheels pydantic` elsewhere, and there
`pip install --no-index --find-links wheels pydantic`. Nothing else of the project is imported, and
no data are read. `--check` runs all in miniature through Triton's interpreter, without a GPU.

The most important comes first. A case that fails is told in the table and the rest goes on; what
the time does not suffice for is named. A floor is the least time in which the bytes can be moved
and the products be made, at the rates of the first two rows, which the same run measures.
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import models
from models import PackedBatch, ops
from models.losses import Loss, LossConfig, build_loss
from models.ops import gpu
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
BF16 = torch.bfloat16
Operation = Callable[..., Any]


@dataclass(frozen=True)
class Row:
    """A line of the result. milliseconds: the median. per_second: of what ``unit`` says."""

    section: str
    case: str
    milliseconds: float | None = None
    floor: float | None = None
    per_second: float | None = None
    unit: str = ""
    gigabytes: float | None = None
    error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """How large the cases are."""

    segments: int = 256
    length: int = 2048
    tokens: int = 131_072
    classes: tuple[int, ...] = (100_000, 1_000_000)
    targets: int = 16_384
    negatives: int = 1024
    d: int = 64
    side: int = 128
    repeats: int = 20
    seconds: float = 0.5  # a case, at most, of repeats

    @property
    def packed(self) -> int:
        """Tokens of all segments."""
        return self.segments * self.length


SMALL = Scale(2, 16, 20, (40,), 10, 8, 16, 8, 1)


class Bench:
    """One run: the device, its rates, the deadline, and what came out."""

    def __init__(self, scale: Scale, minutes: float) -> None:
        self.scale = scale
        self.device = "cpu" if gpu.interpreting else "cuda"
        self.deadline = time.monotonic() + 60 * minutes
        self.bytes_per_second = self.products_per_second = math.inf
        self.rows: list[Row] = []

    def case(self, section: str, name: str, run: Callable[[], Row | None]) -> None:
        """Keep what a case gives, or why it gave nothing."""
        if time.monotonic() > self.deadline:
            row = Row(section, name, note="not reached: the time was up")
        else:
            try:
                given = run()
                row = (given and replace(given, section=section, case=name)) or Row(section, name)
            except Exception as error:  # one failure must not cost the others
                reason = str(error).strip().splitlines() or [""]
                row = Row(section, name, note=f"FAILED: {type(error).__name__}: {reason[0][:150]}")
        self.rows.append(row)
        print(f"{section}: {cells(row)}", flush=True)

    def time(self, run: Callable[[], Any]) -> float:
        """The median of some runs, in milliseconds of the device."""
        if self.device == "cpu":
            began = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        each = (time.perf_counter() - began) / 3  # the first compiles; an upper bound will do
        taken = []
        for _ in range(max(5, min(self.scale.repeats, int(self.scale.seconds / max(each, 1e-6))))):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end))
        return float(statistics.median(taken))

    def floor(self, bytes_moved: float, operations: float = 0) -> float:
        """Milliseconds: what memory and arithmetic take where one hides the other."""
        seconds = max(bytes_moved / self.bytes_per_second, operations / self.products_per_second)
        return 1e3 * seconds

    def normal(self, *shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
        """Random numbers, of which a gradient is wanted."""
        return torch.randn(shape, device=self.device).to(dtype).requires_grad_()

    def both_ways(
        self,
        section: str,
        name: str,
        operation: Operation,
        inputs: list[torch.Tensor],
        *,
        moved: tuple[int, int],
        operations: tuple[int, int] = (0, 0),
        tokens: int,
    ) -> None:
        """Time an operation's forward and its backward pass: bytes moved and floor of each."""

        def forward() -> Row:
            with torch.no_grad():
                took = self.time(lambda: operation(*inputs))
            least = self.floor(moved[0], operations[0])
            return Row("", "", took, least, 1e3 * tokens / took, "tokens")

        def backward() -> Row:
            wanted = [x for x in inputs if x.requires_grad]
            y = operation(*inputs)
            dy = torch.randn_like(y)
            took = self.time(lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True))
            least = self.floor(moved[1], operations[1])
            return Row("", "", took, least, 1e3 * tokens / took, "tokens")

        self.case(section, f"{name}, forward", forward)
        self.case(section, f"{name}, backward", backward)

    def layout(self, segments: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Reset flags and offsets of equal segments."""
        offsets = torch.arange(segments + 1, device=self.device) * length
        reset = torch.zeros(segments * length, dtype=torch.bool, device=self.device)
        reset[offsets[:-1]] = True
        return reset, offsets


def device(bench: Bench) -> None:
    """The rates that floors are computed from."""
    small = bench.device == "cpu"

    def copy() -> Row:
        source = torch.empty(1 << (16 if small else 31), dtype=torch.uint8, device=bench.device)
        target = torch.empty_like(source)
        took = bench.time(lambda: target.copy_(source))
        bench.bytes_per_second = 2e3 * source.numel() / took
        return Row("", "", took, None, bench.bytes_per_second, "bytes")

    def product() -> Row:
        n = 64 if small else 8192
        a = torch.randn(n, n, device=bench.device).to(BF16)
        took = bench.time(lambda: a @ a)
        bench.products_per_second = 2e3 * n**3 / took
        return Row("", "", took, None, bench.products_per_second, "operations")

    bench.case("device", "copy", copy)
    bench.case("device", "bf16 matrix product", product)


def decay_of(channels: int, where: str) -> torch.Tensor:
    """Eigenvalues as LRURec starts with."""
    radius = torch.linspace(0.8, 0.99, channels, device=where)
    angle = torch.linspace(0.0, 6.0, channels, device=where)
    return torch.stack((radius * angle.cos(), radius * angle.sin())).requires_grad_()


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


def recurrences(bench: Bench) -> None:
    """LRURec's recurrence: long segments, and as many tokens in short ones."""
    scale = bench.scale
    tokens, channels = scale.packed, 2 * scale.d
    short = max(1, scale.length // 16)
    for length in (scale.length, short):
        reset, _ = bench.layout(tokens // length, length)
        size = len(reset) * 2 * channels * 2
        bench.both_ways(
            "recurrence",
            f"{len(reset) // length:,} x {length:,}, d {scale.d}, bf16",
            lambda u, a, flags=reset: ops.diagonal_recurrence(u, a, flags),
            [bench.normal(len(reset), 2 * channels), decay_of(channels, bench.device)],
            moved=(2 * size, 3 * size),
            tokens=len(reset),
        )


def losses(bench: Bench) -> None:
    """Loss and gradients together, which the forward pass makes."""
    scale, d = bench.scale, bench.scale.d
    for classes in scale.classes:
        h, w, b = bench.normal(scale.targets, d), bench.normal(classes, d), bench.normal(classes)
        targets = torch.randint(1, classes, (scale.targets,), device=bench.device)

        def full(h: Any = h, w: Any = w, b: Any = b, targets: Any = targets) -> Row:
            took = bench.time(lambda: ops.full_softmax_loss(h, w, b, targets))
            pairs = len(targets) * len(w)
            each = f"{took * 1e6 / len(targets):,.0f} s for 10^9 targets"
            least = bench.floor(0, 8 * d * pairs)
            return Row("", "", took, least, 1e3 * len(targets) / took, "targets", note=each)

        bench.case("losses", f"full softmax, {classes:,} items, bf16", full)
    rows, tokens, count = scale.classes[0], scale.tokens, scale.negatives
    for blocks in (1, 8):
        h, w, b = bench.normal(tokens, d), bench.normal(rows, d), bench.normal(rows)
        targets = torch.randint(rows, (tokens,), device=bench.device)
        drawn = torch.randint(rows, (blocks, count), device=bench.device)
        weights = torch.zeros(blocks, count, device=bench.device)

        def few(h: Any = h, w: Any = w, b: Any = b, targets: Any = targets, drawn: Any = drawn,
                weights: Any = weights) -> Row:  # fmt: skip
            size = -(-tokens // len(drawn))
            took = bench.time(
                lambda: ops.sampled_softmax_loss(h, w, b, targets, drawn, weights, size)
            )
            least = bench.floor(tokens * d * (2 + 4 + 2), 6 * d * tokens * count)
            each = f"{took * 1e6 / tokens:,.2f} s for 10^9 targets"
            return Row("", "", took, least, 1e3 * tokens / took, "targets", note=each)

        bench.case("losses", f"sampled softmax, {count:,} negatives, {blocks} blocks, bf16", few)


def elementwise(bench: Bench) -> None:
    """What stands between the matrix products."""
    tokens, d = bench.scale.packed, bench.scale.d
    size, weight = tokens * d * 2, bench.normal(d, dtype=torch.float32)
    x, wide = bench.normal(tokens, d), bench.normal(tokens, 4 * d)
    bias = bench.normal(4 * d, dtype=torch.float32)
    bench.both_ways(
        "elementwise",
        "dropout, add, norm",
        lambda x, r, w: ops.dropout_add_norm(x, r, w, w, 0.2, True),
        [x, bench.normal(tokens, d), weight],
        moved=(3 * size, 5 * size),
        tokens=tokens,
    )
    bench.both_ways(
        "elementwise",
        "bias, GELU, dropout (4 d)",
        lambda x, b: ops.bias_gelu_dropout(x, b, 0.2, True),
        [wide, bias],
        moved=(8 * size, 12 * size),
        tokens=tokens,
    )
    bench.both_ways(
        "elementwise",
        "dropout",
        lambda x: ops.dropout(x, 0.2, True),
        [x],
        moved=(2 * size, 2 * size),
        tokens=tokens,
    )


def lookups(bench: Bench) -> None:
    """Items of a skewed catalogue, looked up; their gradient."""
    scale = bench.scale
    tokens, d, rows = scale.tokens, scale.d, scale.classes[-1]
    chance = torch.rand(tokens, device=bench.device)
    places = (torch.exp(chance * math.log(rows)) - 1).long().clamp(max=rows - 1)
    size = tokens * d * 2
    bench.both_ways(
        "lookup",
        f"{rows:,} rows, bf16",
        lambda table: ops.lookup(table, places),
        [bench.normal(rows, d)],
        moved=(2 * size, 2 * size + rows * d * 10),
        tokens=tokens,
    )


def mixers(bench: Bench) -> None:
    """How the other models mix tokens."""
    scale = bench.scale
    tokens, d = scale.packed, scale.d
    reset, offsets = bench.layout(scale.segments, scale.length)
    size = tokens * d * 2
    bench.both_ways(
        "mixers",
        "prefix sum",
        lambda x: ops.prefix_sum(x, reset),
        [bench.normal(tokens, d)],
        moved=(2 * size, 2 * size),
        tokens=tokens,
    )
    heads = [bench.normal(tokens, 4, d // 4) for _ in range(3)]
    bench.both_ways(
        "mixers",
        "causal linear attention, 4 heads",
        lambda q, k, v: ops.causal_linear_attention(q, k, v, reset),
        heads,
        moved=(4 * size, 7 * size),
        tokens=tokens,
    )
    held = 20 if d >= 64 else 4
    scores = bench.normal(tokens, 2, held)
    bench.both_ways(
        "mixers",
        f"running softmax experts, 2 heads of {held}",
        lambda s, q, k, v: ops.running_softmax_experts(s, q, k, v, reset),
        [scores, *(bench.normal(tokens, 2, d // 2) for _ in range(3))],
        moved=(4 * size + 4 * tokens * held, 7 * size + 8 * tokens * held),
        tokens=tokens,
    )
    bench.both_ways(
        "mixers",
        "causal convolution, 4 wide",
        lambda x, w, b: ops.causal_convolution(x, w, b, reset),
        [bench.normal(tokens, d), bench.normal(d, 4), bench.normal(d)],
        moved=(2 * size, 3 * size),
        tokens=tokens,
    )
    bench.both_ways(
        "mixers",
        f"attention, 2 heads, segments of {scale.length:,}",
        lambda q, k, v: ops.attention(q, k, v, offsets),
        [bench.normal(tokens, 2, d // 2) for _ in range(3)],
        moved=(4 * size, 8 * size),
        operations=(2 * scale.length * d * tokens, 5 * scale.length * d * tokens),
        tokens=tokens,
    )

    def slots() -> Row:
        query = torch.randn(scale.tokens, 2, d, device=bench.device)
        keys = torch.randn(2, 2, scale.side, d // 2, device=bench.device)
        took = bench.time(lambda: ops.product_key_top(query, keys, 8 if d >= 64 else 4))
        moved = query.numel() * 4 + 8 * scale.tokens * 4 * scale.side
        least = bench.floor(moved, 4 * scale.tokens * 2 * scale.side * d)
        return Row("", "", took, least, 1e3 * scale.tokens / took, "tokens")

    bench.case("mixers", f"product keys, 2 x {scale.side}^2 slots, fp32", slots)


SAMPLED = {"name": "sampled_softmax", "uniform": 512}
FULL = {"name": "full_softmax"}
SETTINGS: dict[str, dict[str, object]] = {
    "sasrec": {"heads": 2, "max_history": 200},
    "hydrarec": {"max_history": 200},
    "elastic": {"experts": 20, "max_history": 200},
    "bert4rec": {"max_history": 200},
}


class Training:
    """A model, its loss, its optimizer and one batch that it is trained on again and again."""

    def __init__(self, bench: Bench, name: str, loss: dict[str, Any], tokens: int, narrow: bool):
        scale, d = bench.scale, bench.scale.d
        small = bench.device == "cpu"
        settings = dict(SETTINGS.get(name, {}))
        if small:
            settings |= {"experts": 4} if name == "elastic" else {}
            loss = loss | ({"uniform": 6} if "uniform" in loss else {})
        items = scale.classes[0]
        model = models.build(models.config_of(name)(name=name, d=d, **settings), items)
        self.model = model.to(bench.device, BF16 if narrow else torch.float32).train()
        self.loss: Loss = build_loss(self.model, LossConfig(**loss), None)
        length = 10 if small else 200
        offsets = torch.arange(0, tokens + 1, length)
        offsets = torch.cat((offsets, offsets.new_tensor([tokens]))) if tokens % length else offsets
        batch = PackedBatch(
            torch.randint(1, items + 1, (tokens,)), offsets, torch.randint(1, items + 1, (tokens,))
        )
        drawn = self.loss.draw(batch)
        self.drawn = drawn.to(bench.device) if drawn else None
        self.batch, self.narrow = batch.to(bench.device), narrow
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=not small)
        self.device = bench.device

    def gradients(self) -> torch.Tensor:
        """Forward and backward; the mean loss."""
        autocast = torch.autocast(self.device, BF16) if not self.narrow else nullcontext()
        with autocast:
            mean: torch.Tensor = self.loss(self.batch, self.drawn) / len(self.batch.targets)
        mean.backward()
        return mean.detach()

    def step(self) -> torch.Tensor:
        """A whole step."""
        loss = self.gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss


def trained(bench: Bench, name: str, loss: dict[str, Any], tokens: int, narrow: bool = True) -> Row:
    """Whole steps, and the most memory they take."""
    training = Training(bench, name, loss, tokens, narrow)
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = float(training.step())
    losses: list[torch.Tensor] = []
    took = bench.time(lambda: losses.append(training.step()))
    peak = torch.cuda.max_memory_allocated() / 1e9 if bench.device == "cuda" else None
    last = float(losses[-1])
    fell = f"loss {first:.2f} to {last:.2f}"
    note = fell if math.isfinite(last) else f"FAILED: {fell}"
    return Row("", "", took, None, 1e3 * tokens / took, "tokens", peak, note=note)


def captured(bench: Bench, name: str, loss: dict[str, Any], tokens: int) -> Row:
    """Forward and backward as one CUDA graph, replayed."""
    training = Training(bench, name, loss, tokens, True)
    if bench.device == "cpu":
        training.gradients()
        return Row("", "", note="no CUDA graph without a GPU")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            training.gradients()
            training.optimizer.zero_grad(set_to_none=True)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.gradients()
    took = bench.time(graph.replay)
    return Row("", "", took, None, 1e3 * tokens / took, "tokens", note="without the update")


def main_steps(bench: Bench) -> None:
    """LRURec, the model the aim is stated for."""
    sizes = (bench.scale.tokens, 4 * bench.scale.tokens)
    for tokens in sizes if bench.device == "cuda" else sizes[:1]:
        for narrow in (True, False):
            kind = "bf16 weights" if narrow else "autocast"
            bench.case(
                "steps",
                f"lrurec, sampled, {tokens:,} tokens, {kind}",
                partial(trained, bench, "lrurec", SAMPLED, tokens, narrow),
            )
    bench.case(
        "steps",
        "lrurec, sampled, forward and backward as a CUDA graph",
        lambda: captured(bench, "lrurec", SAMPLED, bench.scale.tokens),
    )


def other_steps(bench: Bench) -> None:
    """The full softmax, and the other models."""
    tokens = bench.scale.tokens
    bench.case(
        "steps",
        f"lrurec, full softmax, {bench.scale.targets:,} tokens, bf16 weights",
        lambda: trained(bench, "lrurec", FULL, bench.scale.targets),
    )
    for name in ("sasrec", "hydrarec", "elastic", "recgrela", "bert4rec"):
        bench.case(
            "steps",
            f"{name}, sampled, {tokens:,} tokens, bf16 weights",
            partial(trained, bench, name, SAMPLED, tokens),
        )


SECTIONS: tuple[Callable[[Bench], None], ...] = (
    device, parity, recurrences, main_steps, losses, elementwise, lookups, mixers, other_steps,
)  # fmt: skip


def cells(row: Row) -> str:
    """A line of the table."""
    many = row.per_second
    speed = f"{many:.3g}" if many and many < 1e4 else f"{many / 1e6:,.1f} M" if many else ""
    if many and row.unit in ("bytes", "operations"):
        speed = f"{many / 1e12:,.2f} T"
    floor, took = row.floor, row.milliseconds
    share = f"{floor / took:.0%}" if floor and took else ""
    shown = (
        row.case,
        "" if took is None else f"{took:,.3f}",
        "" if not floor else f"{floor:,.3f}",
        share,
        f"{speed} {row.unit}".strip(),
        "" if row.gigabytes is None else f"{row.gigabytes:.2f}",
        "" if row.error is None else f"{row.error:.1e}",
        row.note.replace("|", "/"),
    )
    return f"| {' | '.join(shown)} |"


def report(bench: Bench, output: Path) -> None:
    """The table as Markdown, the rows as JSON."""
    import triton

    if bench.device == "cuda":
        where = torch.cuda.get_device_name()
    else:
        where = "no GPU: Triton's interpreter, in miniature; the times mean nothing"
    lines = [
        "# One GPU: operations and training steps",
        "",
        f"- {time.strftime('%Y-%m-%d')}, {where}",
        f"- torch {torch.__version__}, triton {triton.__version__}, "
        f"Python {platform.python_version()}",
        f"- d = {bench.scale.d}; medians of CUDA events after a warm-up; the floor is the larger "
        "of bytes and products at the rates measured here; error: the largest of values and "
        "gradients against the reference in fp64, relative to the largest element",
        "",
    ]
    for section in dict.fromkeys(row.section for row in bench.rows):
        lines += [
            f"## {section}",
            "",
            "| case | ms | floor, ms | of the floor | a second | peak, GB | error | |",
            f"| --- |{' ---: |' * 6} --- |",
            *(cells(row) for row in bench.rows if row.section == section),
            "",
        ]
    output.mkdir(parents=True, exist_ok=True)
    (output / "gpu.md").write_text("\n".join(lines))
    whole = {"device": where, "torch": torch.__version__, "rows": [asdict(r) for r in bench.rows]}
    (output / "gpu.json").write_text(json.dumps(whole, indent=1))


def sections(bench: Bench, output: Path) -> Iterator[str]:
    """Run one after another; after each the report is of all so far."""
    for section in SECTIONS:
        try:
            section(bench)
        except Exception as error:  # what the cases share could not be made
            bench.rows.append(Row(section.__name__, "all", note=f"FAILED: {error!r}"[:200]))
        report(bench, output)
        if bench.device == "cuda":
            torch.cuda.empty_cache()
        yield section.__name__


def main() -> int:
    """Run what the time allows; exit 1 where a case failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="gpu.md and gpu.json go here")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no case after so long")
    parser.add_argument("--check", action="store_true", help="in miniature, without a GPU")
    given = parser.parse_args()
    if not given.check and not torch.cuda.is_available():
        parser.error("there is no GPU here: --check runs in miniature without one")
    if given.check:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported
        gpu.interpreting = True
    torch.manual_seed(0)
    bench = Bench(SMALL if given.check else Scale(), given.minutes)
    for _ in sections(bench, given.output):
        pass
    failed = [row for row in bench.rows if row.note.startswith("FAILED")]
    print(f"{len(bench.rows)} cases, {len(failed)} failed; written to {given.output}")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
