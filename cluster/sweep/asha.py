"""Ending trials early: Ray Tune's ASHA decides, and the run is asked to stop, as any run is.

Tune would end a trial by ending its actor, within ten seconds where it is the last. So what ASHA
decides becomes a request in the run's folder, and for Tune the trial goes on until the run has
saved and left; only then are its resources free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from cluster.sweep.plan import Sweep
from pipeline.train.run import request_stop

Validation = dict[str, Any]  # step, value


@dataclass(frozen=True)
class _Finished:
    """A trial of before, for ASHA to compare with."""

    trial_id: str


class Asha(ASHAScheduler):
    """ASHA that knows what trials validated before this process began.

    validations: of each run, in order. running: the runs that are to go on.
    """

    def __init__(
        self, sweep: Sweep, validations: Mapping[str, Sequence[Validation]], running: Sequence[str]
    ) -> None:
        assert sweep.spec.asha is not None
        super().__init__(
            time_attr="step",
            metric="value",
            mode="max",
            grace_period=sweep.grace,
            max_t=max(trial.recipe.train.steps for trial in sweep.trials),
            reduction_factor=sweep.spec.asha.reduction,
            # A trial is judged once at each rung; else Tune would hold a later validation against
            # the earlier ones of others.
            stop_last_trials=False,
        )
        self._urls = {trial.name: trial.url for trial in sweep.trials}
        self._reason = sweep.end_reason
        self._validations = {name: validations.get(name, ()) for name in running}
        self._ended: set[str] = set()
        for name in sorted(validations.keys() - set(running)):
            finished = _Finished(name)
            super().on_trial_add(None, finished)
            self._replay(finished, validations[name])

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial of Tune's begins, again perhaps."""
        super().on_trial_add(tune_controller, trial)
        self._replay(trial, self._validations[trial.config["trial"]["run"]])

    def _replay(self, trial: Any, validations: Sequence[Validation]) -> None:
        for validation in validations:  # what was decided then was decided
            super().on_trial_result(None, trial, validation)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """A trial told something; Tune is to go on with it whatever ASHA thinks of it."""
        name = trial.config["trial"]["run"]
        if name not in self._ended:
            decision = super().on_trial_result(tune_controller, trial, result)
            if decision == TrialScheduler.STOP and not result["over"]:
                self._ended.add(name)
        if name in self._ended:
            request_stop(self._urls[name], reason=self._reason)
        go_on: str = TrialScheduler.CONTINUE
        return go_on
