"""A trained model from its run."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

import models
from models import SequentialModel
from models.item_table import take_table_out
from pipeline.config import Recipe, parse_recipe
from pipeline.errors import LonghaulError
from pipeline.evaluate import ModelScorer, Scorer, ShardedScorer
from pipeline.train import checkpoint
from pipeline.train.checkpoint import Checkpoint
from pipeline.train.table.dealt import DealtTable
from pipeline.world import World

T = TypeVar("T")


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode with fp32 weights, and where they come from.

    fingerprint: of the data it was trained on. checkpoint: hash of the checkpoint's files.
    """

    model: SequentialModel
    recipe: Recipe
    step: int
    fingerprint: str
    checkpoint: str

    def scorer(self) -> Scorer:
        """The model as evaluation and recommendation ask it."""
        return ModelScorer(self.model, self.recipe.train.objective.masks)


@dataclass(frozen=True)
class TrainedTogether(Trained):
    """A model whose item table is dealt over workers, who can but score together."""

    table: DealtTable
    world: World

    def scorer(self) -> Scorer:
        """See ``Trained``; all workers ask equally often."""
        masks = self.recipe.train.objective.masks
        return ShardedScorer(self.model, self.table, self.world, masks)


def load_trained(
    run_url: str,
    device: torch.device | str = "cpu",
    warn: Callable[[str], None] = warnings.warn,
    newest: bool = False,
) -> Trained:
    """The model of a run's best checkpoint, or of its newest one.

    warn: told of each newer checkpoint that does not verify. Raises LonghaulError where the run
    has no checkpoint that verifies.
    """
    return load_together(run_url, World(0, 1, torch.device(device)), warn, newest)


def load_together(
    run_url: str,
    world: World,
    warn: Callable[[str], None] = warnings.warn,
    newest: bool = False,
) -> Trained:
    """As ``load_trained``, on workers who call it together, and then score together.

    Of a sharded table each reads and holds what falls to it; a worker alone holds all of it, and
    scores as if it were dense. Raises on all of them where one cannot read.
    """

    def read(last: Checkpoint) -> Trained:
        return _load(last if newest else _best(run_url, last), world)

    return _newest(run_url, read, warn, world)


def best_checkpoint(run_url: str, warn: Callable[[str], None] = warnings.warn) -> Checkpoint:
    """A run's best checkpoint, of which no tensor is read yet. Raises as ``load_trained``."""
    return _newest(
        run_url, lambda last: _best(run_url, last), warn, World(0, 1, torch.device("cpu"))
    )


def load_checkpoint(kept: Checkpoint, device: torch.device | str = "cpu") -> Trained:
    """The model of a checkpoint. Raises LonghaulError where it does not verify."""
    recipe = parse_recipe(kept.commit.recipe, kept.url)
    weights = kept.weights()
    model = models.build(recipe.model, kept.commit.catalogue_size)
    model.load_state_dict(weights)
    return Trained(model.to(device).eval(), **_facts(kept, recipe))


def load_checkpoint_together(kept: Checkpoint, world: World) -> Trained:
    """As ``load_together``, of a given checkpoint."""
    return world.on_every_rank(lambda: _load(kept, world))


def has_sharded_table(kept: Checkpoint) -> bool:
    """Whether several workers hold the checkpoint's item table in parts, and score together."""
    return parse_recipe(kept.commit.recipe, kept.url).train.table.home == "sharded"


def _load(kept: Checkpoint, world: World) -> Trained:
    """What this worker holds of a checkpoint. Raises on this one alone."""
    if world.world_size > 1 and has_sharded_table(kept):
        return _load_dealt(kept, world)
    return load_checkpoint(kept, world.device)


def _load_dealt(kept: Checkpoint, world: World) -> TrainedTogether:
    """This worker's part of the model of a checkpoint: the trunk, and its rows of the table."""
    recipe = parse_recipe(kept.commit.recipe, kept.url)
    model = models.build(recipe.model, 1)  # its table is of no use
    table = DealtTable(take_table_out(model, kept.commit.catalogue_size), world)
    table.restore(kept.read)
    trunk = {name: kept.tensor(f"weight/{name}") for name, _ in model.named_parameters()}
    model.load_state_dict(trunk)
    model.to(world.device).eval()
    return TrainedTogether(model, **_facts(kept, recipe), table=table, world=world)


def _facts(kept: Checkpoint, recipe: Recipe) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "step": kept.state.step,
        "fingerprint": kept.state.data.fingerprint,
        "checkpoint": kept.commit.sha256,
    }


def _newest(
    run_url: str, read: Callable[[Checkpoint], T], warn: Callable[[str], None], world: World
) -> T:
    found = checkpoint.newest(run_url, read, warn, world)
    if found is None:
        raise LonghaulError(f"{run_url} has no checkpoint yet")
    return found[1]


def _best(run_url: str, last: Checkpoint) -> Checkpoint:
    place = checkpoint.best_place(run_url, last)
    return last if place == last.place else Checkpoint(run_url, place)
