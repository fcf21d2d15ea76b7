"""Running the trials of a sweep with Ray Tune, here or on the cluster around this process.

Tune places trials, starts them again after a loss, and hosts ASHA. What it keeps is thrown away:
the runs' own folders say how each trial stands, so the same command goes on after anything.
"""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from cluster.ray_cluster import check_resources, ray_cluster, resources_of_worker, wants_gpus
from cluster.sweep.asha import Asha
from cluster.sweep.outcome import (
    SUCCEEDED,
    Outcome,
    check_record,
    outcomes,
    unfinished,
    write_record,
)
from cluster.sweep.plan import Sweep, check_places
from cluster.sweep.trial import run_trial
from cluster.sweep.watch import Stop, Watch
from pipeline.progress import Bar
from pipeline.train.run import (
    read_state,
    request_stop,
    stop_requested,
    withdraw_stop,
    write_state,
)
from pipeline.world import stop_signals_call

_SECONDS_BETWEEN_LOOKS = 1.0


def search(sweep: Sweep, bar: Bar) -> list[Outcome]:
    """Train what is not trained yet, until all trials have ended or the sweep is asked to stop.

    Raises LonghaulError where the sweep cannot begin; a trial that fails is an outcome.
    """
    check_record(sweep)
    check_places(sweep)
    withdraw_stop(sweep.url)
    before = outcomes(sweep)
    left = [one for one in before if one.state not in SUCCEEDED]
    errors = _train(sweep, before, left, bar) if left else {}
    found = [
        _given_up(one, errors[one.run]) if one.run in errors else one for one in outcomes(sweep)
    ]
    write_record(sweep, "preempted" if unfinished(found) else "done", found)
    return found


def _train(
    sweep: Sweep, before: list[Outcome], left: Sequence[Outcome], bar: Bar
) -> dict[str, str]:
    """Have Tune run what is left; the errors of trials that were lost too often, by run."""
    # Tune writes logs unless told not to, and wants the metric every time.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    placement = sweep.trials[0].recipe.placement
    watch = Watch(before)
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with ray_cluster() as own_cluster, scratch as folder:
        gpu = wants_gpus(placement)
        each = resources_of_worker(placement, gpu)
        need = {kind: count * placement.least_workers for kind, count in each.items()}
        check_resources(need, own_cluster)
        tuner = tune.Tuner(
            # One bundle: all workers of a trial are on one node.
            tune.with_resources(run_trial, tune.PlacementGroupFactory([need])),
            param_space={"trial": tune.grid_search(_told(sweep, left, gpu))},
            tune_config=tune.TuneConfig(
                scheduler=_scheduler(sweep, before, left),
                max_concurrent_trials=sweep.spec.at_once,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=placement.max_failures),
                callbacks=[watch],
                stop=Stop(watch),
                verbose=0,
            ),
        )
        write_record(sweep, "running", before)
        results = _fit(sweep, tuner, watch, bar)
        return {Path(one.path).name: str(one.error) for one in results if one.error}


def _name(trial: Any) -> str:
    name: str = trial.config["trial"]["run"]
    return name


def _told(sweep: Sweep, left: Sequence[Outcome], gpu: bool) -> list[dict[str, Any]]:
    """What each trial is told, whatever node it is on."""
    recipes = {trial.name: trial.recipe.model_dump(mode="json") for trial in sweep.trials}
    for recipe in recipes.values():
        recipe["placement"]["device"] = "cuda" if gpu else "cpu"
    return [
        {
            "run": one.run,
            "recipe": recipes[one.run],
            "sweep": sweep.url,
            "stop_reason": sweep.stop_reason,
            "validated": max((step for step, _ in one.validations), default=0),
        }
        for one in left
    ]


def _scheduler(sweep: Sweep, before: Sequence[Outcome], left: Sequence[Outcome]) -> Asha | None:
    if sweep.spec.asha is None:
        return None
    validations = {
        one.run: [{"step": step, "value": value} for step, value in one.validations]
        for one in before
    }
    return Asha(sweep, validations, [one.run for one in left])


def _fit(sweep: Sweep, tuner: tune.Tuner, watch: Watch, bar: Bar) -> Any:
    """Tune in a thread, so that signals and progress stay with this one; Tune's results."""
    fitted: Future[Any] = Future()
    asked = False

    def fit() -> None:
        try:
            fitted.set_result(tuner.fit())
        except BaseException as error:
            fitted.set_exception(error)

    def ask() -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    thread = threading.Thread(target=fit, name="tune", daemon=True)
    began, trained = time.monotonic(), watch.trained
    # Tune prints, whatever it is told; what a program reads from here is ours alone.
    with stop_signals_call(ask), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        thread.start()
        while thread.is_alive():
            thread.join(_SECONDS_BETWEEN_LOOKS)
            if asked and not watch.stopping:
                request_stop(sweep.url)
            watch.stopping = watch.stopping or stop_requested(sweep.url)
            rate = (watch.trained - trained) / (time.monotonic() - began)
            note = f"{watch.note(sweep.metric)}  {rate:,.1f} steps/s"
            bar.update(watch.through, watch.total, note + "  stopping" * watch.stopping)
    return fitted.result()


def _given_up(one: Outcome, error: str) -> Outcome:
    """A trial that was lost too often: its run does not know, and is told."""
    lines = error.strip().splitlines() or ["lost"]
    reason = lines[-1].rsplit("LonghaulError: ", 1)[-1]
    stands = read_state(one.url)
    if stands is not None and stands.state == "running":
        write_state(one.url, stands.model_copy(update={"state": "failed", "reason": reason}))
    return replace(one, state="failed", reason=reason)
