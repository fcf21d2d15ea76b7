"""What failures cost, and what the checkpoints against them cost.

    python -m benchmarks.recovery [--items 1000000] [--minutes 3]

A catalogue of 2,000 items and one of ``--items``, LRURec with d 64. First the seconds from a
restart to the end of the first step after it: a process killed and started again, alone and as two
workers under torchrun, and a worker of a Ray run killed, where they count from the kill. Then the
time of a step with a checkpoint a minute against that without, turn and turn about.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import torch

from benchmarks.report import surroundings, write_result
from pipeline import storage
from pipeline.config import Recipe, parse_recipe
from pipeline.manifest import Dataset, open_dataset
from pipeline.prepare import PrepareOptions, prepare
from pipeline.prepare.synth import SynthOptions, generate
from pipeline.progress import bar
from pipeline.train import checkpoint, loop
from pipeline.train.forecast import forecast
from pipeline.train.run import metrics_url
from pipeline.world import World, alone
from tests.cluster.ray_nodes import workers_below
from tests.train.runs import command, environment, wait_until, write

SMALL = 2_000
TURNS = 2
_WARM = 5  # steps that are not timed
WAYS = {
    "alone": ("auto", 1),
    "torchrun, two workers": ("torchrun", 2),
    "Ray, two workers": ("ray", 2),
}


def data_set(items: int, folder: Path) -> Dataset:
    """A synthetic set whose catalogue is nearly all of ``items``: those that occur."""
    log = folder / f"log-{items}"
    events = max(400_000, 3 * items)
    generate(SynthOptions(users=events // 20, items=items, events=events, zipf=0.3), str(log))
    made = str(folder / f"set-{items}")
    source = str(log / "events.parquet")
    prepare(PrepareOptions(inputs=[source], output=made, timestamp="timestamp"))
    return open_dataset(made)


def recipe(
    dataset: Dataset, folder: Path, name: str, every: int = 5, **placement: object
) -> Recipe:
    """A run without end whose steps take a similar time at either catalogue."""
    tokens = 4096 if dataset.manifest.catalogue_size <= SMALL else 64
    return parse_recipe(
        {
            "name": name,
            "runs": str(folder / "runs"),
            "data": {
                "path": dataset.url,
                "lanes": 2,
                "lane_tokens": tokens,
                "window": {"length": 50},
            },
            "model": {"name": "lrurec", "d": 64},
            "train": {
                "steps": 1_000_000,
                "engine": "torch",
                "validation": None,
                "checkpoint_every": every,
                "log_every": 1,
                "optimizer": {"lr": 1e-3},
            },
            "placement": {"threads": 1, **placement},
        },
        "the benchmark's recipe",
    )


def restart(dataset: Dataset, folder: Path, way: str) -> float:
    """Seconds to the end of the first step of the second attempt."""
    launcher, workers = WAYS[way]
    wanted = recipe(dataset, folder, launcher, launcher=launcher, workers=workers)
    line = command(write(wanted, folder), workers if launcher == "torchrun" else 1)
    process = _start(line, folder)
    wait_until(lambda: bool(checkpoint.places_in(wanted.run_url)), process)
    began = time.time()
    if launcher == "ray":
        workers_below(process.pid)[0].kill()
    else:
        _end(process)
        process = _start(line, folder)
    second = metrics_url(wanted.run_url, 2)
    wait_until(lambda: storage.exists(second), process)
    _end(process)
    first_line = storage.read_bytes(second).splitlines()[0]
    shutil.rmtree(wanted.run_url)
    return float(json.loads(first_line)["time"]) - began


def _start(line: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    quiet = subprocess.DEVNULL
    return subprocess.Popen(line, env=environment(), cwd=folder, stdout=quiet, stderr=quiet)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to the process and all below it."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.kill()
    process.wait()


class _Clock(World):
    """Notes when each step begins, and stops the run after ``until`` seconds."""

    def __init__(self, world: World, until: float) -> None:
        super().__init__(world.rank, world.world_size, world.device)
        self.began: list[float] = []
        self._until = until

    def poll(self, step: int) -> None:
        """See World.poll."""
        self.began.append(time.perf_counter())
        self.stop_wanted = self.began[-1] - self.began[0] > self._until


def seconds_a_step(dataset: Dataset, folder: Path, seconds: float, every: int) -> float:
    """The mean over a run of so many seconds, checkpoints every so many steps."""
    wanted = recipe(dataset, folder, f"every-{every}", every)
    with alone("cpu", torch.get_num_threads()) as world:
        clock = _Clock(world, seconds)
        loop.train(wanted, clock)
    shutil.rmtree(wanted.run_url)
    return (clock.began[-1] - clock.began[_WARM]) / (len(clock.began) - 1 - _WARM)


def overhead(dataset: Dataset, folder: Path, minutes: float) -> list[str]:
    """A line of the table: with, without, and by how much."""
    never = 10**9
    a_minute = round(60 / seconds_a_step(dataset, folder, 20, never))
    found: dict[int, list[float]] = {never: [], a_minute: []}
    for _ in range(TURNS):
        for every, times in found.items():
            times.append(seconds_a_step(dataset, folder, 60 * minutes, every))
    without, held = (statistics.median(times) for times in found.values())
    return [
        f"{dataset.manifest.catalogue_size:,}",
        f"{1000 * without:.1f} ms",
        f"{1000 * held:.1f} ms",
        f"{100 * (held / without - 1):+.1f} %",
    ]


def main() -> None:
    """Measure and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--items", type=int, default=1_000_000, help="of the large catalogue")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each turn of step times")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, bar("recovery") as progress:
        folder = Path(name)
        sets = [data_set(items, folder) for items in (SMALL, given.items)]
        restarts = []
        for way in WAYS:
            times = [
                statistics.median(restart(dataset, folder, way) for _ in range(3))
                for dataset in sets
            ]
            restarts.append(f"| {way} | {' | '.join(f'{seconds:.1f} s' for seconds in times)} |")
            progress.update(len(restarts), len(WAYS) + len(sets))
        costs = []
        for number, dataset in enumerate(sets):
            costs.append(f"| {' | '.join(overhead(dataset, folder, given.minutes))} |")
            progress.update(len(WAYS) + number + 1, len(WAYS) + len(sets))
    catalogues = " | ".join(f"{dataset.manifest.catalogue_size:,} items" for dataset in sets)
    sizes = ", ".join(f"{_checkpoint_bytes(dataset) / 1e6:,.0f} MB" for dataset in sets)
    write_result(
        "recovery",
        [
            "# Recovery",
            "",
            *surroundings(threads=torch.get_num_threads()),
            "",
            f"LRURec, d 64, fp32, two catalogues; a checkpoint is {sizes}.",
            "",
            "Seconds from a restart (Ray: from the kill of a worker) to the end of the first step "
            "after it, median of three:",
            "",
            f"| | {catalogues} |",
            "| --- | ---: | ---: |",
            *restarts,
            "",
            f"A step with a checkpoint a minute, in {given.minutes:g} minutes, median of {TURNS}:",
            "",
            "| items | without | with | overhead |",
            "| ---: | ---: | ---: | ---: |",
            *costs,
        ],
    )


def _checkpoint_bytes(dataset: Dataset) -> int:
    return forecast(recipe(dataset, Path("/"), "size"), dataset, 1).checkpoint_bytes


if __name__ == "__main__":
    main()
