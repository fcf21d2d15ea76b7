"""The commands that judge the model of a run: how it ranks, alone and beside others; its page."""

from typing import Annotated, Any

import typer

from pipeline.cli import AsJson, print_json
from pipeline.command_options import pair, validated
from pipeline.errors import LonghaulError, warn


def add_to(app: typer.Typer) -> None:
    """Make the commands part of the application."""
    for command in (evaluate, compare, report):
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
    baselines: Annotated[
        bool, typer.Option(help="Also popularity, popularity of late, co-occurrence.")
    ] = False,
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
    from pipeline.train.trained import load_together

    placement = load_config(run).placement
    surroundings = world.torchrun if world.inside_torchrun() else world.alone
    with surroundings(placement.device, placement.threads) as here, bar("evaluate") as progress:
        trained = load_together(run, here, warn, newest)
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
            warn,
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
    page, found = write_report(run, output, warn, examples, names)
    recipe = load_config(run)
    if recipe.tracking.wandb != "disabled":
        track_report(recipe, found)
    typer.echo(page)


def _changes(overrides: list[str] | None) -> dict[str, Any]:
    """The changes to a protocol that ``--set`` asks for."""
    import yaml

    return {name: yaml.safe_load(value) for name, value in map(pair, overrides or [])}
