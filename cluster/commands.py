"""The commands that plan runs on clusters, hand them over, and many runs to Ray Tune."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli import PREEMPTED_EXIT, AsJson, Overrides, print_json, tell_end
from pipeline.errors import LonghaulError

if TYPE_CHECKING:
    from cluster.launch import Submission
    from cluster.launch.job import Job
    from cluster.sweep.outcome import Outcome
    from cluster.sweep.plan import Sweep


def add_to(app: typer.Typer) -> None:
    """Make the commands part of the application."""
    for command in (plan, launch, sweep):
        app.command()(command)


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe, as configs/demo.yaml.")],
    overrides: Overrides = None,
    cluster: Annotated[str, typer.Option(help="The cluster's specification, a YAML file.")] = "",
    workers: Annotated[
        str, typer.Option(metavar="N,N...", help="Numbers of workers, a column each.")
    ] = "",
    events: Annotated[
        float | None, typer.Option(min=1, help="Training events, where there is no data set.")
    ] = None,
    items: Annotated[
        float | None, typer.Option(min=2, help="Items, where there is no data set.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would take on a cluster: time of a step by part, memory, hours, price.

    [bold]longhaul plan RECIPE --cluster configs/clusters/slurm.yaml --workers 1,8,16,32[/bold]

    [bold]longhaul plan RECIPE --cluster SPEC train.table.home=sharded --json[/bold]

    [bold]longhaul plan RECIPE --cluster SPEC --events 5e9 --items 1e7[/bold]   (no data set yet)

    A model of the cost, no measurement (docs/scaling.md): what it rests on stands below the table.
    The machines are the part hardware of SPEC, as [bold]hardware: {device: h100}[/bold].
    """
    from rich.console import Console

    from cluster.plan.counts import counts_of
    from cluster.plan.estimate import estimate
    from cluster.plan.show import notes_of, table_of_plan
    from cluster.spec import ClusterSpec, load_spec
    from pipeline.config import load_recipe

    numbers = _numbers(workers)
    spec = load_spec(cluster) if cluster else ClusterSpec()
    loaded = load_recipe(recipe, overrides or [])
    given = [None if number is None else round(number) for number in (events, items)]
    counts = counts_of(loaded, *given)
    found = estimate(loaded, spec, counts, numbers)
    if as_json:
        print_json(found.as_document())
        return
    Console().print(table_of_plan(found))
    for note in notes_of(found):
        typer.echo(f"- {note}")


def _numbers(text: str) -> list[int]:
    """``1,2,4`` as numbers, each once, in order."""
    found = {part.strip() for part in text.split(",") if part.strip()}
    if not all(part.isdecimal() and int(part) for part in found):
        raise LonghaulError(f"--workers {text!r} is no list of numbers of workers, as 1,2,4")
    return sorted(map(int, found))


def launch(
    launcher: Annotated[
        Literal["ray", "kubernetes", "slurm"], typer.Argument(help="Who starts the run.")
    ],
    recipe: Annotated[str, typer.Argument(help="A recipe, as configs/demo.yaml.")],
    overrides: Overrides = None,
    cluster: Annotated[str, typer.Option(help="The cluster's specification, a YAML file.")] = "",
    render_only: Annotated[
        bool, typer.Option("--render-only", help="Write and print the job; submit nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Come back when the run has ended.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait, and show how far the run is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start a run on a cluster, or go on with one of the same name.

    [bold]longhaul launch ray RECIPE --cluster configs/clusters/ray.yaml --follow[/bold]

    [bold]longhaul launch slurm RECIPE --cluster SPEC train.steps=1000 --wait[/bold]

    [bold]longhaul launch kubernetes RECIPE --cluster SPEC --render-only | kubectl apply -f -[/bold]

    What was submitted is kept in RUN/launch. With --wait the exit code says how the run ended.
    """
    from cluster.launch import keep, submit
    from cluster.launch.job import place
    from cluster.spec import ClusterSpec, load_spec
    from pipeline.config import load_recipe
    from pipeline.train.run import read_state

    spec = load_spec(cluster) if cluster else ClusterSpec()
    job = place(load_recipe(recipe, overrides or []), spec)
    if render_only:
        typer.echo(keep(job, launcher), nl=False)
        return
    stands = read_state(job.recipe.run_url)
    submission = submit(job, launcher)
    if wait or follow:
        _wait(job, submission, stands.attempt if stands else 0, follow, as_json)
    elif as_json:
        print_json({"run": job.recipe.run_url, **submission.model_dump()})
    else:
        typer.echo(f"{launcher} job {submission.id} submitted: {job.recipe.run_url}")


def _wait(job: "Job", submission: "Submission", before: int, follow: bool, as_json: bool) -> None:
    from cluster.launch import wait
    from pipeline.progress import bar

    name = job.recipe.name
    if follow:
        with bar(f"train {name}") as progress:
            stands = wait(job, submission, before, progress)
    else:
        stands = wait(job, submission, before, None)
    tell_end(job.recipe, stands, as_json)


def sweep(
    spec: Annotated[str, typer.Argument(help="A sweep, as configs/sweeps/demo.yaml.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the points, and do nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe at many points of a space, and end the worse ones early (ASHA, Ray Tune).

    [bold]longhaul sweep configs/sweeps/demo.yaml --dry-run[/bold]   (the points)

    [bold]longhaul sweep configs/sweeps/demo.yaml tracking.wandb=offline train.steps=1000[/bold]

    [bold]ray job submit --working-dir . -- longhaul sweep SPEC runs=s3://bucket/runs[/bold]

    Every trial is a run, SWEEP-001 and on: status, evaluate, report and recommend work on it. The
    same command goes on with a sweep that stopped (exit code 75), and tries again what failed.
    Results are kept in RUNS/SWEEP.
    """
    from rich.console import Console

    from cluster.sweep.outcome import check_record, outcomes, unfinished
    from cluster.sweep.plan import plan as plan_of
    from cluster.sweep.report import table_of_trials, write_picture
    from cluster.sweep.spec import load_sweep_spec
    from pipeline.progress import bar

    planned = plan_of(load_sweep_spec(spec), overrides or [])
    if dry_run:
        check_record(planned)
        found = outcomes(planned)
    else:
        from cluster.sweep.search import search

        with bar(f"sweep {planned.name}") as progress:
            found = search(planned, progress)
    picture = None if dry_run else write_picture(planned, found)
    if as_json:
        document = {"sweep": planned.url, "metric": planned.metric, "picture": picture}
        print_json({**document, "trials": [one.as_document() for one in found]})
    else:
        Console().print(table_of_trials(planned, found))
        if picture is not None:
            typer.echo(picture)
    if dry_run:
        return
    if left := unfinished(found):
        typer.echo(
            f"sweep {planned.name} is not through, {len(left)} of {len(found)} trials are left: "
            "the same command goes on",
            err=True,
        )
        raise typer.Exit(PREEMPTED_EXIT)
    _check_success(planned, found)


def _check_success(planned: "Sweep", found: "list[Outcome]") -> None:
    from cluster.sweep.outcome import SUCCEEDED

    if not any(one.state in SUCCEEDED for one in found):
        raise LonghaulError(
            f"no trial of sweep {planned.name} succeeded; {found[0].run} failed: {found[0].reason}"
        )
