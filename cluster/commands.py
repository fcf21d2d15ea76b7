"""The commands that hand runs to clusters."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli import AsJson, Overrides, print_json, tell_end

if TYPE_CHECKING:
    from cluster.launch import Submission
    from cluster.launch.job import Job


def add_to(app: typer.Typer) -> None:
    """Make the commands part of the application."""
    app.command()(launch)


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
