"""The commands that work on the model of a run: how it ranks, what it recommends, its page."""

import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.cli import PREEMPTED_EXIT, AsJson, print_json
from pipeline.command_options import pair, validated
from pipeline.errors import LonghaulError
from pipeline.serve_commands import recommend_with_states

if TYPE_CHECKING:
    from pipeline.recommend import Summary


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
    output: Annotated[
        str, typer.Option(help="Folder for Parquet files; with --user one Parquet file.")
    ],
    k: Annotated[int, typer.Option(min=1, help="Items for each user.")] = 10,
    users: Annotated[
        list[str] | None, typer.Option("--user", help="Only this user; may be repeated.")
    ] = None,
    seen: Annotated[bool, typer.Option(help="Items of the history may be recommended.")] = False,
    allow: Annotated[
        str | None, typer.Option(help="Only these items: a file of keys, text or Parquet.")
    ] = None,
    deny: Annotated[
        str | None, typer.Option(help="None of these items: a file of keys, text or Parquet.")
    ] = None,
    items: Annotated[
        str | None, typer.Option(help="Parquet with a row an item, for --where.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Only items that meet it, as 'category=books and price<20'.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Another data set than the one trained on.")
    ] = None,
    part_users: Annotated[
        int | None, typer.Option(min=1, help="Users of a file; by default a 64th, up to 98,304.")
    ] = None,
    engine: Annotated[
        Literal["auto", "local", "ray"],
        typer.Option(help="auto: ray for several workers or inside a Ray cluster."),
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Of Ray; by default as many as there is room for.")
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

    [bold]longhaul recommend runs/demo --output lists[/bold]

    [bold]longhaul recommend runs/demo --output cheap --items i.parquet --where "price<20"[/bold]

    [bold]longhaul recommend runs/demo --output few.parquet --user 7 --user 12 --json[/bold]

    [bold]torchrun --nproc-per-node 2 -m pipeline recommend runs/demo --output lists[/bold]

    [bold]longhaul recommend s3://b/runs/demo --output s3://b/lists --engine ray --workers 8[/bold]

    Users of a data set are in files part-00000.parquet and on, and manifest.json, written last,
    says what they are. The same command goes on where it was stopped (exit code 75) or killed.

    [bold]longhaul recommend runs/demo --output all.parquet --save-state states-0[/bold]

    [bold]longhaul recommend bundles/demo --events today.parquet --state states-0 --output
    today-r.parquet --save-state states-1[/bold]

    With states there is one Parquet file; a model takes whole histories, and each new event of
    --events, in the order of time, in the same time.
    """
    from pipeline import recommend as stage
    from pipeline import storage, world
    from pipeline.config import PlacementConfig, parse_recipe
    from pipeline.export.bundle import Bundle, is_bundle, read_bundle
    from pipeline.manifest import open_dataset
    from pipeline.progress import bar
    from pipeline.serve.replay import data_of_bundle
    from pipeline.train import trained
    from pipeline.train.checkpoint import Checkpoint
    from pipeline.train.run import load_config

    if save_state or events or state:
        of_lists: dict[str, object] = {
            "--user": users,
            "--allow": allow,
            "--deny": deny,
            "--where": where,
        }
        of_lists |= {"--items": items, "--part-users": part_users, "--workers": workers}
        given = [name for name, value in of_lists.items() if value]
        if given or engine == "ray":
            raise LonghaulError(f"{(given or ['--engine ray'])[0]} does not go with states")
        recommend_with_states(
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
    bundle = read_bundle(run) if is_bundle(run) else None
    placement = PlacementConfig() if bundle else load_config(run).placement
    if bundle is not None and engine == "auto" and workers is None:
        engine = "local"
    on_ray = _on_ray(engine, workers, few=bool(users))
    if on_ray and bundle is not None:
        raise LonghaulError("Ray's workers make the lists of a run, not of a bundle")
    if users and part_users is not None:
        raise LonghaulError(
            "--part-users cuts the lists of all users; with --user there is one file"
        )

    def asked() -> tuple[Checkpoint | Bundle, stage.Request]:
        best: Checkpoint | Bundle
        if bundle is not None:
            best = bundle
            dataset = data_of_bundle(bundle, data)
            max_history = bundle.config.protocol["max_history"]
            step, model = bundle.config.step, bundle.config.model_hash
        else:
            best = trained.best_checkpoint(run, _warn)
            recipe = parse_recipe(best.commit.recipe, best.url)
            dataset = open_dataset(data or recipe.data.path)
            max_history = recipe.evaluation.max_history
            step, model = best.state.step, best.commit.sha256
        origin = stage.Origin(run=storage.absolute(run), step=step, model=model)
        chosen = stage.read_candidates(dataset, allow=allow, deny=deny, items=items, where=where)
        return best, stage.Request(
            dataset,
            storage.absolute(output),
            k=k,
            max_history=max_history,
            seen=seen,
            candidates=chosen,
            part_users=part_users,
            origin=origin,
        )

    began = time.monotonic()
    with bar("recommend") as progress:

        def told(done: int, total: int) -> None:
            progress.update(done, total, f"{done / (time.monotonic() - began):,.0f} users/s")

        if on_ray:
            from cluster.ray_recommend import recommend_on_ray

            checkpoint, request = asked()
            assert isinstance(checkpoint, Checkpoint)
            summary = recommend_on_ray(request, checkpoint, placement, workers, told)
        else:
            surroundings = world.torchrun if world.inside_torchrun() else world.alone
            with surroundings(placement.device, placement.threads) as here:
                checkpoint, request = here.on_rank_zero(asked)
                if users and here.rank:
                    return
                scorer = (
                    trained.load_checkpoint(checkpoint, here.device).scorer()
                    if isinstance(checkpoint, Checkpoint)
                    else checkpoint.served(here.device).scorer()
                )
                if users:
                    table = stage.recommend_users(request, scorer, users)
                else:
                    summary = stage.recommend(
                        request, scorer, here, told if not here.rank else None
                    )
                if here.rank:
                    return
    if users:
        _tell_lists(table.to_pylist(), output, as_json)
    else:
        _tell_summary(summary, as_json)


def _on_ray(engine: str, workers: int | None, few: bool) -> bool:
    """Whether Ray's workers make the lists. Raises LonghaulError for what does not go together."""
    from pipeline.world import inside_torchrun

    if few and (engine == "ray" or workers is not None):
        raise LonghaulError("a few users need no workers: leave --engine and --workers out")
    if engine == "auto":
        several = (workers or 1) > 1 or "RAY_ADDRESS" in os.environ
        engine = "ray" if several and not few and not inside_torchrun() else "local"
    if engine == "local" and (workers or 1) > 1:
        raise LonghaulError(
            f"--workers {workers} are Ray's: add --engine ray, or start so many with torchrun"
        )
    return engine == "ray"


def _tell_lists(rows: list[dict[str, Any]], output: str, as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    for row in rows:
        typer.echo(f"user {row['user']}: {', '.join(map(str, row['items']))}")
    typer.echo(f"{len(rows):,} users: {output}")


def _tell_summary(summary: "Summary", as_json: bool) -> None:
    """By the exit code too: 75 where it was asked to stop."""
    if as_json:
        print_json(summary.as_document())
    else:
        state = "stopped" if summary.stopped else "done"
        there = f", {summary.skipped_parts:,} of which were there" if summary.skipped_parts else ""
        typer.echo(
            f"{state}: {summary.users:,} users in {summary.seconds:,.1f} s, "
            f"{summary.users_per_second:,.0f} users/s, {summary.parts:,} parts{there}: "
            f"{summary.output}"
        )
    if summary.stopped:
        raise typer.Exit(PREEMPTED_EXIT)


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
