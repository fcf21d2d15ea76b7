"""longhaul by its own recipe, at a constant rate, so that it may be stopped at any time."""

import json
import sys

from benchmarks.peers.turns import Turns
from benchmarks.updates import updates
from pipeline.config import load_recipe
from pipeline.manifest import open_dataset
from pipeline.train.assembly import build_engine
from pipeline.train.validation import validate
from pipeline.world import alone


def main() -> None:
    """Train by turns."""
    given = json.loads(sys.argv[1])
    with alone("cpu", given["threads"]) as world:
        dataset = open_dataset(given["data"])
        changes = [
            f"data.path={dataset.url}",
            "data.lanes=2",
            "evaluation.seen=history",
            "evaluation.ks=[10]",
            "train.validation.metric=hr@10",
        ]
        recipe = load_recipe(given["recipe"], changes)
        engine = build_engine(recipe, dataset, world)

        def evaluate() -> float:
            with engine.scoring():
                return validate(dataset, engine.scorer(), recipe, world)["hr@10"]

        turns = Turns(evaluate)
        turns.trained(0)
        for targets in updates(recipe, dataset, engine):
            turns.trained(targets)


if __name__ == "__main__":
    main()
