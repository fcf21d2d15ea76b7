"""Models, forecasts and runs as tables for a terminal."""

import rich.box
from rich.table import Table

from models.sizes import Profile
from pipeline.train.forecast import Forecast
from pipeline.train.standing import Standing


def table_of_models(profiles: list[Profile], items: int) -> Table:
    """Models and sizes side by side, for a terminal."""
    table = Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("model")
    for name in ("size", "d", "blocks", "trunk", "and table", "state", "MFLOP"):
        table.add_column(name, justify="right")
    for number, profile in enumerate(profiles):
        first = number == 0 or profiles[number - 1].model != profile.model
        state = profile.state_bytes
        table.add_row(
            profile.model if first else "",
            profile.size,
            str(profile.settings.d),
            str(profile.settings.model_dump()["blocks"]),
            short(profile.trunk),
            short(profile.parameters),
            "-" if state is None else f"{short(state)}B",
            f"{profile.flops / 1e6:,.2f}",
        )
    table.caption = (
        f"table of {items:,} items; state of a user in fp32, - where it is encoded anew; work of a "
        f"token in the trunk, forward, in a history of {profiles[0].length:,} events"
    )
    return table


def table_of_forecast(found: Forecast) -> Table:
    """What a run will take, for a terminal."""
    table = Table(box=rich.box.SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("steps", f"{found.steps:,}")
    table.add_row("tokens a step, at most", f"{found.tokens_a_step:,}")
    table.add_row("events to train on", f"{found.train_events:,}")
    table.add_row("steps an epoch, at least", f"{found.steps_an_epoch:,}")
    table.add_row("epochs, at most", f"{found.epochs:,.1f}")
    table.add_row("workers, micro-batches a step", f"{found.workers:,}, {found.micro_batches:,}")
    table.add_row("parameters, of them the item table", f"{found.parameters:,}, {found.table:,}")
    table.add_section()
    for name, size in found.memory.items():
        table.add_row(f"{name} of a worker", f"{short(size)}B")
    table.add_row("together", f"{short(sum(found.memory.values()))}B")
    table.add_section()
    table.add_row("a checkpoint", f"{short(found.checkpoint_bytes)}B")
    kept = found.checkpoints_kept * found.checkpoint_bytes
    table.add_row(f"{found.checkpoints_kept} checkpoints kept", f"{short(kept)}B")
    table.caption = "at the peak, with a checkpoint under way; libraries and ranking are not in it"
    return table


def table_of_standing(found: Standing) -> Table:
    """How one run stands, for a terminal."""
    table = Table(box=rich.box.SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column()
    share = f" ({found.step / found.steps:.0%})" if found.steps else ""
    table.add_row("state", found.state + (f": {found.reason}" if found.reason else ""))
    table.add_row("step", f"{found.step:,} of {found.steps:,}{share}, attempt {found.attempt}")
    if found.loss is not None and found.targets_per_second is not None:
        rate = f"{found.targets_per_second:,.0f} targets/s"
        table.add_row("newest line", f"loss {found.loss:.4f}, {rate}")
    if found.left is not None:
        table.add_row("time left", time_in_words(found.left))
    if found.silent is not None and found.state == "running":
        table.add_row("last heard of", f"{time_in_words(found.silent)} ago")
    if found.best is not None:
        table.add_row(f"best validation {found.metric}", f"{found.best:.4f}")
    price = "" if found.price is None else f", {found.price:,.2f}"
    table.add_row("hours of workers", f"{found.worker_hours:,.2f}{price}")
    if found.job is not None:
        table.add_row("job", f"{found.job['launcher']} {found.job['id']}")
    table.caption = found.url
    return table


def table_of_runs(found: list[Standing]) -> Table:
    """Runs side by side, for a terminal."""
    table = Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    priced = any(one.price is not None for one in found)
    for name in ("state", "step", "best validation", "left", "hours", *(["price"] * priced)):
        table.add_column(name, justify="left" if name == "state" else "right")
    for one in found:
        cells = [
            one.name,
            one.state,
            f"{one.step:,} of {one.steps:,}",
            "" if one.best is None else f"{one.metric} {one.best:.4f}",
            "" if one.left is None else time_in_words(one.left),
            f"{one.worker_hours:,.2f}",
        ]
        cells += ["" if one.price is None else f"{one.price:,.2f}"] * priced
        table.add_row(*cells)
    table.caption = "hours: of all workers and attempts"
    return table


def time_in_words(seconds: float) -> str:
    """A time in its two largest units: 3 h 12 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def short(number: float) -> str:
    """A count in three figures: 12.3k, 45.6M, 1.2G."""
    for unit in ("", "k", "M"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}G"
