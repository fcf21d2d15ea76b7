"""The progress of a run that goes on elsewhere, read from its own metrics."""

import contextlib

from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.progress import Bar
from pipeline.train.run import metrics_url, read_metrics


class Follower:
    """Shows on a bar, if there is one, how far a run is."""

    def __init__(self, recipe: Recipe, bar: Bar | None) -> None:
        self._recipe = recipe
        self._bar = bar

    def look(self, attempt: int) -> None:
        """Show the newest line of the attempt that tells of training."""
        if self._bar is None:
            return
        with contextlib.suppress(LonghaulError):  # not written yet; the next look will tell
            records = read_metrics(metrics_url(self._recipe.run_url, attempt))
            trained = [record for record in records if "loss" in record]
            if trained:
                last = trained[-1]
                note = f"loss {last['loss']:.4f}  {last['targets_per_second']:,.0f} targets/s"
                self._bar.update(last["step"], self._recipe.train.steps, note)
