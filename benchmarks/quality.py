"""Every frozen recipe on real data: trained, ranked over the whole catalogue, put in one table.

    python -m benchmarks.quality [SET ...] [--only RECIPE ...] [--seeds 1] [--runs FOLDER]

SET is a folder of ``configs``; its log is looked for in ``LONGHAUL_TEST_DATA``. Runs that are done
are not trained again and runs that were cut off go on, so the hours this takes can be had in parts.
The time of an epoch is measured by itself at the end: the training alone, a recipe at a time.
"""

import argparse
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import surroundings, write_result
from benchmarks.updates import rate, targets_an_epoch, updates
from pipeline.config import Recipe, load_recipe
from pipeline.evaluate import Protocol, Result
from pipeline.evaluate.of_run import evaluate_run
from pipeline.manifest import Dataset, open_dataset
from pipeline.prepare import PrepareOptions, prepare
from pipeline.progress import bar
from pipeline.train import loop
from pipeline.train.trained import load_trained
from pipeline.world import World, alone

CONFIGS = Path(__file__).parents[1] / "configs"
DATA = Path(os.environ.get("LONGHAUL_TEST_DATA", "../shared/data"))
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "ml-1m": ("ml-1m.txt", {}),
    "beauty": ("beauty.txt", {}),
    "ml-100k": (
        "ml-100k.inter",
        {
            "user": "user_id:token",
            "item": "item_id:token",
            "timestamp": "timestamp:float",
            "split": "time",
            "validation": "28d",
            "test": "28d",
            "min_item_events": 5,
            "min_user_events": 5,
        },
    ),
}
SEEN = ("history", "none")
WHOLE = "whole history"  # as input, where the model has no limit: its full state
PUBLISHED = {
    ("beauty", "lrurec"): ".0528 / .0309, window masked",
    ("ml-1m", "recgrela"): ".3311 / .1959, not masked; padded, both ways, a row a prefix",
    ("ml-1m", "sasrec"): ".3152 / .1821, masked",
}


@dataclass
class Line:
    """What the tables say of one scorer; a Result a seed, by protocol."""

    name: str
    recipe: Recipe | None = None
    results: dict[str, list[Result]] = field(default_factory=dict)
    epoch_seconds: float | None = None

    def cells(self, data: str) -> list[str]:
        """The line of the table."""
        told = [self.name, *(cell for seen in SEEN for cell in self.means(seen))]
        seeds = str(len(self.results[SEEN[0]])) if self.recipe else ""
        steps = f"{self.recipe.train.steps:,}" if self.recipe else ""
        seconds = f"{self.epoch_seconds:,.1f}" if self.epoch_seconds else ""
        return [*told, steps, seeds, seconds, PUBLISHED.get((data, self.name), "")]

    def means(self, protocol: str) -> list[str]:
        """HR@10 and NDCG@10."""
        found = [result.metrics for result in self.results[protocol]]
        return [_mean([metrics[name] for metrics in found]) for name in ("hr@10", "ndcg@10")]


def _mean(values: list[float]) -> str:
    told = f"{statistics.mean(values):.4f}".removeprefix("0")
    spread = f" ± {statistics.stdev(values):.4f}".replace("0.", ".") if len(values) > 1 else ""
    return told + spread


def prepared(name: str, work: Path) -> Dataset:
    """The data set in the work folder, made where it is not there yet."""
    file, options = SETS[name]
    folder = work / "data" / name
    if not (folder / "manifest.json").exists():
        prepare(PrepareOptions(inputs=[str(DATA / file)], output=str(folder), **options))
    return open_dataset(str(folder))


def trained_and_ranked(
    path: Path, seed: int, dataset: Dataset, work: Path, world: World, baselines: bool
) -> Iterator[tuple[str, Recipe, str, Result]]:
    """(scorer, recipe, protocol, result) of one recipe and, as asked, the baselines."""
    changes = [f"data.path={dataset.url}", f"runs={work / 'runs'}"]
    recipe = load_recipe(str(path), changes)
    if seed:
        changes += [f"train.seed={seed}", f"name={recipe.name}-seed-{seed}"]
        recipe = load_recipe(str(path), changes)
    with bar(f"train {recipe.name}") as progress:
        if loop.train(recipe, world, progress).state != "done":
            raise SystemExit("stopped: the same command goes on")
    trained = load_trained(recipe.run_url)
    asked = recipe.evaluation.model_dump() | {"split": "test"}
    protocols = {seen: Protocol(**{**asked, "seen": seen}) for seen in SEEN}
    if trained.model.max_history is None:
        whole = {"seen": "history", "max_history": dataset.manifest.events}
        protocols[WHOLE] = Protocol(**{**asked, **whole})
    for name, protocol in protocols.items():
        with_baselines = baselines and name != WHOLE
        for found in evaluate_run(trained, dataset, protocol, world, baselines=with_baselines):
            scorer = path.stem if found.step is not None else found.scorer
            yield scorer, recipe, name, found.result


def table(name: str, only: list[str], seeds: int, work: Path, world: World) -> list[str]:
    """Train, rank and time the recipes of one data set; its part of the page."""
    dataset = prepared(name, work)
    found: dict[str, Line] = {}
    paths = [path for path in sorted((CONFIGS / name).glob("*.yaml")) if _wanted(path, only)]
    for path in paths:
        for seed in range(seeds):
            first = path == paths[0] and seed == 0
            for scorer, recipe, protocol, result in trained_and_ranked(
                path, seed, dataset, work, world, first
            ):
                line = found.setdefault(scorer, Line(scorer))
                line.results.setdefault(protocol, []).append(result)
                if scorer == path.stem:
                    line.recipe = recipe
    for line in found.values():
        if line.recipe is not None:
            running = updates(line.recipe, dataset)
            next(running)
            line.epoch_seconds = targets_an_epoch(line.recipe, dataset) / rate(running, 8.0)
    lines = sorted(found.values(), key=lambda line: -line.results["history"][0].metrics["ndcg@10"])
    some = lines[0].results["history"][0]
    manifest = dataset.manifest
    head = ["", *(f"{metric}, {seen}" for seen in SEEN for metric in ("HR@10", "NDCG@10"))]
    head += ["steps", "seeds", "s an epoch", "published HR@10 / NDCG@10"]
    return [
        f"## {name}",
        "",
        f"{manifest.users:,} users, {manifest.catalogue_size:,} items, {manifest.events:,} events; "
        f"split {manifest.split.kind}; {some.users:,} users ranked, of whom "
        f"{some.without_history:,} without history.",
        "",
        f"| {' | '.join(head)} |",
        f"| --- |{' ---: |' * 7} --- |",
        *(f"| {' | '.join(line.cells(name))} |" for line in lines),
        "",
        *_windows([line for line in lines if WHOLE in line.results]),
    ]


def _windows(lines: list[Line]) -> list[str]:
    """What the models without a limit gain from all of a history."""
    if not lines:
        return []
    newest = lines[0].results["history"][0].protocol.max_history
    return [
        f"| history masked | HR@10, newest {newest} | NDCG@10 | HR@10, whole history | NDCG@10 |",
        f"| --- |{' ---: |' * 4}",
        *(
            f"| {' | '.join([line.name, *line.means('history'), *line.means(WHOLE)])} |"
            for line in lines
        ),
        "",
    ]


def _wanted(path: Path, only: list[str]) -> bool:
    # A recipe of another file than the set's is a table of its own.
    return (not only or path.stem in only) and "published" not in path.stem


def main() -> None:
    """Train what is not trained, and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(SETS)}; all by default")
    parser.add_argument("--only", nargs="*", default=[], help="names of recipes")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("quality"), help="data and runs go here")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with alone("cpu", given.threads) as world:
        tables = [
            line
            for name in given.sets or SETS
            for line in table(name, given.only, given.seeds, given.runs, world)
        ]
    write_result(
        "quality",
        [
            "# Quality on real data",
            "",
            *surroundings(given.threads),
            "",
            "Full ranking over the whole catalogue, best checkpoint by validation NDCG@10; "
            "history: items of the history are no candidates, none: all are. fp32, full softmax. "
            "Best settings are the recipes in configs. Seconds an epoch: training alone.",
            "",
            *tables,
        ],
    )


if __name__ == "__main__":
    main()
