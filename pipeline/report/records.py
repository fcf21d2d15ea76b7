"""What a run has told of itself, as the report shows it."""

from dataclasses import dataclass
from typing import Any

from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.train.run import metrics_of
from pipeline.train.standing import Attempt, attempts_of

PARTS = {
    "wait": "waiting for data",
    "agree": "agreeing on the step",
    "forward": "forward",
    "backward": "backward",
    "exchange": "exchange between ranks",
    "update": "update",
    "other": "the rest of the steps",
    "validating": "validation",
    "saving": "checkpoints",
}


@dataclass(frozen=True)
class Records:
    """Lines of metrics: of training and of validation, where later attempts overrule earlier ones,
    and all that each attempt has told."""

    trained: list[dict[str, Any]]
    validated: list[dict[str, Any]]
    attempts: list[Attempt]

    def seconds(self) -> dict[str, float]:
        """Wall time of all attempts by ``PARTS``; empty where the lines do not tell it."""
        lines = [line for attempt in self.attempts for line in attempt.lines]
        told = [line for line in lines if "seconds/training" in line]
        if not told:
            return {}
        found = {
            part: sum(line[f"seconds/{part}"] for line in told)
            for part in PARTS
            if part not in ("other", "validating")
        }
        steps = sum(line["seconds/training"] for line in told)
        named = sum(seconds for part, seconds in found.items() if part != "saving")
        found["other"] = max(0.0, steps - named)
        found["validating"] = sum(line["seconds"] for line in lines if _is_validation(line))
        return {part: found[part] for part in PARTS}


def records_of(recipe: Recipe) -> Records:
    """The metrics of the recipe's run. Raises LonghaulError where it has logged nothing yet."""
    kept = metrics_of(recipe.run_url)
    trained = [line for line in kept if "loss" in line]
    if not trained:
        raise LonghaulError(
            f"run {recipe.name} at {recipe.run_url} has logged no training step yet"
        )
    validated = [line for line in kept if _is_validation(line)]
    return Records(trained, validated, list(attempts_of(recipe.run_url)))


def _is_validation(line: dict[str, Any]) -> bool:
    return "seconds" in line
