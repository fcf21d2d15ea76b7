"""A plan as a table for a terminal: a column for each number of workers."""

from collections.abc import Callable
from functools import partial

import rich.box
from rich.table import Table

from cluster.plan.estimate import Column, Estimate
from pipeline.report.tables import short

_MOST_WITH_SHARES = 3  # columns that have room for them


def table_of_plan(found: Estimate) -> Table:
    """Parts of a step, totals, memory, hours."""
    table = Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("workers", no_wrap=True)
    for column in found.columns:
        table.add_column(f"{column.workers:,}", justify="right", no_wrap=True)
    first = found.columns[0]
    shares = len(found.columns) <= _MOST_WITH_SHARES

    def row(name: str, cell: Callable[[Column], str]) -> None:
        table.add_row(name, *map(cell, found.columns))

    for part in first.parts:
        row(part, partial(_of_step, part, shares))
    for part in first.beside:
        row(f"({part})", partial(_of_step, part, shares))
    table.add_section()
    row("a step", lambda c: _time(c.step_seconds))
    row("longest part", lambda c: c.bottleneck)
    row("tokens/s", lambda c: short(c.tokens_per_second))
    row("efficiency", lambda c: f"{c.efficiency:.0%}")
    row("a worker sends", lambda c: f"{short(sum(c.sent_bytes.values()))}B")
    table.add_section()
    if first.device_limit is not None:
        row(f"GPU memory of {short(first.device_limit)}B", lambda c: f"{short(c.device_memory)}B")
    limit = "" if first.host_limit is None else f" of {short(first.host_limit)}B"
    row(f"node memory{limit}", lambda c: f"{short(c.host_memory)}B")
    row("fits", lambda c: "yes" if c.fits else "no")
    table.add_section()
    row("hours", lambda c: f"{c.hours:,.2f}")
    row("worker hours", lambda c: f"{c.worker_hours:,.2f}")
    if first.price is not None:
        row("price", lambda c: f"{c.price:,.2f}")
    table.caption = (
        f"{found.run} on {found.device}: {found.steps:,} steps of {found.tokens_a_step:,} tokens, "
        f"{found.epochs:,.1f} epochs. Parts of a step, (beside it); memory that is usable."
    )
    return table


def notes_of(found: Estimate) -> list[str]:
    """What the table rests on, and what would make a column fit."""
    lines = [
        f"{column.workers} worker{'s' * (column.workers > 1)}: no room"
        + (f"; there is with {', or with '.join(column.remedies)}" if column.remedies else "")
        for column in found.columns
        if not column.fits
    ]
    return lines + found.unknown


def _of_step(part: str, share: bool, column: Column) -> str:
    seconds = (column.parts | column.beside)[part]
    return _time(seconds) + (f" {seconds / column.step_seconds:4.0%}" if share else "")


def _time(seconds: float) -> str:
    """In three figures."""
    number, unit = (seconds, "s") if seconds >= 1 else (1e3 * seconds, "ms")
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f} {unit}"
