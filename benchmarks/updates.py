"""The bare training of a recipe, from reading to update, without a folder for it."""

import time
from collections.abc import Iterator

import torch
from torch.profiler import record_function

from pipeline.config import Recipe
from pipeline.manifest import Dataset
from pipeline.stream.stream import Stream
from pipeline.train.assembly import build_engine
from pipeline.train.engine import Engine
from pipeline.world import World


def stream_of(recipe: Recipe, dataset: Dataset) -> Stream:
    """All of the recipe's training data, at the start of its first epoch."""
    stream = Stream(
        dataset,
        recipe.data,
        seed=recipe.train.seed,
        rank=0,
        world_size=1,
        objective=recipe.train.objective,
    )
    stream.start(0)
    return stream


def targets_an_epoch(recipe: Recipe, dataset: Dataset) -> int:
    """Counted by reading the first epoch through."""
    stream = stream_of(recipe, dataset)
    targets = 0
    while (step := stream.next_step()).segments:
        targets += step.targets
    stream.close()
    return targets


def updates(recipe: Recipe, dataset: Dataset, engine: Engine | None = None) -> Iterator[int]:
    """One update an iteration; its number of targets. Goes on for ever; a new engine by default."""
    stream = stream_of(recipe, dataset)
    engine = engine or build_engine(recipe, dataset, World(0, 1, torch.device("cpu")))
    epoch = 0
    while True:
        with record_function("reading"):  # named for a profiler
            step = stream.next_step()
        if not step.segments:
            epoch += 1
            stream.start(epoch)
            continue
        for micro in step.micro:
            engine.backward(micro.batch, step.targets)
        with record_function("update"):
            engine.update(recipe.train.optimizer.lr)
        yield step.targets


def rate(running: Iterator[int], seconds: float) -> float:
    """Targets a second over whole updates of at least ``seconds``."""
    targets, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        targets += next(running)
    return targets / (time.perf_counter() - began)
