"""The commands that work on the model of a run: how it ranks, what it recommends, its page."""

import sys
from typing import Annotated

import typer

from pipeline.cli import AsJson, print_json
from pipeline.command_options import pair, validated
from pipeline.errors import LonghaulError
from pipeline.serve_commands import recommend_served


def add_to(app: typer.Typer) -> None:
    """Make the commands part of the application."""
    for command in (evaluate, recommend, report):
        app.command()(command)


def evaluate(
    run: Annotated[str, typer.Argument(help="A run's folder, as runs/demo.")],
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    data: Annotated[
        str | None, typer.Option(help="Another data set than the one trained on.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A change to the protocol, as seen=none."),
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Also the popularity baselines.")] = False,
    truth: Annotated[
        str | None, typer.Option(help="truth.json of a synthetic log: also the best possible.")
    ] = None,
    newest: Annotated[bool, typer.Option(help="The newest checkpoint, not the best.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rank the whole catalogue for every user with the best checkpoint of a run.

    [bold]longhaul evaluate runs/lrurec --baselines --set seen=window --set ks=[1,10][/bold]

    Results are kept in the run's eval folder. Several workers share the work under torchrun.
    """
    import yaml

    from pipeline import world
    from pipeline.evaluate import Protocol
    from pipeline.evaluate.of_run import evaluate_run
    from pipeline.manifest import open_dataset
    from pipeline.prepare.synth import Truth
    from pipeline.progress import bar
    from pipeline.tracking.evaluations import track_evaluations
    from pipeline.train.run import load_config
    from pipeline.train.trained import load_trained

    placement = load_config(run).placement
    surroundings = world.torchrun if world.inside_torchrun() else world.alone
    with surroundings(placement.device, placement.threads) as here, bar("evaluate") as progress:
        trained = load_trained(run, here.device, _warn, newest)
        changes = dict(pair(text) for text in overrides or [])
        kept = trained.recipe.evaluation.model_dump()
        changed = {name: yaml.safe_load(value) for name, value in changes.items()}
        protocol = validated(Protocol, {**kept, **changed, "split": split})
        evaluations = list(
            evaluate_run(
                trained,
                open_dataset(data or trained.recipe.data.path),
                protocol,
                here,
                baselines=baselines,
                truth=Truth.load(truth) if truth else None,
                progress=lambda name, done, total: progress.update(done, total, name),
            )
        )
    if here.rank:
        return
    if trained.recipe.tracking.wandb != "disabled":
        track_evaluations(trained.recipe, evaluations)
    if as_json:
        print_json([evaluation.model_dump(mode="json") for evaluation in evaluations])
        return
    from rich.console import Console

    from pipeline.report import table_of

    Console().print(table_of(evaluations))


def recommend(
    run: Annotated[str, typer.Argument(help="A run's folder, or a bundle's.")],
    output: Annotated[str, typer.Option(help="Parquet file to write.")],
    k: Annotated[int, typer.Option(min=1, help="Items for each user.")] = 10,
    users: Annotated[
        list[str] | None, typer.Option("--user", help="Only this user; may be repeated.")
    ] = None,
    seen: Annotated[bool, typer.Option(help="Items of the history may be recommended.")] = False,
    data: Annotated[
        str | None, typer.Option(help="Another data set than the one trained on.")
    ] = None,
    save_state: Annotated[
        str | None, typer.Option(help="Folder to keep users' states in, for new events later.")
    ] = None,
    events: Annotated[
        str | None, typer.Option(help="Parquet file of new events, to be added to --state.")
    ] = None,
    state: Annotated[str | None, typer.Option(help="Folder that an earlier run kept.")] = None,
    columns: Annotated[
        str, typer.Option(help="Of --events: user, item and time, or user and item.")
    ] = "user,item,timestamp",
    skip_unknown_items: Annotated[
        bool, typer.Option(help="Leave out --events of items that the model does not know.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the best items for all users of a data set, or for a few; or go on with new events.

    [bold]longhaul recommend runs/demo --output recommendations.parquet[/bold]

    [bold]longhaul recommend runs/demo --output few.parquet --user 7 --user 12 --json[/bold]

    [bold]longhaul recommend bundles/demo --data data/demo --output r.parquet --save-state s1[/bold]

    [bold]longhaul recommend bundles/demo --events today.parquet --state s1 --output today-r.parquet
    --save-state s2[/bold]

    With states a model takes whole histories, and each new event in the same time.
    """
    import io

    import pyarrow.parquet as pq

    from pipeline import recommend as stage
    from pipeline import storage, world
    from pipeline.export.bundle import is_bundle
    from pipeline.manifest import open_dataset
    from pipeline.progress import bar
    from pipeline.train.run import load_config
    from pipeline.train.trained import load_trained

    if save_state or events or state or is_bundle(run):
        if users:
            raise LonghaulError("--user goes with a run and without states")
        recommend_served(
            run,
            output,
            k=k,
            seen=seen,
            data=data,
            save_state=save_state,
            events=events,
            state=state,
            columns=columns,
            skip_unknown_items=skip_unknown_items,
            as_json=as_json,
        )
        return
    placement = load_config(run).placement
    with world.alone(placement.device, placement.threads) as here, bar("recommend") as progress:
        trained = load_trained(run, here.device, _warn)
        count = stage.recommend(
            open_dataset(data or trained.recipe.data.path),
            trained.scorer(),
            storage.absolute(output),
            k=k,
            max_history=trained.recipe.evaluation.max_history,
            users=users or None,
            seen=seen,
            progress=lambda done, total: progress.update(done, total),
        )
    if as_json or users:
        written = storage.read_bytes(storage.absolute(output))
        rows = pq.read_table(io.BytesIO(written)).to_pylist()
        if as_json:
            print_json(rows)
            return
        for row in rows:
            typer.echo(f"user {row['user']}: {', '.join(map(str, row['items']))}")
    typer.echo(f"{count:,} users, up to {k} items each: {output}")


def report(
    run: Annotated[str, typer.Argument(help="A run's folder.")],
    output: Annotated[str, typer.Option(help="Folder for report.html and report.png.")],
) -> None:
    """Write one page on a run: how it trained, how it ranks, with pictures."""
    from pipeline.report import write_report

    typer.echo(write_report(run, output))


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
