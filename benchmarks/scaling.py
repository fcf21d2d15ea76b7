"""Steps on one, two and four ranks of this machine, and the cost model's coefficients from them.

    python -m benchmarks.scaling [--items 50000] [--tokens 4096] [--seconds 10] [--only NAME]

Every setting is trained for some seconds in processes of its own (``benchmarks.steps``). All ranks
together have the same cores: 1 rank with a thread a core, a rank a core, two ranks a core. So more
ranks add no power: what is lost beside one rank is the price of being many, and what is gained is
that ranks do side by side what each does in one thread.

The coefficients of ``cluster.plan`` are fitted to all settings by least squares of relative errors,
none negative, with a pull towards the preset where the settings say little. Each setting is
also predicted from a fit to all the others. Run it while the machine does nothing else.
"""

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy.optimize import nnls

from benchmarks.covering import covering
from benchmarks.peaks import best_copies, best_products
from benchmarks.report import surroundings, write_result
from benchmarks.steps import measured
from cluster.hardware import DEVICES, HardwarePart, Link, Reached
from cluster.plan.counts import Counts, counts_of
from cluster.plan.estimate import RESOURCES, ways_of
from cluster.plan.exchange import collectives_of
from cluster.plan.work import Work, sizes_of, work_of
from cluster.spec import ClusterSpec
from pipeline.config import Recipe, parse_recipe
from pipeline.manifest import Dataset
from pipeline.progress import bar

CORES = os.cpu_count() or 1
_PULL = 0.2  # weight of the preset, beside one for each setting
_SHARES = ("products", "mixing", "softmax", "passes", "rows", "links")
_KINDS = {  # of torch.distributed, as cluster.plan.exchange calls them
    "all_gather_into_tensor": "all_gather",
    "_all_gather_base": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}
_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
_SAMPLED = {"name": "sampled_softmax", "uniform": 512, "batch": 512}


@dataclass(frozen=True)
class Setting:
    """A recipe's changes, and on how many ranks it runs. large: which of two catalogues."""

    name: str
    workers: int = 1
    large: bool = False
    model: tuple[str, int] = ("lrurec", 64)
    sampled: bool = False
    sharded: bool = False
    engine: str = "torch"
    stage: int = 1
    precision: str = "fp32"


@dataclass(frozen=True)
class Sample:
    """A setting, its recipe and what was measured."""

    setting: Setting
    recipe: Recipe
    counts: Counts
    found: dict[str, Any]


def settings() -> list[Setting]:
    """Widths, catalogues, losses, tables, models; then stages and ranks."""
    zero = {"engine": "deepspeed", "large": True, "sampled": True}
    return [
        Setting("d 64"),
        Setting("d 128", model=("lrurec", 128)),
        Setting("large catalogue", large=True),
        Setting("sampled", large=True, sampled=True),
        Setting("sharded, sampled", large=True, sampled=True, sharded=True),
        Setting("sharded, full", large=True, sharded=True),
        Setting("sasrec", model=("sasrec", 64), sampled=True),
        Setting("hydrarec", model=("hydrarec", 64), sampled=True),
        Setting("recgrela", model=("recgrela", 64), sampled=True),
        Setting("elastic", model=("elastic", 64), sampled=True),
        Setting("ZeRO 1", **zero),  # type: ignore[arg-type]
        Setting("two ranks", 2),
        Setting("two ranks, large", 2, large=True, sampled=True),
        Setting("two ranks, sharded, sampled", 2, large=True, sampled=True, sharded=True),
        Setting("two ranks, sharded, full", 2, large=True, sharded=True),
        Setting("two ranks, ZeRO 1", 2, **zero),  # type: ignore[arg-type]
        Setting("two ranks, ZeRO 2", 2, stage=2, **zero),  # type: ignore[arg-type]
        Setting("two ranks, ZeRO 3", 2, stage=3, **zero),  # type: ignore[arg-type]
        Setting("four ranks", 4),
        Setting("four ranks, sharded, sampled", 4, large=True, sampled=True, sharded=True),
    ]


def recipe_of(setting: Setting, dataset: Dataset, folder: Path, tokens: int) -> Recipe:
    """Four lanes, so that one, two and four ranks compute the same step."""
    name, d = setting.model
    model = {"name": name, "d": d}
    if name == "sasrec":
        model["max_history"] = 100
    return parse_recipe(
        {
            "name": "-".join(setting.name.replace(",", "").split()),
            "runs": str(folder / "runs"),
            "data": {
                "path": dataset.url,
                "lanes": 4,
                "lane_tokens": tokens,
                "window": {"length": 100},
            },
            "model": model,
            "train": {
                "steps": 1000,
                "loss": _SAMPLED if setting.sampled else {},
                "table": {"home": "sharded"} if setting.sharded else {},
                "engine": setting.engine,
                "zero_stage": setting.stage,
                "precision": setting.precision,
                "validation": None,
            },
            "evaluation": {"max_history": 100},
            "placement": {"threads": max(1, CORES // setting.workers)},
        },
        f"the benchmark's recipe {setting.name}",
    )


def peaks_of_a_core() -> dict[str, float]:
    """Of one thread: FLOP/s of the best products, bytes/s that it copies."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    products = best_products()
    found = {
        "fp32": products["fp32"],
        "bf16": products.get("bf16", products["fp32"]),
        "bandwidth": best_copies(),
    }
    torch.set_num_threads(threads)
    return found


class Model:
    """The cost model as a sum of amounts times unknowns, on this machine.

    Unknowns ``x``: one over each share in ``_SHARES``, seconds of a launch, seconds of a message.
    """

    def __init__(self, peaks: dict[str, float]) -> None:
        preset = DEVICES["cpu"]
        changes = {name: round(peak) for name, peak in peaks.items()}
        self.device = preset.model_copy(update=changes)
        self.inside: Link = HardwarePart().inside_of(preset)
        reached = preset.reached
        self.preset = np.array(
            [1 / getattr(reached, name) for name in _SHARES] + [reached.launch, self.inside.latency]
        )

    def amounts(self, sample: Sample) -> np.ndarray:
        """Seconds at the peaks, by unknown; launches and messages as numbers."""
        workers = sample.setting.workers
        sizes = sizes_of(sample.recipe, sample.counts, workers, gpu=False)
        work = sum(work_of(sample.recipe, sizes).values(), Work())
        of = {name: getattr(work, name) for name in RESOURCES}
        cores = CORES / workers
        spec = ClusterSpec(workers_per_node=workers, hardware=HardwarePart(inside=self.inside))
        ways = ways_of(spec, self.device, workers)
        found = collectives_of(sample.recipe, sizes)
        sent = sum(one.sent(workers) for one in found) / self.inside.bandwidth
        flops = cores * self.device.fp32
        return np.array(
            [
                *(of[name] / flops for name in ("products", "mixing", "softmax")),
                *(of[name] / (cores * self.device.bandwidth) for name in ("passes", "rows")),
                sent,
                of["launches"] * max(1, workers / CORES),
                sum(ways.hops(one) for one in found),
            ]
        )

    def fit(self, amounts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """The unknowns ``x`` from ``[n, 8]`` amounts and ``[n]`` measured seconds of a step."""
        pull = _PULL * np.eye(len(self.preset))
        weighed = np.concatenate([amounts * self.preset / seconds[:, None], pull])
        wanted = np.concatenate([np.ones(len(seconds)), np.full(len(self.preset), _PULL)])
        return np.asarray(nnls(weighed, wanted)[0] * self.preset)

    def reached(self, x: np.ndarray) -> tuple[Reached, Link]:
        """The unknowns as the specification has them."""
        shares = {
            name: float(f"{1 / max(v, 1e-3):.3g}") for name, v in zip(_SHARES, x, strict=False)
        }
        source = f"fitted by benchmarks/scaling.py on {CORES} cores"
        launch, latency = (float(f"{value:.3g}") for value in x[-2:])
        return (
            Reached(source=source, launch=launch, **shares),
            self.inside.model_copy(update={"latency": latency}),
        )


def scaling_lines(samples: list[Sample]) -> list[str]:
    """The same step on one, two, four ranks."""
    lines = [
        f"One step of four lanes on {CORES} cores, which all ranks share: more ranks add no power. "
        "Efficiency is the rate beside that of one rank, above 100 % where ranks do side by side "
        "what each does in one thread.",
        "",
        "| | ranks | ms/step | targets/s | efficiency |",
        "| --- | --- | --- | --- | --- |",
    ]
    by = {sample.setting: sample for sample in samples}
    for sample in samples:
        one = by.get(replace(sample.setting, name=_alone(sample.setting), workers=1))
        if one is None:
            continue
        rate = sample.found["targets_per_second"]
        lines.append(
            f"| {sample.setting.name} | {sample.setting.workers} | "
            f"{1e3 * sample.found['step_seconds']:,.1f} | {rate:,.0f} | "
            f"{rate / one.found['targets_per_second']:.0%} |"
        )
    return lines


def _alone(setting: Setting) -> str:
    """The name of the setting of one rank that computes the same."""
    names = {replace(one, name=""): one.name for one in settings()}
    return names.get(replace(setting, name="", workers=1), "")


def traffic_lines(samples: list[Sample]) -> list[str]:
    """Bytes of a step by collective, counted and foreseen."""
    lines = [
        "Megabytes that a rank sends and gets in a step, counted / as the model has them:",
        "",
        "| | " + " | ".join(_COLLECTIVES) + " |",
        "| --- |" + " --- |" * len(_COLLECTIVES),
    ]
    for sample in samples:
        workers = sample.setting.workers
        if workers == 1:
            continue
        counted = dict.fromkeys(_COLLECTIVES, 0.0)
        for name, one in sample.found["collectives"].items():
            kind = _KINDS.get(name, name)
            counted[kind] = counted.get(kind, 0.0) + one["bytes"]
        foreseen = dict.fromkeys(_COLLECTIVES, 0.0)
        sizes = sizes_of(sample.recipe, sample.counts, workers, gpu=False)
        for collective in collectives_of(sample.recipe, sizes):
            foreseen[collective.kind] += 2 * collective.sent(workers)
        cells = [
            f"{counted[kind] / 1e6:,.2f} / {foreseen[kind] / 1e6:,.2f}" for kind in _COLLECTIVES
        ]
        lines.append(f"| {sample.setting.name} | " + " | ".join(cells) + " |")
    return lines


def prediction_lines(model: Model, samples: list[Sample]) -> list[str]:
    """Measured and predicted steps, and the fit as a part of a specification."""
    amounts = np.array([model.amounts(sample) for sample in samples])
    seconds = np.array([sample.found["step_seconds"] for sample in samples])
    x = model.fit(amounts, seconds)
    fitted = amounts @ x
    held_out = np.array(
        [
            amounts[i] @ model.fit(np.delete(amounts, i, 0), np.delete(seconds, i))
            for i in range(len(samples))
        ]
    )
    lines = [
        "| | measured ms | fitted ms | error | from the others, error |",
        "| --- | --- | --- | --- | --- |",
    ]
    for sample, t, f, h in zip(samples, seconds, fitted, held_out, strict=True):
        lines.append(
            f"| {sample.setting.name} | {1e3 * t:,.1f} | {1e3 * f:,.1f} | {f / t - 1:+.0%} | "
            f"{h / t - 1:+.0%} |"
        )
    middle = [float(np.median(np.abs(p / seconds - 1))) for p in (fitted, held_out)]
    reached, inside = model.reached(x)
    part = {
        "device": {
            "like": "cpu",
            "fp32": float(f"{model.device.fp32:.3g}"),
            "bf16": float(f"{model.device.bf16:.3g}"),
            "bandwidth": int(float(f"{model.device.bandwidth:.3g}")),
            "reached": reached.model_dump(),
        },
        "inside": inside.model_dump(),
    }
    written = yaml.safe_dump({"hardware": part}, sort_keys=False).splitlines()
    return [
        *lines,
        "",
        f"Median error {middle[0]:.0%} fitted, {middle[1]:.0%} from the others.",
        "",
        "For a specification of this machine, of which a core is the device:",
        "",
        "```yaml",
        *written,
        "```",
    ]


def main() -> None:
    """Measure, fit, write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--items", type=int, default=50_000, help="of the large catalogue")
    parser.add_argument("--tokens", type=int, default=4096, help="of a lane")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each setting")
    parser.add_argument("--only", default="", help="settings with this in their names")
    parser.add_argument("--folder", type=Path, default=Path("scaling"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    sets = {large: covering(given.items // (1 if large else 10), given.folder) for large in (0, 1)}
    wanted = [setting for setting in settings() if given.only in setting.name]
    model, samples = Model(peaks_of_a_core()), []
    with bar("settings") as progress:
        for number, setting in enumerate(wanted):
            progress.update(number, len(wanted), setting.name)
            recipe = recipe_of(setting, sets[setting.large], given.folder, given.tokens)
            counts = counts_of(recipe, None, None)
            found = measured(recipe, given.folder, setting.workers, given.seconds)
            samples.append(Sample(setting, recipe, counts, found))
    write_result(
        "scaling",
        [
            "# Scaling on one machine, and the cost model beside it",
            "",
            *surroundings(CORES),
            f"- load average at the start {load:.1f}",
            f"- LRURec unless said, {given.items // 10:,} items, or {given.items:,} where large, "
            f"sharded, sampled or ZeRO; lanes of {given.tokens:,} tokens",
            "",
            *scaling_lines(samples),
            "",
            *traffic_lines(samples),
            "",
            *prediction_lines(model, samples),
        ],
    )


if __name__ == "__main__":
    main()
