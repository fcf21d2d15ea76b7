"""The command that recommends: lists of everybody or of a few, or from users' states."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.cli import PREEMPTED_EXIT, AsJson, print_json
from pipeline.errors import LonghaulError, warn
from pipeline.serve_commands import recommend_with_states

if TYPE_CHECKING:
    from pipeline.config import PlacementConfig
    from pipeline.export.bundle import Bundle
    from pipeline.recommend import Request, Summary
    from pipeline.train.checkpoint import Checkpoint

    Asked = Callable[[], tuple[Checkpoint | Bundle, Request]]


def add_to(app: typer.Typer) -> None:
    """Make the command part of the application."""
    app.command()(recommend)


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
    from pipeline.config import PlacementConfig
    from pipeline.export.bundle import is_bundle, read_bundle
    from pipeline.train.run import load_config

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

    def asked() -> "tuple[Checkpoint | Bundle, Request]":
        from pipeline import storage
        from pipeline.recommend import Request, read_candidates

        model, known = _model_and_data(run, bundle, data)
        chosen = read_candidates(known["dataset"], allow=allow, deny=deny, items=items, where=where)
        return model, Request(
            output=storage.absolute(output),
            k=k,
            seen=seen,
            candidates=chosen,
            part_users=part_users,
            **known,
        )

    if on_ray:
        _tell_summary(_lists_on_ray(asked, placement, workers), as_json)
        return
    made = _lists_here(asked, placement, users)
    if isinstance(made, list):
        _tell_lists(made, output, as_json)
    elif made is not None:
        _tell_summary(made, as_json)


def _model_and_data(
    run: str, bundle: "Bundle | None", data: str | None
) -> "tuple[Checkpoint | Bundle, dict[str, Any]]":
    """What holds the model; whose histories it takes, how long ones, and where it comes from."""
    from pipeline import storage
    from pipeline.config import parse_recipe
    from pipeline.manifest import open_dataset
    from pipeline.recommend import Origin
    from pipeline.serve.replay import data_of_bundle
    from pipeline.train import trained

    model: Checkpoint | Bundle
    if bundle is not None:
        model, dataset = bundle, data_of_bundle(bundle, data)
        max_history = bundle.config.protocol["max_history"]
        step, sha256 = bundle.config.step, bundle.config.model_hash
    else:
        model = trained.best_checkpoint(run, warn)
        recipe = parse_recipe(model.commit.recipe, model.url)
        dataset = open_dataset(data or recipe.data.path)
        max_history = recipe.evaluation.max_history
        step, sha256 = model.state.step, model.commit.sha256
    origin = Origin(run=storage.absolute(run), step=step, model=sha256)
    return model, {"dataset": dataset, "max_history": max_history, "origin": origin}


def _lists_on_ray(asked: "Asked", placement: "PlacementConfig", workers: int | None) -> "Summary":
    from cluster.ray_recommend import recommend_on_ray
    from pipeline.train.checkpoint import Checkpoint

    with _progress() as told:
        checkpoint, request = asked()
        assert isinstance(checkpoint, Checkpoint), "a bundle's lists are made here"
        return recommend_on_ray(request, checkpoint, placement, workers, told)


def _lists_here(
    asked: "Asked", placement: "PlacementConfig", users: list[str] | None
) -> "Summary | list[dict[str, Any]] | None":
    """A summary, or the lists of a few users; None but on the first of torchrun's workers."""
    from pipeline import world
    from pipeline.recommend import recommend as recommend_all
    from pipeline.recommend import recommend_users
    from pipeline.train import trained
    from pipeline.train.checkpoint import Checkpoint

    surroundings = world.torchrun if world.inside_torchrun() else world.alone
    with _progress() as told, surroundings(placement.device, placement.threads) as here:
        model, request = here.on_rank_zero(asked)
        scorer = (
            trained.load_checkpoint_together(model, here).scorer()
            if isinstance(model, Checkpoint)
            else model.served(here.device).scorer()
        )
        if users:
            table = recommend_users(request, scorer, users, here)
            return None if here.rank else table.to_pylist()
        summary = recommend_all(request, scorer, here, told if not here.rank else None)
        return summary if not here.rank else None


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar of users done and in all, with their rate."""
    from pipeline.progress import bar

    began = time.monotonic()
    with bar("recommend") as progress:
        yield lambda done, total: progress.update(
            done, total, f"{done / (time.monotonic() - began):,.0f} users/s"
        )


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
