"""One model ranked in nine ways: the same ranks to the last bit, and ir-measures' own numbers.

    python -m benchmarks.exactness [--steps 600] [--folder FOLDER]

A model of LRURec's recipe for ML-1M, trained for so many steps, ranks all items for every user of
the test split: with one, two and three workers of torchrun, by three sizes of batch each; all that
was found for each user is compared, bit for bit. Then the numbers are had in a second way that
shares no code with the first but the model: histories from the log's text, a product of matrices
in plain torch, items of the history taken out, and the measures of ``ir-measures``.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ir_measures
import pyarrow as pa
import torch
from ir_measures import RR, Qrel, R, ScoredDoc, Success, nDCG

from benchmarks.quality import CONFIGS, DATA, SETS, prepared
from benchmarks.report import surroundings, write_result
from models import PackedBatch
from pipeline.config import Recipe, load_recipe
from pipeline.evaluate import Protocol, blocks
from pipeline.evaluate.of_run import evaluate_run
from pipeline.evaluate.per_user import read_commit, read_parts
from pipeline.manifest import Dataset
from pipeline.progress import bar
from pipeline.train import loop
from pipeline.train.trained import load_together, load_trained
from pipeline.world import alone, torchrun
from tests.train.runs import environment

SET = "ml-1m"
WORKERS, BATCH_TOKENS = (1, 2, 3), (2_000, 16_384, 131_072)
METRICS = {
    f"{name}@10": measure @ 10
    for name, measure in (("hr", Success), ("recall", R), ("ndcg", nDCG), ("mrr", RR))
}
_LISTED = 50  # of the second way's lists: more than any measure looks at
_USERS = 256  # at once in the second way


def trained_run(steps: int, dataset: Dataset, folder: Path) -> Recipe:
    """The run, trained where it is not yet."""
    changes = [f"runs={folder / 'runs'}", f"data.path={dataset.url}", f"name=exactness-{steps}"]
    changes += [f"train.steps={steps}", f"train.validation.every={steps}"]
    recipe = load_recipe(str(CONFIGS / SET / "lrurec.yaml"), changes)
    with alone("cpu", 2) as world, bar("train") as progress:
        if loop.train(recipe, world, progress).state != "done":
            raise SystemExit("stopped: the same command goes on")
    return recipe


def rank(run: str, folder: Path, batch_tokens: int) -> None:
    """One worker's share of one way, to a folder."""
    blocks.BATCH_TOKENS = batch_tokens
    with torchrun("cpu", 1) as world:
        trained = load_together(run, world)
        dataset = prepared(SET, folder)
        output = _output(folder, world.world_size, batch_tokens)
        for _ in evaluate_run(
            trained, dataset, _protocol(trained.recipe), world, per_user=True, output=str(output)
        ):
            pass


def _protocol(recipe: Recipe) -> Protocol:
    return Protocol(**recipe.evaluation.model_dump() | {"split": "test", "seen": "history"})


def _output(folder: Path, workers: int, batch_tokens: int) -> Path:
    return folder / "ranked" / f"{workers}-workers-{batch_tokens}"


def found_by(run: str, folder: Path, workers: int, batch_tokens: int) -> dict[str, Any]:
    """Metrics of one way, and the digest of all that was found for each user."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    asked = ["--rank", run, "--folder", str(folder), "--batch-tokens", str(batch_tokens)]
    subprocess.run(
        [sys.executable, *launcher, "-m", "benchmarks.exactness", *asked],
        env=environment(),
        check=True,
    )
    output = _output(folder, workers, batch_tokens)
    [result] = output.glob("*.json")
    commit = read_commit(str(result.with_suffix("")))
    assert commit is not None
    columns = ["user", "targets", "ranks", "ties", *commit.metrics]
    table = pa.concat_tables(read_parts(str(result.with_suffix("")), commit, columns))
    digest = hashlib.sha256()
    for column in table.combine_chunks().columns:
        digest.update(repr(column.to_pylist()).encode())
    metrics = json.loads(result.read_text())["result"]["metrics"]
    return {"metrics": metrics, "digest": digest.hexdigest(), "users": len(table)}


@torch.no_grad()
def from_the_log(recipe: Recipe, dataset: Dataset) -> dict[str, float]:
    """The metrics by ir-measures, from the text of the log and the model alone."""
    model = load_trained(recipe.run_url).model
    table, bias = model.item_scores()
    keys = dataset.read_items().column("key").to_pylist()
    ids = {key: place for place, key in enumerate(keys, 1)}
    histories: dict[str, list[int]] = {}
    for line in (DATA / SETS[SET][0]).read_text().splitlines():
        user, item = line.split()
        histories.setdefault(user, []).append(ids[type(keys[0])(item)])
    users = list(histories)
    judged, run = [], []
    for first in range(0, len(users), _USERS):
        some = users[first : first + _USERS]
        windows = [histories[u][:-1][-recipe.evaluation.max_history :] for u in some]
        offsets = torch.tensor([0, *map(len, windows)]).cumsum(0)
        items = torch.tensor([item for window in windows for item in window])
        hidden = model.encode(PackedBatch(items, offsets, torch.zeros_like(items)))
        scores = hidden[offsets[1:] - 1] @ table.T + (0 if bias is None else bias)
        scores[:, 0] = -torch.inf
        for row, user in zip(scores, some, strict=True):
            *before, target = histories[user]
            others = [item for item in before if item != target]
            row[others] = -torch.inf
            values, best = row.topk(_LISTED)
            judged.append(Qrel(user, str(target), 1))
            run += [
                ScoredDoc(user, str(i), v)
                for i, v in zip(best.tolist(), values.tolist(), strict=True)
            ]
    totals = dict.fromkeys(METRICS, 0.0)
    names = {measure: name for name, measure in METRICS.items()}
    for value in ir_measures.iter_calc(list(METRICS.values()), judged, run):
        totals[names[value.measure]] += value.value
    return {name: total / len(users) for name, total in totals.items()}


def main() -> None:
    """Rank in every way, compare, and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--folder", type=Path, default=Path("exactness"))
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    parser.add_argument("--batch-tokens", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = Path(os.path.abspath(given.folder))
    if given.rank:
        rank(given.rank, folder, given.batch_tokens)
        return
    dataset = prepared(SET, folder)
    recipe = trained_run(given.steps, dataset, folder)
    found = {
        (workers, tokens): found_by(recipe.run_url, folder, workers, tokens)
        for workers in WORKERS
        for tokens in BATCH_TOKENS
    }
    first = found[WORKERS[0], BATCH_TOKENS[0]]
    theirs = from_the_log(recipe, dataset)
    rows = [
        f"| {workers} | {tokens:,} | {one['digest'][:16]} | {'yes' if one == first else 'NO'} |"
        for (workers, tokens), one in found.items()
    ]
    beside = [
        f"| {name} | {first['metrics'][name]:.12f} | {theirs[name]:.12f} | "
        f"{abs(first['metrics'][name] - theirs[name]):.1e} |"
        for name in METRICS
    ]
    write_result(
        "exactness",
        [
            f"# {first['users']:,} users of ML-1M ranked in {len(found)} ways",
            "",
            *surroundings(2),
            f"- beside it: ir-measures {ir_measures.__version__}",
            "",
            f"LRURec's recipe, {given.steps:,} steps; whole catalogue of "
            f"{dataset.manifest.catalogue_size:,} items, history masked. The digest is of every "
            "user's targets, ranks, ties and metrics; the last column says whether these and the "
            "means are those of the first row, to the last bit.",
            "",
            "| workers | tokens a batch | digest | the same |",
            "| ---: | ---: | --- | --- |",
            *rows,
            "",
            "The same model from the log's text, by plain torch and ir-measures:",
            "",
            "| | longhaul | ir-measures | difference |",
            "| --- | ---: | ---: | ---: |",
            *beside,
            "",
        ],
    )
    if any(one != first for one in found.values()):
        raise SystemExit("the ways differ")


if __name__ == "__main__":
    main()
