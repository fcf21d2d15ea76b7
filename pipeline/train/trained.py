"""A trained model from its run."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

import models
from models import SequentialModel
from pipeline.config import Recipe, parse_recipe
from pipeline.errors import LonghaulError
from pipeline.evaluate import ModelScorer
from pipeline.train import checkpoint
from pipeline.train.checkpoint import Checkpoint
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
        wanted = last if newest else _best(run_url, last)
        return wanted, wanted.weights()

    kept, weights = _newest(run_url, read, warn)
    return _trained(kept, weights, device)


def best_checkpoint(run_url: str, warn: Callable[[str], None] = warnings.warn) -> Checkpoint:
    """A run's best checkpoint, of which no tensor is read yet. Raises as ``load_trained``."""
    return _newest(run_url, lambda last: _best(run_url, last), warn)


def load_checkpoint(kept: Checkpoint, device: torch.device | str = "cpu") -> Trained:
    """The model of a checkpoint. Raises LonghaulError where it does not verify."""
    return _trained(kept, kept.weights(), device)


def _newest(run_url: str, read: Callable[[Checkpoint], T], warn: Callable[[str], None]) -> T:
    found = checkpoint.newest(run_url, read, warn, World(0, 1, torch.device("cpu")))
    if found is None:
        raise LonghaulError(f"{run_url} has no checkpoint yet")
    return found[1]


def _best(run_url: str, last: Checkpoint) -> Checkpoint:
    place = checkpoint.best_place(run_url, last)
    return last if place == last.place else Checkpoint(run_url, place)


def _trained(
    kept: Checkpoint, weights: dict[str, torch.Tensor], device: torch.device | str
) -> Trained:
    recipe = parse_recipe(kept.commit.recipe, kept.url)
    model = models.build(recipe.model, kept.commit.catalogue_size)
    model.load_state_dict(weights)
    return Trained(
        model.to(device).eval(),
        recipe,
        kept.state.step,
        kept.state.data.fingerprint,
        kept.commit.sha256,
    )
