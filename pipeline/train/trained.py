"""A trained model from its run."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

import models
from models import SequentialModel
from pipeline.config import Recipe, parse_recipe
from pipeline.evaluate import ModelScorer
from pipeline.train import checkpoint


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
    found = checkpoint.load_newest(run_url, warn) if newest else None
    found = found or checkpoint.load_best(run_url, warn)
    recipe = parse_recipe(found.recipe, found.url)
    model = models.build(recipe.model, found.catalogue_size)
    model.load_state_dict(found.weights())
    return Trained(model.to(device).eval(), recipe, found.state.step, found.state.data.fingerprint)
