"""The commands that work on the model of a run: how it ranks, what it recommends, its page."""

import sys
from typing import Annotated, Any

import typer

from pipeline.cli import AsJson, print_json
from pipeline.command_options import pair, validated
from pipeline.errors import LonghaulError
from pipeline.serve_commands import recommend_served


def add_to(app: typer.Typer) -> None:
    """Make the commands part of the application."""
    for command in (evaluate, compare, recommend, report):
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
    groups: Annotated[
        bool, typer.Option(help="Also by length of the history and popularity of the target.")
    ] = False,
    per_user: Annotated[
        bool, typer.Option(help="Also what is found for each user, as Parquet.")
    ] = False,
    output: Annotated[
        str | None, typer.Option(help="Folder for the results, not the run's eval folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank the whole catalogue for every user with the best checkpoint of a run.

    [bold]longhaul evaluate runs/lrurec --baselines --set seen=window --set ks=[1,10][/bold]

    [bold]longhaul evaluate runs/lrurec --groups --per-user --set lists=true[/bold]

    [bold]longhaul evaluate runs/lrurec --set candidates=10000 --set seen=none[/bold]   (sampled)

    Results are kept in the run's eval folder. Several workers share the work under torchrun.
    """
    from pipeline import storage, world
    from pipeline.evaluate import Protocol
    from pipeline.evaluate.of_run import evaluate_run
    from pipeline.manifest import open_dataset
    from pipeline.prepare.synth.truth import Truth
    from pipeline.progress import bar
    from pipeline.tracking.evaluations import track_evaluations
    from pipeline.train.run import load_config
    from pipeline.train.trained import load_trained

    placement = load_config(run).placement
    surroundings = world.torchrun if world.inside_torchrun() else world.alone
    with surroundings(placement.device, placement.threads) as here, bar("evaluate") as progress:
        trained = load_trained(run, here.device, _warn, newest)
        kept = trained.recipe.evaluation.model_dump()
        protocol = validated(Protocol, {**kept, **_changes(overrides), "split": split})
        evaluations = list(
            evaluate_run(
                trained,
                open_dataset(data or trained.recipe.data.path),
                protocol,
                here,
                baselines=baselines,
                truth=Truth.load(truth) if truth else None,
                per_user=per_user,
                output=storage.absolute(output) if output else None,
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

    from pipeline.evaluate.show import tables_of, tables_of_groups

    for table in tables_of(evaluations) + (tables_of_groups(evaluations) if groups else []):
        Console().print(table)


def compare(
    runs: Annotated[list[str], typer.Argument(help="Folders of runs.")],
    baseline: Annotated[
        str | None,
        typer.Option(help="The run, or the popularity or co-occurrence, to compare with."),
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="As ndcg@10; may be repeated.")
    ] = None,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    data: Annotated[
        str | None, typer.Option(help="Another data set than the ones trained on.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A change to the protocol of all runs."),
    ] = None,
    samples: Annotated[int, typer.Option(min=100, help="Random signs for p.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the random signs.")] = 0,
    output: Annotated[
        str | None, typer.Option(help="Folder for compare.json and compare.png.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs user by user: differences, 95 % intervals, and whether they could be chance.

    [bold]longhaul compare runs/sasrec runs/lrurec runs/hydrarec --metric ndcg@10[/bold]

    [bold]longhaul compare runs/lrurec --baseline co-occurrence --output page[/bold]

    Runs without results for each user (`evaluate --per-user`) are evaluated first. p is two-sided,
    by random signs; where there is more than one difference it is corrected by Holm's method.
    """
    from pipeline import storage
    from pipeline.evaluate.compare import compare as differences
    from pipeline.evaluate.compare_runs import sides_of
    from pipeline.evaluate.show import picture_of_comparison, table_of_comparison
    from pipeline.progress import bar

    changes = {**_changes(overrides), "split": split}
    with bar("compare") as progress:
        reference, others = sides_of(
            runs,
            changes,
            baseline,
            data,
            _warn,
            lambda name, done, total: progress.update(done, total, name),
        )
        ks = reference.found.protocol.ks
        wanted = metrics or [f"ndcg@{10 if 10 in ks else ks[0]}"]
        found = differences(reference, others, wanted, samples, seed)
    if output:
        folder = storage.absolute(output)
        storage.write_bytes(storage.join(folder, "compare.png"), picture_of_comparison(found))
        storage.write_json(storage.join(folder, "compare.json"), found.model_dump(mode="json"))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    from rich.console import Console

    Console().print(table_of_comparison(found))


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
    output: Annotated[str, typer.Option(help="Folder for report.html and the pictures.")],
    examples: Annotated[
        int, typer.Option(min=0, help="Users to show the history and the best items of.")
    ] = 0,
    names: Annotated[
        str | None,
        typer.Option(
            metavar="FILE:KEY,NAME",
            help="Names of the items shown: Parquet, CSV or TSV, its columns of keys and names.",
        ),
    ] = None,
) -> None:
    """Write one page on a run: how it trained, where its time went, how it ranks, with pictures.

    [bold]longhaul report runs/demo --output page[/bold]

    [bold]longhaul report runs/ml-1m --output page --examples 5 --names movies.csv:id,title[/bold]

    A run tracked by W&B gets the page there too.
    """
    from pipeline.report.page import write_report
    from pipeline.tracking.evaluations import track_report
    from pipeline.train.run import load_config

    if names is not None and not examples:
        raise LonghaulError("--names is for the items of examples: say how many with --examples")
    page, found = write_report(run, output, _warn, examples, names)
    recipe = load_config(run)
    if recipe.tracking.wandb != "disabled":
        track_report(recipe, found)
    typer.echo(page)


def _changes(overrides: list[str] | None) -> dict[str, Any]:
    """The changes to a protocol that ``--set`` asks for."""
    import yaml

    return {name: yaml.safe_load(value) for name, value in map(pair, overrides or [])}


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
