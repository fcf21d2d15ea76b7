"""What one change does to a recipe's quality on ML-1M, at equal targets: what helped, what did not.

    python -m benchmarks.variations train [RECIPE ...] [--runs FOLDER]
    python -m benchmarks.variations page

Every recipe is trained as it is and with one change at a time, over a third of its targets. What
it reached is kept in ``results/variations``, a file a change, and is not trained again until the
recipe or the change is another; a training that was cut off goes on.
"""

import argparse
import datetime
import json
from pathlib import Path

from benchmarks.quality import (
    CONFIGS,
    SEEN,
    WHOLE,
    Record,
    both,
    changed,
    keep,
    metric_heads,
    prepared,
    train_and_rank,
)
from benchmarks.report import RESULTS, surroundings, write_result
from pipeline.config import load_recipe, read_document
from pipeline.train.run import versions
from pipeline.world import World, alone

SET = "ml-1m"
KEPT = RESULTS / "variations"
AS_IT_IS = "as it is"
SHARE = 3  # of the recipe's targets, one in so many is trained
SMALL, LARGE = "batches of 2,048 tokens", "batches of 8,192 tokens"
TOKENS = {SMALL: 2048, LARGE: 8192}
NO_POSITIONS = ["model.positions=none", "model.max_history=null"]
CHANGES: dict[str, dict[str, list[str]]] = {
    "lrurec": {
        LARGE: [],
        "half the learning rate": ["train.optimizer.lr=1e-3"],
        "another seed": ["train.seed=1"],
        "no row that begins a history": ["data.window.bos=false"],
        "windows as SASRec's": ["data.window.rule=tiles"],
        "dropout .3": ["model.dropout=0.3", "model.recurrence_dropout=0.3"],
    },
    "hydrarec": {
        SMALL: [],
        "no positions": NO_POSITIONS,
        "rotary positions": ["model.positions=rotary", "model.max_history=null"],
        "sum not divided by the length": ["model.length_norm=none"],
        "q and k of length 1": ["model.rescale=false"],
    },
    "elastic": {
        SMALL: [],
        "no positions": NO_POSITIONS,
        "80 experts": ["model.experts=80"],
    },
    "recgrela": {LARGE: [], "dropout .1": ["model.dropout=0.1"]},
    "sasrec": {LARGE: []},
}


def overrides(name: str, change: str) -> list[str]:
    """The change, its run's name, and the schedule cut; a batch of more tokens has fewer steps."""
    recipe = load_recipe(str(CONFIGS / SET / f"{name}.yaml"))
    train, as_it_is = recipe.train, recipe.data.lane_tokens
    assert train.validation is not None
    tokens = TOKENS.get(change, as_it_is)
    counts = {
        "train.steps": train.steps,
        "train.validation.every": train.validation.every,
        "train.checkpoint_every": train.checkpoint_every,
    }
    kind = "".join(letter if letter.isalnum() else "-" for letter in change)
    return [
        f"name=varied-{name}-{kind}",
        f"data.lane_tokens={tokens}",
        *(f"{key}={count * as_it_is // tokens // SHARE}" for key, count in counts.items()),
        *CHANGES[name].get(change, []),
    ]


def train(names: list[str], work: Path, world: World) -> None:
    """Train and rank what is not kept yet."""
    dataset = prepared(SET, work)
    for name in names:
        path = CONFIGS / SET / f"{name}.yaml"
        for change in (AS_IT_IS, *CHANGES[name]):
            varied = overrides(name, change)
            recipe = {"recipe": read_document(str(path)), "changes": varied}
            where = KEPT / name / f"{varied[0].removeprefix('name=')}.json"
            if where.exists() and recipe.items() <= json.loads(where.read_text()).items():
                continue
            called = f"{name}, {change}"
            made = changed(path, 0, dataset, work, varied)
            reached = {
                protocol: result
                for _, protocol, result in train_and_rank(made, called, dataset, world, False)
            }
            keep(
                where,
                {
                    **recipe,
                    "change": change,
                    "date": datetime.date.today().isoformat(),
                    "versions": versions(),
                    "results": reached,
                },
            )


def table(name: str) -> list[str]:
    """The part of the page about one recipe; the recipe as it is comes first."""
    found: list[Record] = [json.loads(path.read_text()) for path in (KEPT / name).glob("*.json")]
    order = [AS_IT_IS, *CHANGES[name]]
    found.sort(key=lambda record: order.index(record["change"]))
    head = ["", *metric_heads(), f"NDCG@10, {WHOLE}"]
    return [
        f"## {name}",
        "",
        f"| {' | '.join(head)} |",
        f"| --- |{' ---: |' * 5}",
        *(f"| {' | '.join([one['change'], *cells(one)])} |" for one in found),
        "",
    ]


def cells(one: Record) -> list[str]:
    """What the columns of its line say."""
    whole = both([one], WHOLE)[1] if WHOLE in one["results"] else ""
    return [*(cell for seen in SEEN for cell in both([one], seen)), whole]


def page(threads: int) -> None:
    """Write the tables of all that is kept."""
    write_result(
        "variations",
        [
            "# One change to a recipe, ML-1M",
            "",
            *surroundings(threads),
            "",
            f"The recipes of configs/{SET} over one in {SHARE} of their targets, seed 0, fp32, "
            "best checkpoint by validation NDCG@10, test split, full ranking by the newest 200 "
            "items; masked: items of the history are no candidates. Whole history, masked too: "
            "models without a limit read all of it. What another seed changes is noise. Each line "
            "was trained at the date and commit that its file in results/variations tells.",
            "",
            *(line for name in CHANGES if (KEPT / name).is_dir() for line in table(name)),
        ],
    )


def main() -> None:
    """Train, or write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=["train", "page"])
    parser.add_argument("recipes", nargs="*", help=f"of {', '.join(CHANGES)}; all by default")
    parser.add_argument("--runs", type=Path, default=Path("quality"), help="data and runs go here")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    unknown = {*given.recipes} - {*CHANGES}
    if unknown:
        parser.error(f"no variations of {', '.join(sorted(unknown))}: {', '.join(CHANGES)}")
    with alone("cpu", given.threads) as world:
        if given.what == "train":
            train(given.recipes or list(CHANGES), given.runs, world)
        else:
            page(given.threads)


if __name__ == "__main__":
    main()
