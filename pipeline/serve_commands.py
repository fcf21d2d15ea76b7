"""The commands that take a model to where it serves: its bundle, and users' states."""

from typing import Annotated

import typer

from pipeline.cli import AsJson, print_json
from pipeline.errors import LonghaulError, warn


def add_to(app: typer.Typer) -> None:
    """Make the commands part of the application."""
    app.command()(export)


def export(
    run: Annotated[str, typer.Argument(help="A run's folder, as runs/demo.")],
    output: Annotated[str, typer.Option(help="Folder for the bundle; also a bucket's.")],
    bf16: Annotated[bool, typer.Option(help="Weights rounded to bf16: half as large.")] = False,
    newest: Annotated[bool, typer.Option(help="The newest checkpoint, not the best.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the best checkpoint of a run as a bundle that loads with torch alone.

    [bold]longhaul export runs/demo --output bundles/demo[/bold]

    In it: weights, item keys, protocol, metrics, a model card, and where the model can take one
    event at a time its step for torch.export.load.
    """
    from pipeline.export.write import export_run
    from pipeline.tracking.bundles import track_bundle

    bundle = export_run(run, output, "bf16" if bf16 else "fp32", newest, warn)
    track_bundle(run, bundle)
    config = bundle.config
    total = sum(entry.bytes for entry in bundle.files.values())
    if as_json:
        print_json({"bundle": bundle.url, "bytes": total, **config.model_dump(mode="json")})
        return
    typer.echo(f"{config.run}, step {config.step:,}, model {config.model_hash[:12]}")
    for entry in bundle.files.values():
        typer.echo(f"{entry.bytes:>16,}  {entry.path}")
    if config.no_step_function is not None:
        typer.echo(f"no step function: {config.no_step_function}")
    typer.echo(f"bundle: {bundle.url}")


def recommend_with_states(
    url: str,
    output: str,
    *,
    k: int,
    seen: bool,
    data: str | None,
    save_state: str | None,
    events: str | None,
    state: str | None,
    columns: str,
    skip_unknown_items: bool,
    as_json: bool,
) -> None:
    """``longhaul recommend`` where states are read or kept; see there."""
    from pipeline import world
    from pipeline.manifest import open_dataset
    from pipeline.progress import bar
    from pipeline.serve.load import load_served
    from pipeline.serve.replay import apply_events, start_states

    if (events is None) != (state is None):
        raise LonghaulError("--events are added to the states of --state: give both or neither")
    if events is not None and data is not None:
        raise LonghaulError("--events go on from --state, not from --data: leave one out")
    device, threads, known_data = _placement(url)
    with world.alone(device, threads) as here, bar("recommend") as progress:
        served = load_served(url, here.device, warn)

        def told(done: int, total: int) -> None:
            progress.update(done, total)

        document: dict[str, object] = {"output": output, "k": k}
        if events is not None and state is not None:
            touched, new = apply_events(
                served,
                events,
                state,
                output,
                save_state,
                k=k,
                seen=seen,
                columns=_columns(columns),
                skip_unknown_items=skip_unknown_items,
                progress=told,
            )
            document |= {"users": touched, "events": len(new.items), "unknown": new.unknown}
            said = f"{len(new.items):,} events of {touched:,} users"
            if new.unknown:
                said += f" ({new.unknown:,} of unknown items left out)"
        else:
            assert save_state is not None
            where = data or known_data
            if where is None:
                raise LonghaulError(f"{url} is a bundle: name the histories with --data")
            users = start_states(
                served, open_dataset(where), output, save_state, k=k, seen=seen, progress=told
            ).users
            document |= {"users": users}
            said = f"{users:,} users"
    if save_state is not None:
        document |= {"states": save_state, "bytes_per_user": served.bytes_per_user()}
    if as_json:
        print_json(document)
        return
    typer.echo(f"{said}, up to {k} items each: {output}")
    if save_state is not None:
        typer.echo(f"states, {served.bytes_per_user():,} bytes a user and 4 an event: {save_state}")


def _placement(url: str) -> tuple[str, int | None, str | None]:
    """Device, threads and data set of a run; what to take for a bundle."""
    from pipeline.export.bundle import is_bundle
    from pipeline.train.run import load_config

    if is_bundle(url):
        return "auto", None, None
    recipe = load_config(url)
    return recipe.placement.device, recipe.placement.threads, recipe.data.path


def _columns(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if len(names) not in (2, 3) or not all(names):
        raise LonghaulError(f"--columns is USER,ITEM or USER,ITEM,TIME, not {text!r}")
    return names
