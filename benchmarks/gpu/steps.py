"""Whole training steps of the models."""

import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

import models
from benchmarks.gpu.bench import BF16, Bench, Row
from models import PackedBatch
from models.losses import Loss, LossConfig, build_loss

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
