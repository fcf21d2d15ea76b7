"""Ten million items on one machine: trained, stopped, gone on with at another world size, ranked.

    python -m benchmarks.large_catalogue [--items 1e7] [--folder FOLDER]

LRURec with d 64, its item table dealt over two workers, sampled softmax; stopped by SIGTERM, which
saves, then trained to the end by three workers, then every tenth user ranked among all items by
two. Memory is the sum over the workers of their peaks. ``FOLDER`` holds the data and the
checkpoints: two kilobytes an item.
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.covering import covering
from benchmarks.report import surroundings, write_result
from benchmarks.running import train_through, train_until
from pipeline.config import Recipe, parse_recipe
from pipeline.manifest import Dataset
from pipeline.progress import bar
from pipeline.train.forecast import forecast
from pipeline.train.run import metrics_of
from tests.train.runs import environment

STEPS, STOPPED_AFTER = 200, 100
RANKED_USERS = 2_000


def recipe(dataset: Dataset, folder: Path, threads: int) -> Recipe:
    """What is trained."""
    return parse_recipe(
        {
            "name": f"items-{dataset.manifest.catalogue_size}",
            "runs": str(folder / "runs"),
            "data": {
                "path": dataset.url,
                "lanes": 6,
                "lane_tokens": 2048,
                "window": {"length": 100},
            },
            "model": {"name": "lrurec", "d": 64},
            "train": {
                "steps": STEPS,
                "loss": {"name": "sampled_softmax", "uniform": 512, "batch": 512},
                "table": {"home": "sharded"},
                "engine": "deepspeed",
                "zero_stage": 1,
                "optimizer": {"lr": 1e-3, "warmup_steps": 20},
                "validation": None,
                "checkpoint_every": STEPS,
                "keep_checkpoints": 1,
                "log_every": 10,
            },
            "evaluation": {"max_history": 100, "users": RANKED_USERS},
            "reading": {"memory": "256MiB"},
            "placement": {"threads": threads},
        },
        "the benchmark's recipe",
    )


def evaluated(run: str, folder: Path) -> dict[str, Any]:
    """The result of two workers, as ``longhaul evaluate --json`` prints it."""
    said = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", "-m", "pipeline", "evaluate", run, "--json"),
        ],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if said.returncode:
        raise RuntimeError(said.stderr[-2000:])
    found: dict[str, Any] = json.loads(said.stdout)[0]["result"]
    return found


def main() -> None:
    """Do it all and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--items", type=float, default=1e7)
    parser.add_argument("--folder", type=Path, default=Path("large-catalogue"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    dataset = covering(int(given.items), given.folder)
    wanted = recipe(dataset, given.folder, threads=1)
    foreseen = forecast(wanted, dataset, 2).memory
    saving = foreseen.pop("checkpoint")
    training, stopped = train_until(wanted, given.folder, 2, STOPPED_AFTER, signal.SIGTERM)
    with bar("train") as progress:
        seconds, peak = train_through(wanted, given.folder, 3, progress)
    lines = [line for line in metrics_of(wanted.run_url) if "loss" in line]
    result = evaluated(wanted.run_url, given.folder)
    write_result(
        "large-catalogue",
        [
            f"# {dataset.manifest.catalogue_size:,} items on one machine",
            "",
            *surroundings(2),
            "",
            f"LRURec, d 64, {lines[0]['segments']:,} segments in the first line of metrics, table "
            "of rows dealt over the workers, Adam on touched rows, 512 uniform and 512 in-batch "
            "negatives a micro-batch of 2,048 tokens, six lanes.",
            "",
            "| | |",
            "| --- | --- |",
            f"| two workers, until SIGTERM after step {STOPPED_AFTER} | {_gib(training)} at most, "
            f"{lines[0]['targets_per_second']:,.0f} targets/s; forecast of `train --dry-run` "
            f"{_gib(2 * sum(foreseen.values()))} beside libraries |",
            f"| and through the checkpoint that it saved then | {_gib(stopped)} at most; forecast "
            f"of what a checkpoint takes beside training {_gib(2 * saving)} |",
            f"| three workers, from there to step {STEPS} | {_gib(peak)} at most, {seconds:,.0f} s "
            f"with reading the checkpoint; loss {lines[0]['loss']:.3f} at first, "
            f"{lines[-1]['loss']:.3f} at last |",
            f"| two workers rank {result['users']:,} users among all items | "
            f"{result['seconds']:,.0f} s, {result['users'] / result['seconds']:,.1f} users/s, "
            f"NDCG@10 {result['metrics']['ndcg@10']:.5f} |",
            "",
        ],
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


if __name__ == "__main__":
    main()
