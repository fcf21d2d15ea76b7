"""A sweep for people: its trials side by side, and a picture of what each key did."""

import math
from typing import Any

import numpy as np
import rich.box
from rich.table import Table

from cluster.sweep.outcome import Outcome, ranked
from cluster.sweep.plan import Sweep
from cluster.sweep.space import Draw
from pipeline import storage
from pipeline.figures import png

_INK = {"done": "#1f6feb", "ended early": "#d29922", "failed": "#cf222e"}
_OTHER = "#8c959f"
_COLUMNS = 3


def table_of_trials(sweep: Sweep, found: list[Outcome]) -> Table:
    """The best first, for a terminal."""
    table = Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("", justify="right")
    table.add_column("run", no_wrap=True)
    for key in sweep.spec.space:
        table.add_column(key.rsplit(".", 1)[-1], justify="right")
    table.add_column(f"best {sweep.metric}", justify="right")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    for rank, one in enumerate(ranked(found), start=1):
        failed = one.state == "failed"
        table.add_row(
            "" if one.best is None else str(rank),
            one.run,
            *(_short(one.point[key]) for key in sweep.spec.space),
            "" if one.best is None else f"{one.best:.4f}",
            f"{one.step:,} of {one.steps:,}",
            f"failed: {one.reason}" if failed else one.state,
        )
    table.caption = sweep.url
    return table


def write_picture(sweep: Sweep, found: list[Outcome]) -> str | None:
    """Draw ``sweep.png`` in the sweep's folder; its URL, or None where there is nothing to see."""
    if not any(one.validations for one in found):
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = 1 + len(sweep.spec.space)
    columns = min(panels, _COLUMNS)
    rows = math.ceil(panels / columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(4.4 * columns, 3.6 * rows), layout="constrained", squeeze=False
    )
    axes = list(grid.flat)
    _draw_curves(axes[0], sweep, found)
    for axis, (key, draw) in zip(axes[1:], sweep.spec.space.items(), strict=False):
        _draw_key(axis, sweep, key, draw, found)
    for axis in axes[panels:]:
        axis.set_axis_off()
    for axis in axes[:panels]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    states = [state for state in (*_INK, "other") if any(_shown(one) == state for one in found)]
    handles = [
        pyplot.Line2D([], [], color=_INK.get(state, _OTHER), marker="o", label=state)
        for state in states
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(states), frameon=False)
    url = storage.join(sweep.url, "sweep.png")
    storage.write_bytes(url, png(figure))
    return url


def _draw_curves(axis: Any, sweep: Sweep, found: list[Outcome]) -> None:
    first = ranked(found)[0]
    for one in found:
        steps, values = [step for step, _ in one.validations], [v for _, v in one.validations]
        width = 2.2 if one is first else 1.0
        axis.plot(steps, values, ".-", color=_INK.get(one.state, _OTHER), linewidth=width)
    axis.annotate(
        first.run,
        first.validations[-1],
        xytext=(0, 6),
        textcoords="offset points",
        ha="right",
        fontsize="small",
    )
    axis.margins(y=0.12)
    axis.set(title=f"{sweep.name}: validation {sweep.metric}", xlabel="step")


def _draw_key(axis: Any, sweep: Sweep, key: str, draw: Draw, found: list[Outcome]) -> None:
    """The best of each trial against its value of one key."""
    seen = [one for one in found if one.best is not None]
    first = ranked(found)[0]
    names = [_short(choice) for choice in draw.choice or ()]
    for one in seen:
        value = one.point[key]
        axis.plot(
            names.index(_short(value)) if names else value,
            one.best,
            "o",
            color=_INK.get(one.state, _OTHER),
            markersize=10 if one is first else 6,
            alpha=0.85,
        )
    if names:
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.5, len(names) - 0.5)
    elif draw.log_uniform:
        axis.set_xscale("log")
        ticks = np.geomspace(*draw.log_uniform, 4)
        axis.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlim(ticks[0] / 1.2, ticks[-1] * 1.2)
    axis.set(title=f"best {sweep.metric}", xlabel=key)


def _shown(one: Outcome) -> str:
    return one.state if one.state in _INK else "other"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
