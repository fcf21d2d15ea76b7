"""How long a command takes until it works.

    python -m benchmarks.startup [--turns 5]

Seconds from the start of a process: to the end of ``--help``; to the end of an import; to the end
of the first step of ``longhaul train`` on a small set, with and without built kernels, alone,
under torchrun and on a Ray of its own. Files are in the page cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from typer.main import get_command

from benchmarks.report import surroundings, write_result
from pipeline import storage
from pipeline.manifest import Dataset, open_dataset
from pipeline.prepare import PrepareOptions, prepare
from pipeline.prepare.synth import SynthOptions, generate
from pipeline.process import app
from pipeline.progress import bar
from pipeline.train.run import metrics_url
from tests.train.runs import command, environment, recipe, write

KERNELS = "TORCH_EXTENSIONS_DIR"
BUILD = "import models; from models.ops.extension import library; assert library()"
RAY = "from cluster.ray_cluster import ray_cluster\nwith ray_cluster(): pass"


def seconds(line: list[str], folder: Path, **env: str) -> float:
    """How long a process takes to its end."""
    began = time.perf_counter()
    quiet = subprocess.DEVNULL
    subprocess.run(line, env=environment(**env), cwd=folder, stdout=quiet, stderr=quiet, check=True)
    return time.perf_counter() - began


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def slowest_help(folder: Path) -> float:
    """Of the help of every single command."""
    names = get_command(app).commands  # type: ignore[attr-defined]
    return max(seconds([sys.executable, "-m", "pipeline", n, "--help"], folder) for n in names)


def first_step(dataset: Dataset, folder: Path, engine: str, launcher: str, **env: str) -> float:
    """From the start of the command to the end of the first step, by the metrics of the run."""
    workers = 1 if launcher == "alone" else 2
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        wanted = recipe(
            dataset,
            runs,
            train__steps=1,
            train__engine=engine,
            placement={"workers": workers, "launcher": launcher, "threads": 1},
        )
        line = command(write(wanted, Path(runs)), workers if launcher == "torchrun" else 1)
        began = time.time()
        seconds(line, folder, **env)
        first = storage.read_bytes(metrics_url(wanted.run_url, 1)).splitlines()[0]
    return float(json.loads(first)["time"]) - began


def measures(dataset: Dataset, folder: Path) -> dict[str, Callable[[], float]]:
    """What is measured, by the words of the table."""
    cli = [sys.executable, "-m", "pipeline"]
    new = (str(folder / f"kernels-{number}") for number in range(10**6))
    steps = {
        f"first step, {name}": (engine, launcher)
        for name, engine, launcher in (
            ("alone, engine torch", "torch", "alone"),
            ("alone, engine deepspeed", "deepspeed", "alone"),
            ("torchrun, two workers, engine torch", "torch", "torchrun"),
            ("Ray, two workers, engine torch", "torch", "ray"),
            ("Ray, two workers, engine deepspeed", "deepspeed", "ray"),
        )
    }
    return {
        "Python itself": lambda: seconds(python("pass"), folder),
        "`longhaul --help`": lambda: seconds([*cli, "--help"], folder),
        "`longhaul COMMAND --help`, the slowest": lambda: slowest_help(folder),
        "`import torch`": lambda: seconds(python("import torch"), folder),
        "`import longhaul`": lambda: seconds(python("import longhaul"), folder),
        "`import longhaul` and the kernels, built before": lambda: seconds(python(BUILD), folder),
        "the same, built now": lambda: seconds(python(BUILD), folder, **{KERNELS: next(new)}),
        "a Ray of its own, started and ended": lambda: seconds(python(RAY), folder),
        **{name: partial(first_step, dataset, folder, *how) for name, how in steps.items()},
        "first step, alone, engine torch, kernels built now": lambda: first_step(
            dataset, folder, "torch", "alone", **{KERNELS: next(new)}
        ),
    }


def main() -> None:
    """Measure and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--turns", type=int, default=5, help="of each, after one that is not timed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, bar("startup") as progress:
        folder = Path(name)
        generate(SynthOptions(users=2_000, items=500, events=40_000), str(folder))
        log = str(folder / "events.parquet")
        prepare(PrepareOptions(inputs=[log], output=str(folder / "set")))
        wanted = measures(open_dataset(str(folder / "set")), folder)
        rows = []
        for number, (words, measure) in enumerate(wanted.items()):
            measure()
            times = [measure() for _ in range(given.turns)]
            rows.append(f"| {words} | {statistics.median(times):.2f} | {min(times):.2f} |")
            progress.update(number + 1, len(wanted))
    load = os.getloadavg()[2]
    write_result(
        "startup",
        [
            "# Starting",
            "",
            *surroundings(threads=1),
            "",
            f"Seconds from the start of the process, of {given.turns} turns; other work kept "
            f"{load:.1f} processes busy meanwhile:",
            "",
            "| | median | least |",
            "| --- | ---: | ---: |",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
