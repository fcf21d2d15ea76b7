"""A trained model from its run."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

import models
from models import SequentialModel
from pipeline.config import Recipe, parse_recipe
from pipeline.errors import LonghaulError
from pipeline.evaluate import ModelScorer
from pipeline.train import checkpoint
from pipeline.train.checkpoint import Checkpoint
from pipeline.world import World


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode with fp32 weights, and where they come from."""

    model: SequentialModel
    recipe: Recipe
    step: int
    fingerprint: str

    def scorer(self) -> ModelScorer:
        """The model as evaluation and recommendation ask it."""
        return ModelScorer(self.model, self.recipe.train.objective.masks)


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

    def read(last: Checkpoint) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
        place = last.place if newest else checkpoint.best_place(run_url, last)
        wanted = last if place == last.place else Checkpoint(run_url, place)
        return wanted, wanted.weights()

    found = checkpoint.newest(run_url, read, warn, World(0, 1, torch.device("cpu")))
    if found is None:
        raise LonghaulError(f"{run_url} has no checkpoint yet")
    _, (kept, weights) = found
    recipe = parse_recipe(kept.commit.recipe, kept.url)
    model = models.build(recipe.model, kept.commit.catalogue_size)
    model.load_state_dict(weights)
    return Trained(model.to(device).eval(), recipe, kept.state.step, kept.state.data.fingerprint)


def best_step(run_url: str, warn: Callable[[str], None] = warnings.warn) -> int:
    """The step of the checkpoint that ``load_trained`` takes, told without its weights."""
    found = checkpoint.newest(
        run_url,
        lambda last: checkpoint.best_place(run_url, last).step,
        warn,
        World(0, 1, torch.device("cpu")),
    )
    if found is None:
        raise LonghaulError(f"{run_url} has no checkpoint yet")
    return found[1]
