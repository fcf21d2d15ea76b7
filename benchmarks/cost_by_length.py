"""What a token costs in training as histories grow: time and peak memory, all models in one run.

    python -m benchmarks.cost_by_length [--device cuda] [--threads 2] [--models lrurec,sasrec]

For each model and length a fresh process packs ``TOKENS`` tokens as segments of that length and
runs the trunk forward and backward (from embeddings to hidden states; the softmax over the
catalogue costs the same for all and is left out). Lengths take turns, models inside a length, in
two rounds; the time is the median over both. Memory is the peak over what the process held before
its first step. SASRec stands there twice: with our attention, as it trains, and with torch's dense
one. Writes a table and a picture.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any

import torch

import models.sasrec
from benchmarks.report import RESULTS, surroundings, write_result
from models import PackedBatch, build, config_of
from models.ops.attention import buckets

LENGTHS = (50, 100, 200, 500, 1000, 2000, 4096, 8192)
TOKENS = 16_384
CATALOGUE = 1000
MODELS: dict[str, dict[str, Any]] = {
    "lrurec": {},
    "hydrarec": {"positions": "none", "max_history": None},
    "elastic": {"positions": "none", "max_history": None},
    "recgrela": {"blocks": 2},
    "bert4rec": {"max_history": 8192},
    "sasrec": {"max_history": 8192, "heads": 2},
}
TORCH = "sasrec with torch's attention"
MODELS[TORCH] = MODELS["sasrec"]
ROUNDS, SECONDS = 2, 2.0


def measure(name: str, length: int, device: str, threads: int) -> dict[str, float]:
    """Microseconds and bytes a token in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    settings = MODELS[name]
    if name == TORCH:
        name = "sasrec"
        vars(models.sasrec)["attention"] = partial(buckets.attention, causal=True)
    config = config_of(name)(name=name, d=64, **{"blocks": 2, **settings})
    model = build(config, CATALOGUE).to(device).train()
    segments = max(1, TOKENS // length)
    items = torch.randint(1, CATALOGUE, (segments * length,))
    offsets = torch.arange(segments + 1) * length
    batch = PackedBatch(items, offsets, torch.zeros_like(items)).to(device)
    gradient = torch.randn(len(items), 64).to(device)

    def step() -> None:
        model.encode(batch).backward(gradient)
        if device == "cuda":
            torch.cuda.synchronize()

    before = _memory(device)
    step()
    peak = _memory(device)
    times: list[float] = []
    ends = time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return {
        "microseconds": statistics.median(times) * 1e6 / len(items),
        "bytes": (peak - before) / len(items),
    }


def _memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(name: str, length: int, device: str, threads: int) -> dict[str, float]:
    """``measure`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cost_by_length", "--one", name, str(length)]
    command += ["--device", device, "--threads", str(threads)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    return found


def table(results: dict[str, dict[int, dict[str, float]]], what: str, digits: int) -> list[str]:
    """A Markdown table, a model a row."""
    lines = ["| model | " + " | ".join(map(str, LENGTHS)) + " |"]
    lines.append("| --- |" + " ---: |" * len(LENGTHS))
    for name, by_length in results.items():
        cells = " | ".join(f"{by_length[length][what]:,.{digits}f}" for length in LENGTHS)
        lines.append(f"| {name} | {cells} |")
    return lines


def wins(results: dict[str, dict[int, dict[str, float]]]) -> list[str]:
    """From which length on a model's token takes less time than SASRec's, at all longer ones."""
    baselines = [name for name in ("sasrec", TORCH) if name in results]
    lines = []
    for name, by_length in results.items():
        if name in baselines or not baselines:
            continue
        told = []
        for baseline in baselines:
            cheaper = [
                by_length[length]["microseconds"] < results[baseline][length]["microseconds"]
                for length in LENGTHS
            ]
            dearer = [at for at, is_cheaper in enumerate(cheaper) if not is_cheaper]
            first = dearer[-1] + 1 if dearer else 0
            where = f"from {LENGTHS[first]} on" if first < len(LENGTHS) else "at no length"
            told.append(f"than {baseline} {where}")
        lines.append(f"- {name}: {', '.join(told)}")
    return lines


def draw(results: dict[str, dict[int, dict[str, float]]], path: str) -> None:
    """Both costs over the length, a line a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    shown = (("microseconds", "µs a token, forward and backward"), ("bytes", "peak bytes a token"))
    for axis, (what, title) in zip(axes, shown, strict=True):
        for name, by_length in results.items():
            dashed = "--" if name in ("sasrec", TORCH, "bert4rec") else "-"
            values = [by_length[length][what] for length in LENGTHS]
            axis.plot(LENGTHS, values, dashed, marker="o", markersize=4, label=name)
        axis.set(xscale="log", xlabel="length of a history", title=title)
        if what == "microseconds":
            axis.set_yscale("log")
            axis.set_yticks((5, 10, 20, 50, 100), ("5", "10", "20", "50", "100"))
        else:
            axis.set_ylim(bottom=0)
        axis.set_xticks(LENGTHS, [str(length) for length in LENGTHS], rotation=45)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "LENGTH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, length = given.one
        print(json.dumps(measure(name, int(length), given.device, given.threads)))
        return
    names = given.models.split(",")
    rounds: dict[str, dict[int, list[dict[str, float]]]] = {n: {} for n in names}
    for number in range(ROUNDS):
        for length in LENGTHS:
            for name in names:
                found = apart(name, length, given.device, given.threads)
                rounds[name].setdefault(length, []).append(found)
                told = f"{found['microseconds']:.2f} µs, {found['bytes']:,.0f} bytes a token"
                print(f"round {number + 1}, length {length}: {name} {told}", file=sys.stderr)
    results = {
        name: {
            length: {what: statistics.median(f[what] for f in found) for what in found[0]}
            for length, found in by_length.items()
        }
        for name, by_length in rounds.items()
    }
    picture = "cost-by-length.png"
    draw(results, str(RESULTS / picture))
    write_result(
        "cost-by-length",
        [
            "# Cost of a token in training by length of history",
            "",
            *surroundings(given.threads),
            f"- device {given.device}",
            "",
            f"fp32; d = 64, 2 blocks, {TOKENS:,} tokens a step, without the softmax over the "
            "catalogue. Microseconds a token, forward and backward:",
            "",
            *table(results, "microseconds", 2),
            "",
            "Quicker, at this length and all longer ones:",
            "",
            *wins(results),
            "",
            "Peak memory over what was held before, bytes a token:",
            "",
            *table(results, "bytes", 0),
            "",
            f"![time and memory over the length of a history]({picture})",
        ],
    )


if __name__ == "__main__":
    main()
