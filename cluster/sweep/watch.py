"""What the process of a sweep hears of its trials from Ray Tune, and how it tells Tune to end."""

from collections.abc import Sequence
from typing import Any

from ray.tune import Callback, Stopper

from cluster.sweep.outcome import SUCCEEDED, Outcome


class Watch(Callback):
    """How far each trial is. Tune calls it from the thread it runs in.

    stopping: the sweep was asked to stop, so that a trial that leaves is not through.
    """

    def __init__(self, before: Sequence[Outcome]) -> None:
        self._total = {one.run: one.steps for one in before}
        self._at = {one.run: one.step for one in before}
        self._best = {one.run: one.best for one in before if one.best is not None}
        self._over = {one.run for one in before if one.state in SUCCEEDED}
        self.running: set[str] = set()
        self.stopping = False

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """See Callback."""
        self.running.add(_run(trial))

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See Callback."""
        name = _run(trial)
        self._at[name] = result.get("step", self._at[name])
        if "value" in result:
            self._best[name] = max(result["value"], self._best.get(name, result["value"]))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """See Callback."""
        self.running.discard(_run(trial))
        if not self.stopping:
            self._over.add(_run(trial))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """See Callback."""
        self.on_trial_complete(iteration, trials, trial)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """See Callback."""
        self.running.discard(_run(trial))

    @property
    def trained(self) -> int:
        """Steps of all trials so far."""
        return sum(self._at.values())

    @property
    def through(self) -> int:
        """Steps trained, and those that need not be."""
        return sum(self._total[run] if run in self._over else at for run, at in self._at.items())

    @property
    def total(self) -> int:
        """Steps of all trials, were none ended early."""
        return sum(self._total.values())

    def note(self, metric: str) -> str:
        """Beside the bar."""
        said = f"{len(self._over)} of {len(self._total)} trials, {len(self.running)} running"
        best = dict(self._best)  # Tune's thread goes on adding to it
        if best:
            run = max(best, key=lambda name: best[name])
            said += f"  best {metric} {best[run]:.4f} ({run})"
        return said


class Stop(Stopper):
    """Ends the search once it was asked to stop and all runs have saved and left."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """See Stopper."""
        return False

    def stop_all(self) -> bool:
        """See Stopper."""
        return self._watch.stopping and not self._watch.running


def _run(trial: Any) -> str:
    name: str = trial.config["trial"]["run"]
    return name
