"""Where a training step's time goes on a CPU, and what share of its best matrix product it reaches.

    python -m benchmarks.step_profile [SET/RECIPE ...] [--threads 2] [--seconds 8]

Recipes of `configs` on real data, LRURec's and SASRec's of ML-1M by default, in steps of so many
tokens (``TOKENS``), in fp32 and, where the processor multiplies bfloat16, under autocast. Speed is
measured without the profiler, the shares of a step under it: what an operation takes counts for the
first of its callers that is named in ``KINDS``, and what no operation takes is Python's and the
interpreter's way to them. Operations (FLOP) are those of `cluster.plan`, the peak is the best
product of two square matrices of that precision on the same threads, by torch's library or
by oneDNN.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.peaks import best_products
from benchmarks.quality import CONFIGS, prepared
from benchmarks.report import surroundings, write_result
from benchmarks.updates import rate, updates
from cluster.plan.counts import counts_of
from cluster.plan.work import Work, sizes_of, work_of
from pipeline.config import Recipe, load_recipe
from pipeline.manifest import Dataset
from pipeline.world import alone

RECIPES = ("ml-1m/lrurec", "ml-1m/sasrec")
TOKENS = 8192  # a step
PRECISIONS = {"fp32": "fp32", "bf16": "autocast"}  # of a recipe, by that of its factors
PRODUCTS, MIXING, LOSS = "linear maps", "attention, recurrence", "loss"
KINDS = {
    "reading": ("reading",),
    "update": ("update",),
    LOSS: ("Loss",),
    MIXING: (
        "Attention",
        "Recurrence",
        "PrefixSum",
        "LinearAttention",
        "Experts",
        "Convolution",
        "aten::_scaled_dot_product",
        "Spread",
        "Gather",
    ),
    PRODUCTS: ("Linear", "aten::mm", "aten::addmm", "mkldnn::_linear"),
    "norm, activation, dropout": (
        "AddNorm",
        "aten::native_layer_norm",
        "Gelu",
        "aten::gelu",
        "aten::silu",
        "aten::relu",
        "aten::clamp_min",
        "aten::threshold",
        "aten::sigmoid",
        "Drop",
        "aten::bernoulli_",
    ),
    "rows gathered and added": (
        "Lookup",
        "aten::embedding",
        "aten::index",
        "aten::_index",
        "aten::gather",
        "aten::scatter",
        "aten::sort",
        "aten::repeat_interleave",
    ),
    "copies, fills, sums": (
        "aten::cat",
        "aten::stack",
        "aten::copy_",
        "aten::clone",
        "aten::fill_",
        "aten::zero_",
        "aten::add",
        "aten::sub",
        "aten::mul",
        "aten::div",
        "aten::sum",
        "aten::neg",
    ),
}
OTHERS = "other operations, Python"
COLUMNS = (*KINDS, OTHERS)


@dataclass(frozen=True)
class Profile:
    """peak: FLOP/s of the best product. targets: a second, without the profiler. flops: operations
    a target, by the kinds of ``Work``. shares: of the wall time of a step, by kind of operation."""

    peak: float
    targets: float
    flops: Work
    shares: dict[str, float]

    def reached(self, *kinds: str) -> float:
        """Of the peak in a whole step, by kinds of work."""
        return self.targets * sum(float(getattr(self.flops, kind)) for kind in kinds) / self.peak


def profiled(recipe: Recipe, dataset: Dataset, peak: float, seconds: float) -> Profile:
    """Train for so long, then once more under the profiler."""
    counts = counts_of(recipe, None, None)
    sizes = sizes_of(recipe, counts, workers=1, gpu=False)
    work = sum(work_of(recipe, sizes).values(), Work())
    running = updates(recipe, dataset)
    rate(running, seconds / 2)
    targets = rate(running, seconds)
    flops = work * (1 / (sizes.micro * sizes.tokens))
    return Profile(peak, targets, flops, shares(running, seconds))


def shares(running: Iterator[int], seconds: float) -> dict[str, float]:
    """Of the wall time, by kind of operation; they add up to one."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            next(running)
        wall = time.perf_counter() - began
    spent = dict.fromkeys(COLUMNS, 0.0)
    for event in seen.events() or []:
        caller, kind = event, None
        while caller is not None:  # the outermost that is named decides
            kind = _kind(caller.name) or kind
            caller = caller.cpu_parent
        spent[kind or OTHERS] += event.self_cpu_time_total / 1e6
    spent[OTHERS] += wall - sum(spent.values())
    return {kind: took / wall for kind, took in spent.items()}


def _kind(operation: str) -> str | None:
    return next((kind for kind, names in KINDS.items() if operation.startswith(names)), None)


def page(profiles: dict[str, Profile], around: list[str]) -> list[str]:
    """The tables."""
    lines = [
        "# Where a training step's time goes",
        "",
        *around,
        "",
        f"Speeds are of whole steps of {TOKENS:,} tokens, from reading to update, FLOP those of "
        "`cluster.plan`; the peak is the best product of two square matrices on these threads, in "
        "bf16 under autocast.",
        "",
        "| recipe | targets/s | MFLOP a target | peak, GFLOP/s | of the peak "
        "| linear maps alone, of the peak | loss alone, of the peak |",
        f"| --- |{' ---: |' * 6}",
    ]
    for name, found in profiles.items():
        whole = found.reached("products", "mixing", "softmax")
        alone_at = (
            found.reached(work) / found.shares[kind]
            for work, kind in (("products", PRODUCTS), ("softmax", LOSS))
        )
        each = whole * found.peak / found.targets
        cells = [name, f"{found.targets:,.0f}", f"{each / 1e6:.2f}", f"{found.peak / 1e9:,.0f}"]
        cells += [f"{whole:.0%}", *(f"{at:.0%}" for at in alone_at)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Of a step's time:", "", f"| part | {' | '.join(profiles)} |"]
    lines.append(f"| --- |{' ---: |' * len(profiles)}")
    for kind in COLUMNS:
        cells = [f"{found.shares[kind]:.1%}" for found in profiles.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Profile the recipes and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES, help="as ml-1m/lrurec")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of training, for each")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, alone("cpu", given.threads):
        peaks = best_products()
        profiles = {}
        for name in given.recipes:
            folder, _, recipe_name = name.partition("/")
            dataset = prepared(folder, Path(work))
            path = str(CONFIGS / folder / f"{recipe_name}.yaml")
            for factors, peak in peaks.items():
                precision = PRECISIONS[factors]
                recipe = load_recipe(
                    path,
                    [
                        f"data.path={dataset.url}",
                        f"data.lane_tokens={TOKENS}",
                        f"train.precision={precision}",
                    ],
                )
                profiles[f"{name}, {precision}"] = profiled(recipe, dataset, peak, given.seconds)
    write_result("step-profile", page(profiles, surroundings(given.threads)))


if __name__ == "__main__":
    main()
