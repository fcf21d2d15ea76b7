"""What evaluations found, and the report, in the W&B run of the training."""

import sys

from pipeline.config import Recipe
from pipeline.evaluate.of_run import Evaluation, evaluations_in
from pipeline.report.page import Report, report_of
from pipeline.tracking.wandb_run import WandbRun
from pipeline.train.run import read_state


def track_evaluations(recipe: Recipe, new: list[Evaluation]) -> None:
    """Add the new evaluations as numbers, all that the run has as a table, and the report."""
    if _still_training(recipe):
        return
    run = WandbRun(recipe, attempt=None, facts={})
    numbers = {
        f"{_part(one)}/{one.scorer}/{name}": value
        for one in new
        for name, value in one.result.metrics.items()
    }
    kept = evaluations_in(recipe.run_url)
    metrics = sorted({name for one in kept for name in one.result.metrics})
    rows = [
        [
            one.scorer,
            one.step,
            one.result.protocol.split,
            one.result.protocol.seen,
            one.result.protocol.max_history,
            one.result.ranking,
            one.result.users,
            *(one.result.metrics.get(name) for name in metrics),
        ]
        for one in kept
    ]
    columns = ["scorer", "step", "split", "seen", "max_history", "ranking", "users", *metrics]
    run.add_evaluations(numbers, columns, rows)
    report = report_of(recipe)
    run.add_report(report.page, report.pictures)
    run.close("done")


def track_report(recipe: Recipe, report: Report) -> None:
    """Add a report on the run: the page, and its pictures."""
    if _still_training(recipe):
        return
    run = WandbRun(recipe, attempt=None, facts={})
    run.add_report(report.page, report.pictures)
    run.close("done")


def _still_training(recipe: Recipe) -> bool:
    """Whether it is, with a warning: two processes that write one W&B run overwrite each other."""
    stands = read_state(recipe.run_url)
    if stands is None or stands.state != "running":
        return False
    print(
        f"warning: run {recipe.name} is still training: W&B is told of no evaluation or report",
        file=sys.stderr,
    )
    return True


def _part(one: Evaluation) -> str:
    """What was predicted; a metric among samples must not be drawn beside one of full ranking."""
    protocol = one.result.protocol
    sampled = "" if protocol.candidates == "all" else f"-sampled-{protocol.candidates}"
    return f"{protocol.split}{sampled}"
