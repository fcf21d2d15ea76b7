"""How the trials of a sweep stand, read from their runs; and the sweep's own record.

RUNS/SWEEP/sweep.json   sweep.png   stop
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.sweep.plan import Sweep, Trial
from cluster.sweep.space import Point
from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.train.run import differences, metrics_of
from pipeline.train.standing import standing

SUCCEEDED = ("done", "ended early")
_TO_GO_ON = ("new", "running", "preempted")


@dataclass(frozen=True)
class Outcome:
    """One trial: new, running, preempted, failed, ended early, or done."""

    run: str
    url: str
    point: Point
    state: str
    step: int
    steps: int
    best: float | None
    reason: str | None
    validations: list[tuple[int, float]]

    def as_document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def outcomes(sweep: Sweep) -> list[Outcome]:
    """Of all trials, in their order."""
    return [_outcome(sweep, trial) for trial in sweep.trials]


def _outcome(sweep: Sweep, trial: Trial) -> Outcome:
    new = Outcome(
        run=trial.name,
        url=trial.url,
        point=trial.point,
        state="new",
        step=0,
        steps=trial.recipe.train.steps,
        best=None,
        reason=None,
        validations=[],
    )
    if not storage.exists(storage.join(trial.url, "config.yaml")):
        return new
    stands = standing(trial.url)
    name = f"validation/{sweep.metric}"
    ended = stands.state == "preempted" and stands.reason == sweep.end_reason
    return replace(
        new,
        state="ended early" if ended else stands.state,
        step=stands.step,
        best=stands.best,
        reason=stands.reason,
        validations=[(r["step"], r[name]) for r in metrics_of(trial.url) if name in r],
    )


def unfinished(found: Iterable[Outcome]) -> list[Outcome]:
    """Trials that the same command would go on with, beside those that failed."""
    return [one for one in found if one.state in _TO_GO_ON]


def ranked(found: Iterable[Outcome]) -> list[Outcome]:
    """The best first; those without a validation last."""
    return sorted(found, key=lambda one: (one.best is None, -(one.best or 0.0), one.run))


def check_record(sweep: Sweep) -> None:
    """Raise LonghaulError, with the differences, where the name belongs to another sweep."""
    url = record_url(sweep)
    if not storage.exists(url):
        return
    changes = differences(storage.read_json(url)["identity"], sweep.identity)
    if changes:
        raise LonghaulError(
            f"sweep {sweep.name} at {sweep.url} was begun with another specification "
            f"({'; '.join(changes)}): choose another name, or restore the specification"
        )


def write_record(sweep: Sweep, state: str, found: list[Outcome]) -> None:
    """Keep what is searched and how it stands."""
    document = {
        "schema_version": 1,
        "name": sweep.name,
        "state": state,
        "identity": sweep.identity,
        "trials": [one.as_document() for one in found],
    }
    storage.write_json(record_url(sweep), document)


def record_url(sweep: Sweep) -> str:
    """Where the sweep is recorded."""
    return storage.join(sweep.url, "sweep.json")
