"""Histories by the hundred million: two models trained for an epoch, killed once, ranked.

    python -m benchmarks.billion [--events 1e8] [--items 1e6] [--models lrurec hydrarec]

The log is ``longhaul synth --preset yambda-5b``'s, with so many events and items, whose best model
is known. Each model is trained for an epoch with the sampled softmax and a sharded table on two
threads, as ``longhaul train`` does it, SIGKILLed at a third of the way and started again; then
every user's last event is ranked among all items, beside popularity and the generator's optimum.
The time of each part is that of the run's own lines of metrics. Everything goes on where it was
broken off.
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import surroundings, write_result
from benchmarks.running import train_through, train_until
from pipeline.config import Recipe, parse_recipe
from pipeline.manifest import Dataset, open_dataset
from pipeline.progress import bar
from pipeline.train.run import metrics_of, read_state
from tests.train.runs import environment

YAMBDA_USERS_AN_EVENT = 1_000_000 / 4_785_859_887
LANES, LANE_TOKENS = 2, 2048
BILLION = 1_000_000_000
# Nothing is seen twice in an epoch, so nothing is dropped out; and histories are longer than the
# positions that HydraRec would learn.
SETTINGS: dict[str, dict[str, Any]] = {
    "lrurec": {"recurrence_dropout": 0.0},
    "hydrarec": {"positions": "rotary", "max_history": None},
}


def log_and_set(events: int, items: int, folder: Path) -> tuple[Path, Dataset]:
    """The truth of the log and the data set, made where they are missing."""
    log, made = folder / f"log-{events}", folder / f"set-{events}"
    if not (log / "truth.json").exists():
        users = max(100, round(events * YAMBDA_USERS_AN_EVENT))
        size = [f"--users={users}", f"--items={items}", f"--events={events}"]
        _longhaul("synth", str(log), "--preset=yambda-5b", *size)
    if not (made / "manifest.json").exists():
        source = log / "events.parquet"
        inputs = str(source if source.exists() else log / "events")
        _longhaul("prepare", inputs, f"--output={made}", "--timestamp=timestamp")
    return log / "truth.json", open_dataset(str(made))


def _longhaul(*arguments: str) -> str:
    said = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return said.stdout


def recipe(model: str, dataset: Dataset, folder: Path, users: int) -> Recipe:
    """An epoch of the model."""
    steps = -(-int(dataset.train_events.sum()) // (LANES * LANE_TOKENS))
    return parse_recipe(
        {
            "name": f"{model}-{dataset.manifest.events}",
            "runs": str(folder / "runs"),
            "data": {
                "path": dataset.url,
                "lanes": LANES,
                "lane_tokens": LANE_TOKENS,
                "window": {"length": 1024},
            },
            "model": {"name": model, "d": 64, "dropout": 0.0} | SETTINGS.get(model, {}),
            "train": {
                "steps": steps,
                "loss": {"name": "sampled_softmax", "uniform": 1024, "batch": 1024},
                "table": {"home": "sharded"},
                "engine": "deepspeed",
                "zero_stage": 1,
                "optimizer": {
                    "lr": 8e-3,
                    "warmup_steps": min(200, steps // 10),
                    "schedule": "cosine",
                },
                "validation": None,
                "checkpoint_every": max(1, min(1000, steps // 6)),
                "keep_checkpoints": 1,
                "log_every": max(1, min(50, steps // 20)),
            },
            "evaluation": {"max_history": 1024, "seen": "none", "users": users},
        },
        "the benchmark's recipe",
    )


def trained(wanted: Recipe, folder: Path) -> None:
    """Train the recipe to its end, killing it once where it has not been killed yet."""
    stands = read_state(wanted.run_url)
    if stands is not None and stands.state == "done":
        return
    if stands is None or stands.attempt == 1:
        train_until(wanted, folder, 1, wanted.train.steps // 3, signal.SIGKILL)
    with bar(f"train {wanted.name}") as progress:
        train_through(wanted, folder, 1, progress)


def parts(wanted: Recipe) -> dict[str, float]:
    """Seconds of each part of all steps; what a killed attempt did and lost is not counted."""
    found: dict[str, float] = {}
    for line in metrics_of(wanted.run_url):
        for name, value in line.items():
            if name.startswith("seconds/"):
                found[name.removeprefix("seconds/")] = found.get(name[8:], 0.0) + value
    return found


def section(wanted: Recipe, results: dict[str, dict[str, Any]]) -> list[str]:
    """A model's part of the page."""
    lines = [line for line in metrics_of(wanted.run_url) if "loss" in line]
    spent = parts(wanted)
    training = spent.pop("training")
    targets = lines[-1]["targets_seen"]
    rate = targets / training
    shares = ", ".join(f"{name} {seconds / training:.1%}" for name, seconds in spent.items())
    table = [
        f"| {scorer} | {found['metrics']['hr@10']:.4f} | {found['metrics']['ndcg@10']:.4f} |"
        for scorer, found in results.items()
    ]
    return [
        f"## {wanted.model.name}",
        "",
        f"{targets:,} targets in {training:,.0f} s: {rate:,.0f} targets/s; loss "
        f"{lines[0]['loss']:.3f} at first, {lines[-1]['loss']:.3f} at last. Of the time: {shares}. "
        f"Extrapolated, not measured: 10^9 events on this machine in "
        f"{BILLION / rate / 3600:.1f} h.",
        "",
        "| | HR@10 | NDCG@10 |",
        "| --- | ---: | ---: |",
        *table,
        "",
    ]


def main() -> None:
    """Prepare, train, rank, and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--events", type=float, default=1e8)
    parser.add_argument("--items", type=float, default=1e6)
    parser.add_argument("--models", nargs="*", default=["lrurec", "hydrarec"])
    parser.add_argument("--users", type=int, default=2000, help="ranked, of the test split")
    parser.add_argument("--folder", type=Path, default=Path("billion"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    truth, dataset = log_and_set(int(given.events), int(given.items), given.folder)
    pages: list[str] = []
    for number, model in enumerate(given.models):
        wanted = recipe(model, dataset, given.folder, given.users)
        trained(wanted, given.folder)
        beside = ["--baselines", f"--truth={truth}"] if number == 0 else []
        told = json.loads(_longhaul("evaluate", wanted.run_url, "--json", *beside))
        pages += section(wanted, {found["scorer"]: found["result"] for found in told})
    manifest = dataset.manifest
    write_result(
        "billion",
        [
            f"# {manifest.events:,} events, {manifest.catalogue_size:,} items",
            "",
            *surroundings(2),
            "",
            f"{manifest.users:,} users with histories like Yambda-5B's; d 64, two blocks; "
            f"{LANES} lanes of {LANE_TOKENS:,} tokens, windows of 1,024; 1,024 uniform and 1,024 "
            "in-batch negatives; item table sharded, Adam on touched rows; two threads. Each run "
            "was killed at a third of its steps and went on. Full ranking of "
            f"{given.users:,} users, nothing masked.",
            "",
            *pages,
        ],
    )


if __name__ == "__main__":
    main()
