"""Validation during training: the final evaluation's own code on the validation split."""

from pipeline.config import Recipe
from pipeline.evaluate import Scorer, evaluate
from pipeline.manifest import Dataset
from pipeline.world import World


def validate(dataset: Dataset, scorer: Scorer, recipe: Recipe, world: World) -> dict[str, float]:
    """Metrics of the validation split by name, equal on all ranks."""
    config = recipe.train.validation
    assert config is not None
    protocol = recipe.evaluation.model_copy(update={"split": "validation", "users": config.users})
    return evaluate(dataset, scorer, protocol, world).metrics
