"""Sampled losses beside the full softmax, at equal steps and at equal time, on real data.

    python -m benchmarks.losses [SET ...] [--only LOSS ...] [--steps 50] [--runs FOLDER]

The base is LRURec's recipe of each SET with its schedule cut to a third of what the full softmax
needs, or to ``--steps``; only its loss changes, and for equal time its number of steps: as many as
the loss trains in the time that the full softmax takes, by rates measured once and kept beside the
runs (measure on a machine that does nothing else). Runs that are done are not trained again and
runs that were cut off go on.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.quality import CONFIGS, prepared
from benchmarks.report import surroundings, write_result
from benchmarks.updates import rate, updates
from pipeline.config import Recipe, load_recipe
from pipeline.evaluate import Protocol
from pipeline.evaluate.of_run import evaluate_run
from pipeline.manifest import Dataset
from pipeline.progress import bar
from pipeline.train import loop
from pipeline.train.trained import load_trained
from pipeline.world import World, alone

SETS = {"ml-1m": 3000, "beauty": 5000}  # steps: a third of what the full softmax needs
TOKENS = {"ml-1m": 8192, "beauty": 512}  # a micro-batch
FULL = "full softmax"
LOSSES: dict[str, dict[str, Any]] = {
    FULL: {"name": "full_softmax"},
    "512 uniform": {"name": "sampled_softmax", "uniform": 512},
    "512 popular": {"name": "sampled_softmax", "popularity": 512},
    "256 uniform, 256 popular": {"name": "sampled_softmax", "uniform": 256, "popularity": 256},
    "256 uniform, 256 of the batch": {"name": "sampled_softmax", "uniform": 256, "batch": 256},
    "64 uniform, 64 of the batch": {"name": "sampled_softmax", "uniform": 64, "batch": 64},
    "gBCE, 256 uniform, t .75": {"name": "gbce", "uniform": 256, "t": 0.75},
}
STEPS, TIME = "equal steps", "equal time"
TIMED_SECONDS = 8.0
METRICS = ("hr@10", "ndcg@10")


def changed(
    name: str, loss: str, dataset: Dataset, work: Path, steps: int, longer: float
) -> Recipe:
    """The set's recipe with this loss, its schedule stretched ``longer`` times."""
    path = str(CONFIGS / name / "lrurec.yaml")
    base = load_recipe(path)
    assert base.train.validation is not None
    share = longer * steps / base.train.steps
    counts = {
        "train.steps": base.train.steps,
        "train.validation.every": base.train.validation.every,
        "train.checkpoint_every": base.train.checkpoint_every,
    }
    kind = "".join(letter if letter.isalnum() else "-" for letter in loss)
    changes = [
        f"name={name}-{kind}-{steps}-{longer:.3f}",
        f"runs={work / 'runs'}",
        f"data.path={dataset.url}",
        f"data.lane_tokens={TOKENS[name]}",
        f"train.loss={json.dumps(LOSSES[loss])}",
        *(f"{key}={round(count * share)}" for key, count in counts.items()),
    ]
    return load_recipe(path, changes)


def rates(name: str, losses: list[str], dataset: Dataset, work: Path) -> dict[str, float]:
    """Targets a second of bare training, by loss; those that are not known yet are measured."""
    where = work / f"{name}-rates.json"
    known: dict[str, float] = json.loads(where.read_text()) if where.exists() else {}
    for loss in losses:
        if loss not in known:
            running = updates(changed(name, loss, dataset, work, SETS[name], 1.0), dataset)
            next(running)
            known[loss] = rate(running, TIMED_SECONDS)
            where.write_text(json.dumps(known, indent=1))
    return known


def reached(recipe: Recipe, dataset: Dataset, work: Path, world: World) -> dict[str, float]:
    """The test metrics of the best checkpoint; trained where that is not done yet."""
    where = work / "reached" / f"{recipe.name}.json"
    if where.exists():
        kept = json.loads(where.read_text())
        if kept["recipe"] == recipe.hash():
            return dict(kept["metrics"])
    with bar(f"train {recipe.name}") as progress:
        if loop.train(recipe, world, progress).state != "done":
            raise SystemExit("stopped: the same command goes on")
    trained = load_trained(recipe.run_url)
    asked = recipe.evaluation.model_dump() | {"split": "test", "seen": "history"}
    found = next(iter(evaluate_run(trained, dataset, Protocol(**asked), world, baselines=False)))
    where.parent.mkdir(parents=True, exist_ok=True)
    kept = {"recipe": recipe.hash(), "step": found.step, "metrics": found.result.metrics}
    where.write_text(json.dumps(kept, indent=1))
    return dict(found.result.metrics)


def table(name: str, losses: list[str], steps: int, work: Path, world: World) -> list[str]:
    """Its part of the page."""
    dataset = prepared(name, work)
    speed = rates(name, losses, dataset, work)
    lines = []
    for loss in losses:
        for basis in (STEPS, TIME):
            longer = speed[loss] / speed[FULL] if basis == TIME else 1.0
            if loss == FULL and basis == TIME:
                continue  # is the same run
            longer = math.floor(longer * 100) / 100 or 0.01
            recipe = changed(name, loss, dataset, work, steps, longer)
            metrics = reached(recipe, dataset, work, world)
            took = longer * speed[FULL] / speed[loss]
            told = (f"{metrics[metric]:.4f}".removeprefix("0") for metric in METRICS)
            cells = [loss, "both" if loss == FULL else basis, f"{recipe.train.steps:,}"]
            cells += [f"{took:.2f}", f"{speed[loss]:,.0f}", *told]
            lines.append(f"| {' | '.join(cells)} |")
    manifest = dataset.manifest
    return [
        f"## {name}",
        "",
        f"{manifest.users:,} users, {manifest.catalogue_size:,} items, {manifest.events:,} events.",
        "",
        "| loss, negatives a micro-batch | basis | steps | time | targets/s | HR@10 | NDCG@10 |",
        f"| --- | --- |{' ---: |' * 5}",
        *lines,
        "",
    ]


def main() -> None:
    """Train what is not trained, and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(SETS)}; all by default")
    parser.add_argument("--only", nargs="*", default=[], help="losses beside the full softmax")
    parser.add_argument("--steps", type=int, help="instead of such a third")
    parser.add_argument("--runs", type=Path, default=Path("losses"), help="data and runs go here")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    unknown = {*given.only} - {*LOSSES} | {*given.sets} - {*SETS}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join([*SETS, *LOSSES])}")
    losses = [loss for loss in LOSSES if loss == FULL or not given.only or loss in given.only]
    given.runs.mkdir(parents=True, exist_ok=True)
    with alone("cpu", given.threads) as world:
        tables = [
            line
            for name in given.sets or SETS
            for line in table(name, losses, given.steps or SETS[name], given.runs, world)
        ]
    page = [
        "# Sampled losses beside the full softmax",
        "",
        *surroundings(given.threads),
        "",
        "LRURec by its recipes in configs, schedules cut to the steps of the table's first line, "
        "nothing but the loss changed; seed 0, fp32, best checkpoint by validation NDCG@10, test "
        "split, full ranking, items of the history are no candidates. All tokens of a micro-batch "
        f"({TOKENS['ml-1m']:,} on ML-1M, {TOKENS['beauty']:,} on Beauty) share their negatives. "
        "Time is that of the full softmax's training, without validation.",
        "",
        *tables,
    ]
    write_result("losses", page)


if __name__ == "__main__":
    main()
