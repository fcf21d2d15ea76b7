"""What the device copies and multiplies; each operation forward and backward beside that."""

import math
from typing import Any

import torch

from benchmarks.gpu.bench import BF16, Bench, Row
from models import ops


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
            least = bench.floor(0, 8 * d * len(targets) * len(w))
            return bench.row(
                lambda: ops.full_softmax_loss(h, w, b, targets), least, len(targets), "targets"
            )

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
            least = bench.floor(tokens * d * (2 + 4 + 2), 6 * d * tokens * count)
            return bench.row(
                lambda: ops.sampled_softmax_loss(h, w, b, targets, drawn, weights, size),
                least,
                tokens,
                "targets",
            )

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
        moved = query.numel() * 4 + 8 * scale.tokens * 4 * scale.side
        least = bench.floor(moved, 4 * scale.tokens * 2 * scale.side * d)
        best = 8 if d >= 64 else 4
        return bench.row(lambda: ops.product_key_top(query, keys, best), least, scale.tokens)

    bench.case("mixers", f"product keys, 2 x {scale.side}^2 slots, fp32", slots)
