"""What ``longhaul plan`` makes of the steps of `benchmarks.gpu.steps` on a GPU that is not here.

Its own module, since it needs the whole project. The speeds that the plan supposes of a GPU are
assumed (docs/scaling.md): the rows are there to be compared with those of a run.
"""

from functools import partial
from typing import Any

from benchmarks.gpu.bench import Bench, Row
from benchmarks.gpu.steps import FULL, SAMPLED
from cluster.plan.counts import counts_of
from cluster.plan.estimate import estimate
from cluster.spec import ClusterSpec
from pipeline.config import parse_recipe

SECTION = "whole steps, predicted by longhaul plan"
EVENTS_AN_ITEM = 1000


def planned_steps(bench: Bench, device: str) -> None:
    """LRURec as `main_steps` trains it, and with the full softmax over every size of catalogue."""
    tokens, classes, targets = bench.scale.tokens, bench.scale.classes, bench.scale.targets
    for many in (tokens, 4 * tokens):
        for precision in ("bf16", "autocast"):
            bench.case(
                SECTION,
                f"lrurec, sampled, {classes[0]:,} items, {many:,} tokens, {precision}",
                partial(planned, bench, device, SAMPLED, classes[0], many, precision),
            )
    for items in classes:
        bench.case(
            SECTION,
            f"lrurec, full softmax, {items:,} items, {targets:,} tokens, bf16",
            partial(planned, bench, device, FULL, items, targets, "bf16"),
        )


def planned(
    bench: Bench, device: str, loss: dict[str, Any], items: int, tokens: int, precision: str
) -> Row:
    """A step without reading and checkpoints; its time is a note, as it was not measured."""
    recipe = parse_recipe(
        {
            "name": "planned",
            "data": {"path": "data", "lanes": 1, "lane_tokens": tokens, "window": {"length": 200}},
            "model": {"name": "lrurec", "d": bench.scale.d},
            "train": {"steps": 1000, "loss": loss, "precision": precision},
        },
        "the benchmark's recipe",
    )
    spec = ClusterSpec.model_validate(
        {"workers_per_node": 1, "gpus_per_worker": 1, "hardware": {"device": device}}
    )
    column = estimate(recipe, spec, counts_of(recipe, EVENTS_AN_ITEM * items, items)).columns[0]
    parts = {name: took for name, took in column.parts.items() if name != "checkpoint"}
    took = sum(parts.values())
    most = max(parts, key=lambda name: parts[name])
    note = f"predicted: {1e3 * took:,.2f} ms, {parts[most] / took:.0%} of it {most}"
    return Row("", "", per_second=tokens / took, unit="tokens", note=note)
