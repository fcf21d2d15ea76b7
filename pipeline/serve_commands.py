"""The commands that take a model to where it serves: its bundle, and users' states."""

from typing import Annotated, Literal

import typer

from pipeline.cli import AsJson, print_json, warn


def add_to(app: typer.Typer) -> None:
    """Make the commands part of the application."""
    app.command()(export)


def export(
    run: Annotated[str, typer.Argument(help="A run's folder, as runs/demo.")],
    output: Annotated[str, typer.Option(help="Folder for the bundle, in a bucket or not.")],
    dtype: Annotated[
        str, typer.Option(help="fp32, or bf16: weights rounded, half as large.")
    ] = "fp32",
    newest: Annotated[bool, typer.Option(help="The newest checkpoint, not the best.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the best checkpoint of a run as a bundle that loads with torch alone.

    [bold]longhaul export runs/demo --output bundles/demo[/bold]

    In it: weights, item keys, protocol, metrics, a model card, and the step for torch.export.load.
    """
