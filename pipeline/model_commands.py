"""The commands that work on the model of a run: how it ranks, what it recommends, its page."""

import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.cli import PREEMPTED_EXIT, AsJson, print_json
from pipeline.command_options import pair, validated
from pipeline.errors import LonghaulError

if TYPE_CHECKING:
    from pipeline.recommend import Summary


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
    run: Annotated[str, typer.Argument(help="A run's folder.")],
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
    as_json: AsJson = False,
) -> None:
    """Write the best items for all users of a data set, or for a few.

    [bold]longhaul recommend runs/demo --output lists[/bold]

    [bold]longhaul recommend runs/demo --output cheap --items i.parquet --where "price<20"[/bold]

    [bold]longhaul recommend runs/demo --output few.parquet --user 7 --user 12 --json[/bold]

    [bold]torchrun --nproc-per-node 2 -m pipeline recommend runs/demo --output lists[/bold]

    [bold]longhaul recommend s3://b/runs/demo --output s3://b/lists --engine ray --workers 8[/bold]

    Users of a data set are in files part-00000.parquet and on, and manifest.json, written last,
    says what they are. The same command goes on where it was stopped (exit code 75) or killed.
    """
    from pipeline import recommend as stage
    from pipeline import storage, world
    from pipeline.config import parse_recipe
    from pipeline.manifest import open_dataset
    from pipeline.progress import bar
    from pipeline.train import trained
    from pipeline.train.checkpoint import Checkpoint
    from pipeline.train.run import load_config

    placement = load_config(run).placement
    on_ray = _on_ray(engine, workers, few=bool(users))
    if users and part_users is not None:
        raise LonghaulError(
            "--part-users cuts the lists of all users; with --user there is one file"
        )

    def asked() -> tuple[Checkpoint, stage.Request]:
        best = trained.best_checkpoint(run, _warn)
        recipe = parse_recipe(best.commit.recipe, best.url)
        dataset = open_dataset(data or recipe.data.path)
        origin = stage.Origin(
            run=storage.absolute(run), step=best.state.step, model=best.commit.sha256
        )
        chosen = stage.read_candidates(dataset, allow=allow, deny=deny, items=items, where=where)
        return best, stage.Request(
            dataset,
            storage.absolute(output),
            k=k,
            max_history=recipe.evaluation.max_history,
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
            summary = recommend_on_ray(request, checkpoint, placement, workers, told)
        else:
            surroundings = world.torchrun if world.inside_torchrun() else world.alone
            with surroundings(placement.device, placement.threads) as here:
                checkpoint, request = here.on_rank_zero(asked)
                if users and here.rank:
                    return
                scorer = trained.load_checkpoint(checkpoint, here.device).scorer()
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
    output: Annotated[str, typer.Option(help="Folder for report.html and report.png.")],
) -> None:
    """Write one page on a run: how it trained, how it ranks, with pictures."""
    from pipeline.report import write_report

    typer.echo(write_report(run, output))


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
