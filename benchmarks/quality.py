"""Every frozen recipe on real data: trained, ranked over the whole catalogue, put in one table.

    python -m benchmarks.quality train [SET ...] [--only RECIPE ...] [--seeds 1] [--runs FOLDER]
    python -m benchmarks.quality time [SET ...]
    python -m benchmarks.quality page

SET is a folder of ``configs``; its log is looked for in ``LONGHAUL_TEST_DATA``. What a recipe
reached is kept in ``results/quality``, a file a seed, and is not trained again until the recipe
changes; a training that was cut off goes on. So the many hours this takes can be had in parts, on
several machines. ``time`` measures the training alone, a recipe at a time, on a machine that does
nothing else; ``page`` makes the tables of what is kept.
"""

import argparse
import datetime
import json
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, surroundings, write_result
from benchmarks.updates import rate, targets_an_epoch, updates
from pipeline.config import Recipe, load_recipe, read_document
from pipeline.evaluate import Protocol
from pipeline.evaluate.of_run import evaluate_run
from pipeline.manifest import Dataset, open_dataset
from pipeline.prepare import PrepareOptions, prepare
from pipeline.progress import bar
from pipeline.train import loop
from pipeline.train.run import versions
from pipeline.train.trained import load_trained
from pipeline.world import World, alone

CONFIGS = Path(__file__).parents[1] / "configs"
KEPT = RESULTS / "quality"
DATA = Path(os.environ.get("LONGHAUL_TEST_DATA", "../shared/data"))
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "ml-1m": ("ml-1m.txt", {}),
    "ml-1m-lrurec-order": ("ml-1m-lrurec-order.txt", {}),
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
SEEN = {"history": "masked", "none": "not masked"}
WHOLE = "whole history"  # as input, where the model has no limit: its full state
PUBLISHED = {
    ("ml-1m-lrurec-order", "lrurec"): "1: .3264 / .1930",
    ("ml-1m", "lrurec"): "3: .3026 / .1734",
    ("ml-1m", "sasrec"): "2: .3152 / .1821; 1: .3181 / .1902",
    ("ml-1m", "bert4rec"): "1: .3089 / .1638",
    ("ml-1m", "recgrela"): "3: .3311 / .1959",
    ("beauty", "lrurec"): "1: .0528 / .0309",
    ("beauty", "sasrec"): "1: .0504 / .0292",
    ("beauty", "bert4rec"): "1: .0468 / .0242",
}
AS_PUBLISHED = "1: "  # of a paper that masks the window, as some recipes of its models do
UNKNOWN = "not available"  # the tables of HydraRec's and ELASTIC's papers
SOURCES = [
    "Published, and how it differs:",
    "",
    "1. LRURec's paper: the newest 200 (Beauty: 50) items are no candidates, 128 rows a step, full "
    "softmax, dropout .2 (Beauty: .6). Its ML-1M breaks ties in time by the number of the item, "
    "which tells of what comes next: ml-1m-lrurec-order.",
    "2. SASRec with cross-entropy at all positions, of the paper that set it beside BERT4Rec: the "
    "same file, items of the history are no candidates.",
    "3. RecGRELA's paper: not masked; each padded prefix is a row of its own, of which the last "
    "item alone is trained, LRURec's too; RecGRELA's attention goes both ways, over pads too. Here "
    "it is causal, and all positions are trained at once.",
    "",
    f"{UNKNOWN.capitalize()}: the tables of HydraRec's and ELASTIC's papers. SASRec and two "
    "controls stand beside these models: mean has the mean of the history for a mixer, none has "
    "no mixer and knows the last item alone.",
]
TIMED_SECONDS = 8.0

Record = dict[str, Any]


def prepared(name: str, work: Path) -> Dataset:
    """The data set in the work folder, made where it is not there yet."""
    file, options = SETS[name]
    folder = work / "data" / name
    if not (folder / "manifest.json").exists():
        prepare(PrepareOptions(inputs=[str(DATA / file)], output=str(folder), **options))
    return open_dataset(str(folder))


def recipes(name: str, only: list[str]) -> list[Path]:
    """The recipes of a set."""
    found = sorted((CONFIGS / name).glob("*.yaml"))
    return [path for path in found if not only or path.stem in only]


def changed(
    path: Path, seed: int, dataset: Dataset, work: Path, changes: Sequence[str] = ()
) -> Recipe:
    """The recipe as it is run here."""
    here = [f"data.path={dataset.url}", f"runs={work / 'runs'}"]
    if seed:
        name = load_recipe(str(path)).name
        here += [f"train.seed={seed}", f"name={name}-seed-{seed}"]
    return load_recipe(str(path), [*here, *changes])


def train_and_rank(
    recipe: Recipe, called: str, dataset: Dataset, world: World, baselines: bool
) -> Iterator[tuple[str, str, Record]]:
    """(scorer, protocol, what it reached) of one recipe and, as asked, the baselines."""
    with bar(f"train {recipe.name}") as progress:
        if loop.train(recipe, world, progress).state != "done":
            raise SystemExit("stopped: the same command goes on")
    trained = load_trained(recipe.run_url)
    asked = recipe.evaluation.model_dump() | {"split": "test"}
    protocols = {seen: Protocol(**{**asked, "seen": seen}) for seen in [*SEEN, asked["seen"]]}
    if trained.model.max_history is None:
        whole = {"seen": "history", "max_history": dataset.manifest.events}
        protocols[WHOLE] = Protocol(**{**asked, **whole})
    for name, protocol in protocols.items():
        with_baselines = baselines and name in SEEN
        for found in evaluate_run(trained, dataset, protocol, world, baselines=with_baselines):
            reached = {
                "metrics": found.result.metrics,
                "users": found.result.users,
                "without_history": found.result.without_history,
                "max_history": protocol.max_history,
                "best_step": found.step,
            }
            yield called if found.step is not None else found.scorer, name, reached


def train(names: list[str], only: list[str], seeds: int, work: Path, world: World) -> None:
    """Train and rank what is not kept yet."""
    for name in names:
        dataset = prepared(name, work)
        manifest = dataset.manifest
        for path in recipes(name, only):
            document = read_document(str(path))
            for seed in range(seeds):
                with_baselines = seed == 0 and path == recipes(name, [])[0]
                where = KEPT / name / f"{path.stem}-seed-{seed}.json"
                if where.exists() and json.loads(where.read_text())["recipe"] == document:
                    continue
                reached: dict[str, Record] = {}
                recipe = changed(path, seed, dataset, work)
                for scorer, protocol, result in train_and_rank(
                    recipe, path.stem, dataset, world, with_baselines
                ):
                    reached.setdefault(scorer, {})[protocol] = result
                for scorer, results in reached.items():
                    trained = scorer == path.stem
                    keep(
                        where if trained else where.with_name(f"{scorer}.json"),
                        {
                            "recipe": document if trained else None,
                            "seed": seed if trained else None,
                            "date": datetime.date.today().isoformat(),
                            "versions": versions(),
                            "data": {
                                "users": manifest.users,
                                "items": manifest.catalogue_size,
                                "events": manifest.events,
                                "split": manifest.split.kind,
                            },
                            "results": results,
                        },
                    )


def keep(where: Path, record: Record) -> None:
    """Write one record."""
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(f"kept: {where}")


def time(names: list[str], only: list[str], work: Path, threads: int) -> None:
    """Measure the seconds of an epoch of every recipe, training alone."""
    for name in names:
        dataset = prepared(name, work)
        where = KEPT / f"{name}-times.json"
        seconds = json.loads(where.read_text())["seconds"] if where.exists() else {}
        for path in recipes(name, only):
            recipe = changed(path, 0, dataset, work)
            running = updates(recipe, dataset)
            next(running)
            seconds[path.stem] = targets_an_epoch(recipe, dataset) / rate(running, TIMED_SECONDS)
        keep(where, {"seconds": seconds, "surroundings": surroundings(threads)})


def page(threads: int) -> None:
    """Write the tables of all that is kept."""
    write_result(
        "quality",
        [
            "# Quality on real data",
            "",
            *surroundings(threads),
            "",
            "Full ranking over the whole catalogue, best checkpoint by validation NDCG@10; "
            "masked: items of the history are no candidates. fp32; full softmax, "
            "on Beauty a sampled one of 512 negatives. Best settings are the recipes in configs. "
            "Seconds an epoch: training alone, on the machine above. Each line was trained at the "
            "date and commit that its file in results/quality tells.",
            "",
            *SOURCES,
            "",
            *(line for name in SETS if (KEPT / name).is_dir() for line in table(name)),
        ],
    )


def table(name: str) -> list[str]:
    """The part of the page about one data set."""
    records: dict[str, list[Record]] = {}
    for path in sorted((KEPT / name).glob("*.json")):
        records.setdefault(path.stem.split("-seed-")[0], []).append(json.loads(path.read_text()))
    where = KEPT / f"{name}-times.json"
    seconds = json.loads(where.read_text())["seconds"] if where.exists() else {}
    order = sorted(records, key=lambda scorer: -_mean(records[scorer], "history", "ndcg@10"))
    data = records[order[0]][0]["data"]
    some = records[order[0]][0]["results"]["history"]
    head = ["", *metric_heads()]
    head += ["tokens a step", "steps", "seeds", "s an epoch", "published HR@10 / NDCG@10"]
    lines = []
    for scorer in order:
        found = records[scorer]
        recipe = found[0]["recipe"]
        lines.append(
            [
                scorer,
                *(cell for seen in SEEN for cell in both(found, seen)),
                f"{recipe['data']['lanes'] * recipe['data']['lane_tokens']:,}" if recipe else "",
                f"{recipe['train']['steps']:,}" if recipe else "",
                str(len(found)) if recipe else "",
                f"{seconds[scorer]:,.1f}" if scorer in seconds else "",
                _published(name, scorer, found),
            ]
        )
    return [
        f"## {name}",
        "",
        f"{data['users']:,} users, {data['items']:,} items, {data['events']:,} events; "
        f"split {data['split']}; {some['users']:,} users ranked, of whom "
        f"{some['without_history']:,} without history.",
        "",
        f"| {' | '.join(head)} |",
        f"| --- |{' ---: |' * 8} --- |",
        *(f"| {' | '.join(line)} |" for line in lines),
        "",
        *_windows({s: records[s] for s in order if WHOLE in records[s][0]["results"]}),
    ]


def metric_heads() -> list[str]:
    """Heads of the columns that ``both`` fills, a protocol after the other."""
    return [f"{metric}, {told}" for told in SEEN.values() for metric in ("HR@10", "NDCG@10")]


def _published(name: str, scorer: str, found: list[Record]) -> str:
    unknown = scorer.split("-")[0] in ("hydrarec", "elastic")
    told = PUBLISHED.get((name, scorer), UNKNOWN if unknown else "")
    if told.startswith(AS_PUBLISHED) and "window" in found[0]["results"]:
        told += f"; here, masked so: {' / '.join(both(found, 'window'))}"
    return told


def _windows(records: dict[str, list[Record]]) -> list[str]:
    """What the models without a limit gain from all of a history."""
    if not records:
        return []
    newest = next(iter(records.values()))[0]["results"]["history"]["max_history"]
    return [
        f"| masked | HR@10, newest {newest} | NDCG@10 | HR@10, whole history | NDCG@10 |",
        f"| --- |{' ---: |' * 4}",
        *(
            f"| {' | '.join([scorer, *both(found, 'history'), *both(found, WHOLE)])} |"
            for scorer, found in records.items()
        ),
        "",
    ]


def both(found: list[Record], protocol: str) -> list[str]:
    """HR@10 and NDCG@10, with the spread over the seeds."""
    return [_told(_values(found, protocol, metric)) for metric in ("hr@10", "ndcg@10")]


def _values(found: list[Record], protocol: str, metric: str) -> list[float]:
    return [record["results"][protocol]["metrics"][metric] for record in found]


def _mean(found: list[Record], protocol: str, metric: str) -> float:
    return statistics.mean(_values(found, protocol, metric))


def _told(values: list[float]) -> str:
    told = f"{statistics.mean(values):.4f}".removeprefix("0")
    spread = f" ± {statistics.stdev(values):.4f}".replace("0.", ".") if len(values) > 1 else ""
    return told + spread


def main() -> None:
    """Train, time, or write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=["train", "time", "page"])
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(SETS)}; all by default")
    parser.add_argument("--only", nargs="*", default=[], help="names of recipes")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("quality"), help="data and runs go here")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    names = given.sets or list(SETS)
    with alone("cpu", given.threads) as world:
        if given.what == "train":
            train(names, given.only, given.seeds, given.runs, world)
        elif given.what == "time":
            time(names, given.only, given.runs, given.threads)
        else:
            page(given.threads)


if __name__ == "__main__":
    main()
