"""Table, loss and ZeRO stage on GPUs nobody has measured here: what ``longhaul plan`` makes of it.

    python -m benchmarks.choosing_planned [--device h100] [--items 1e4 ... 1e8] [--workers 1 8 64]

LRURec in bf16, 32,768 tokens a GPU and step, eight GPUs a node: of the ways that fit into the GPU's
memory, the one with the shortest predicted step, for the full softmax and for 4,096 negatives.
Nothing is measured: the coefficients are docs/scaling.md's.
"""

import argparse
from typing import Any

from benchmarks.choosing import WAYS
from benchmarks.report import surroundings, write_result
from cluster.plan.counts import counts_of
from cluster.plan.estimate import Column, estimate
from cluster.spec import ClusterSpec
from pipeline.config import Recipe, parse_recipe
from pipeline.errors import LonghaulError

TOKENS, EVENTS_AN_ITEM = 32_768, 100
LOSSES: dict[str, dict[str, Any]] = {
    "full softmax": {"name": "full_softmax"},
    "4,096 negatives": {"name": "sampled_softmax", "uniform": 4096},
}


def recipe(way: str, loss: str, d: int, workers: int) -> Recipe:
    """What would be trained."""
    sharded = way == "sharded"
    return parse_recipe(
        {
            "name": way.replace(" ", "-"),
            "runs": "runs",
            "data": {
                "path": "data",
                "lanes": workers,
                "lane_tokens": TOKENS,
                "window": {"length": 200},
            },
            "model": {"name": "lrurec", "d": d},
            "train": {
                "steps": 10_000,
                "loss": LOSSES[loss],
                "table": {"home": "sharded"} if sharded else {},
                "engine": "deepspeed",
                "zero_stage": 1 if sharded else int(way[-1]),
                "precision": "autocast" if way == "ZeRO 0" else "bf16",
                "validation": None,
            },
        },
        "the benchmark's recipe",
    )


def best(device: str, items: int, d: int, loss: str, workers: int) -> tuple[str, Column] | None:
    """The quickest way that fits; None where none does."""
    spec = ClusterSpec.model_validate(
        {"workers_per_node": 8, "gpus_per_worker": 1, "hardware": {"device": device}}
    )
    found: list[tuple[str, Column]] = []
    for way in WAYS:
        wanted = recipe(way, loss, d, workers)
        counts = counts_of(wanted, EVENTS_AN_ITEM * items, items)
        try:
            found.append((way, estimate(wanted, spec, counts, [workers]).columns[0]))
        except LonghaulError:
            continue  # it does not fit
    return min(found, key=lambda one: one[1].step_seconds, default=None)


def main() -> None:
    """Reckon every cell and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="h100")
    parser.add_argument("--items", type=float, nargs="*", default=[1e4, 1e5, 1e6, 1e7, 1e8])
    parser.add_argument("--d", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 8, 64])
    given = parser.parse_args()
    lines = []
    for items in map(int, given.items):
        for d in given.d:
            for workers in given.workers:
                cells = [f"{items:,}", str(d), str(workers)]
                for loss in LOSSES:
                    chosen = best(given.device, items, d, loss, workers)
                    if chosen is None:
                        cells += ["does not fit", "", ""]
                        continue
                    way, column = chosen
                    cells += [
                        way,
                        f"{column.step_seconds * 1e3:,.0f}",
                        f"{column.device_memory / 2**30:,.1f}",
                    ]
                lines.append(f"| {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    head = ["items", "d", "GPUs"]
    head += [f"{loss}: {what}" for loss in LOSSES for what in ("best", "ms a step", "GiB")]
    write_result(
        "choosing-planned",
        [
            f"# Table, loss and ZeRO stage on {given.device}: predicted",
            "",
            *surroundings(0),
            "",
            "Predicted by `longhaul plan`, not measured: LRURec, bf16 (ZeRO 0: autocast), "
            f"{TOKENS:,} tokens a GPU and step, eight GPUs a node, {EVENTS_AN_ITEM} events an "
            "item drawn evenly (the most distinct rows there can be). The quickest way that "
            "fits, its step, a GPU's memory.",
            "",
            f"| {' | '.join(head)} |",
            f"| ---: | ---: | ---: |{' --- | ---: | ---: |' * len(LOSSES)}",
            *lines,
            "",
        ],
    )


if __name__ == "__main__":
    main()
