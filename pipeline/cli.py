"""The command line: one command a stage, in the order of the data.

Heavy libraries are imported inside the commands, so that ``--help`` and completion stay quick.
"""

import json
import os
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.command_options import add_command_of, only_given, validated
from pipeline.errors import LonghaulError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pipeline.config import Recipe
    from pipeline.train.run import RunState

PREEMPTED_EXIT = 75  # EX_TEMPFAIL: run the same command again to go on

app = typer.Typer(
    help="Train sequential recommenders on more history than one machine holds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, as train.steps=100."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def _cluster_for(engine: str) -> "AbstractContextManager[object]":
    """A connection to Ray where the engine wants one."""
    if engine != "ray":
        return nullcontext()
    from cluster.ray_cluster import ray_cluster

    return ray_cluster()


@add_command_of(app, "prepare", "pipeline.prepare.options:PrepareOptions", argument="inputs")
def prepare_command(context: typer.Context, **values: Any) -> None:
    """Turn raw event logs into history shards with a manifest.

    [bold]longhaul prepare events/*.parquet --output s3://bucket/set --timestamp time[/bold]

    [bold]longhaul prepare ml-1m.txt --output data/ml-1m[/bold]   (lines "user item")

    [bold]longhaul prepare ml-25m/ratings.csv --source movielens --output data/ml-25m[/bold]

    [bold]longhaul prepare Books.jsonl.gz --source amazon --output data/books[/bold]

    [bold]longhaul prepare ml-100k.inter --source recbole --output data/ml-100k[/bold]

    [bold]longhaul prepare multi_event.parquet --source yambda --output data/yambda[/bold]

    [bold]longhaul prepare logs/ --output data/logs --bad-rows skip[/bold]   (bad_rows.json)

    [bold]longhaul prepare today/ --append data/logs --output data/logs-today[/bold]

    [bold]longhaul prepare s3://logs/2026/ --output s3://sets/2026 --engine ray[/bold]
    """
    from pipeline.prepare import PrepareOptions, prepare
    from pipeline.prepare.card_page import write_page
    from pipeline.progress import bar

    options = validated(PrepareOptions, only_given(context, values))
    with _cluster_for(options.engine), bar("prepare") as progress:
        manifest = prepare(options, lambda stage, done, total: progress.update(done, total, stage))
    page = write_page(options.output)
    for name, count in manifest.counts.items():
        typer.echo(f"{name.replace('_', ' '):>28} {count:>14,}")
    typer.echo(
        f"{manifest.users:,} users, {manifest.catalogue_size:,} items, {manifest.events:,} "
        f"events in {manifest.members:,} members, {len(manifest.shards)} shards: "
        f"{options.output}"
    )
    typer.echo(f"card: {page}")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe, as configs/demo.yaml.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option(help="Say what the run will take, and do nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe, or go on with a run of the same name.

    [bold]longhaul train configs/ml-1m/lrurec.yaml train.seed=1 name=lrurec-seed-1[/bold]

    [bold]longhaul train RECIPE --dry-run[/bold]   (steps, epochs, memory of a worker, checkpoints)

    [bold]torchrun --nproc-per-node 2 -m pipeline train RECIPE[/bold]

    [bold]ray job submit --working-dir . -- longhaul train RECIPE placement.workers=8[/bold]

    Exit code 75 means asked to stop, with a checkpoint: the same command goes on.
    """
    from pipeline.config import load_recipe
    from pipeline.progress import bar
    from pipeline.train.run import LAUNCHED, stop_lasts, withdraw_stop
    from pipeline.world import inside_torchrun

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        _tell_forecast(loaded, as_json)
        return
    launched = LAUNCHED in os.environ
    if launched and stop_lasts(loaded.run_url):
        typer.echo(f"run {loaded.name} was asked to stop, and is until it is launched again")
        return
    launcher = loaded.placement.launcher
    if launcher == "auto":
        on_ray = loaded.placement.most_workers > 1 or "RAY_ADDRESS" in os.environ
        launcher = "torchrun" if inside_torchrun() else "ray" if on_ray else "alone"
    with bar(f"train {loaded.name}") as progress:
        if launcher == "ray":
            from cluster.ray_train import train_on_ray

            withdraw_stop(loaded.run_url)
            stands = train_on_ray(loaded, progress)
        else:
            from pipeline import world
            from pipeline.train import loop

            surroundings = world.torchrun if launcher == "torchrun" else world.alone
            with surroundings(loaded.placement.device, loaded.placement.threads) as here:
                here.on_rank_zero(lambda: withdraw_stop(loaded.run_url))
                stands = loop.train(loaded, here, progress if here.rank == 0 else None)
                if here.rank:
                    return
    stays_so = launched and stop_lasts(loaded.run_url)
    tell_end(loaded, stands, as_json, preempted_exit=0 if stays_so else PREEMPTED_EXIT)


def tell_end(
    recipe: "Recipe", stands: "RunState", as_json: bool, preempted_exit: int = PREEMPTED_EXIT
) -> None:
    """Say how the run ended, by the exit code too. Raises LonghaulError where it failed."""
    if as_json:
        print_json({"run": recipe.run_url, **stands.model_dump()})
    else:
        said = f"run {recipe.name}: {stands.state} at step {stands.step:,} of {stands.steps:,}"
        typer.echo(f"{said}{f' ({stands.reason})' if stands.reason else ''}: {recipe.run_url}")
    if stands.state == "failed":
        raise LonghaulError(f"run {recipe.name} failed: {stands.reason}")
    if stands.state == "preempted":
        raise typer.Exit(preempted_exit)


def _tell_forecast(recipe: "Recipe", as_json: bool) -> None:
    from rich.console import Console

    from pipeline.manifest import open_dataset
    from pipeline.report.tables import table_of_forecast
    from pipeline.train.forecast import forecast

    workers = int(os.environ.get("WORLD_SIZE", recipe.placement.least_workers))
    found = forecast(recipe, open_dataset(recipe.data.path), workers)
    if as_json:
        print_json(found.as_document())
        return
    Console().print(table_of_forecast(found))


@add_command_of(app, "synth", "pipeline.prepare.synth.options:SynthOptions", first="output")
def synth_command(context: typer.Context, output: str, **values: Any) -> None:
    """Write a synthetic event log whose best possible model is known.

    [bold]longhaul synth demo/log --users 20000 --events 1000000[/bold]

    [bold]longhaul synth load/log --preset yambda-5b --fraction 0.01[/bold]   (a load test)

    The events are in events.parquet, or for many events in a folder of this name, a file a day.
    """
    from pipeline.prepare.synth import SynthOptions, generate
    from pipeline.progress import bar

    options = validated(SynthOptions, only_given(context, values))
    began = time.monotonic()
    with bar("synth") as progress:

        def told(done: int) -> None:
            rate = done / (time.monotonic() - began)
            progress.update(done, options.events, f"{rate / 1e6:.1f} million events/s")

        generate(options, output, told)
    typer.echo(
        f"{options.events:,} events of {options.users:,} users, {options.items:,} items: {output}"
    )


@app.command()
def config(
    recipe: Annotated[str, typer.Argument(help="A recipe.")], overrides: Overrides = None
) -> None:
    """Print a recipe with every default filled in and every override applied."""
    from pipeline.config import load_recipe

    typer.echo(load_recipe(recipe, overrides or []).to_yaml(), nl=False)


@app.command()
def models(
    items: Annotated[int, typer.Option(min=1, help="Size of the catalogue.")] = 1_000_000,
    length: Annotated[int, typer.Option(min=1, help="Length of a history.")] = 200,
    as_json: AsJson = False,
) -> None:
    """List the models at every size: parameters, state of a user, work of a token.

    [bold]longhaul models --items 3416 --length 50[/bold]

    A recipe takes a size as [bold]model: {name: lrurec, size: large}[/bold].
    """
    from models.sizes import profiles

    found = profiles(items, length)
    if as_json:
        print_json([profile.as_document() for profile in found])
        return
    from rich.console import Console

    from pipeline.report.tables import table_of_models

    Console().print(table_of_models(found, items))


def print_json(document: Any) -> None:
    """Print a document as indented JSON."""
    typer.echo(json.dumps(document, indent=2))
