"""The commands that ask and steer runs by their folders, wherever they run."""

from typing import Annotated

import typer

from pipeline.cli import AsJson, print_json
from pipeline.errors import LonghaulError

Run = Annotated[str, typer.Argument(help="A run's folder, as runs/demo.")]


def add_to(app: typer.Typer) -> None:
    """Make the commands part of the application."""
    for command in (status, stop, runs):
        app.command()(command)


def status(run: Run, as_json: AsJson = False) -> None:
    """Say how a run stands: step, rate, time left, best validation, job.

    [bold]longhaul status s3://bucket/runs/lrurec[/bold]
    """
    from rich.console import Console

    from pipeline.report.tables import table_of_standing
    from pipeline.train.standing import standing

    found = standing(run)
    if as_json:
        print_json(found.as_document())
    else:
        Console().print(table_of_standing(found))


def stop(run: Run) -> None:
    """Ask a run to save and leave, wherever it runs.

    [bold]longhaul stop s3://bucket/runs/lrurec[/bold]

    It does so within seconds, and is then preempted: training or launching it again goes on. A
    sweep, by its folder, stops all its runs.
    """
    from pipeline import storage
    from pipeline.train.run import read_state, request_stop

    stands = read_state(run)
    sweep = storage.join(storage.absolute(run), "sweep.json")
    if stands is None and storage.exists(sweep):
        if (state := storage.read_json(sweep)["state"]) != "running":
            raise LonghaulError(f"sweep {run} is not running: {state}")
        request_stop(run)
        typer.echo(f"asked to stop: {run}")
        return
    if stands is None:
        raise LonghaulError(f"no run at {run}: state.json is missing")
    if stands.state != "running":
        raise LonghaulError(f"run {run} is not running: {stands.state} at step {stands.step:,}")
    request_stop(run, lasting=True)
    typer.echo(f"asked to stop at step {stands.step:,} of {stands.steps:,}: {run}")


def runs(
    folder: Annotated[str, typer.Argument(help="The folder the runs are in.")] = "runs",
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder: state, step, best validation, hours of workers, price.

    [bold]longhaul runs s3://bucket/runs --json[/bold]
    """
    from rich.console import Console

    from pipeline.report.tables import table_of_runs
    from pipeline.train.standing import standings

    found = list(standings(folder))
    if as_json:
        print_json([one.as_document() for one in found])
    else:
        Console().print(table_of_runs(found))
