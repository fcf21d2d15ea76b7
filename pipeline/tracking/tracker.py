"""The metrics of one attempt at a run, on its first rank: the run's own file, and W&B if asked."""

from typing import Any

from pipeline.config import Recipe
from pipeline.manifest import Dataset
from pipeline.tracking.metrics_file import MetricsFile
from pipeline.tracking.wandb_run import WandbRun
from pipeline.train.checkpoint import Best
from pipeline.train.run import State, metrics_url


class Tracker:
    """facts: what an attempt computes with, beside the recipe."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, attempt: int, facts: dict[str, Any]
    ) -> None:
        self._dataset = dataset
        self._file = MetricsFile(metrics_url(recipe.run_url, attempt))
        self._wandb: WandbRun | None = None
        if recipe.tracking.wandb != "disabled":
            self._wandb = WandbRun(recipe, attempt, facts)

    def log(self, record: dict[str, Any]) -> None:
        """Log one record of numbers; ``step`` is the training step it belongs to."""
        self._file.log(record)
        if self._wandb is not None:
            self._wandb.log(record)

    def flush(self) -> None:
        """Make everything logged so far visible in the run's folder."""
        self._file.flush()

    def close(self, state: State, best: Best | None) -> None:
        """End the attempt, with the state and the best checkpoint that the run has."""
        self._file.flush()
        if self._wandb is not None:
            self._wandb.add_lineage(self._dataset, best)
            self._wandb.close(state)
