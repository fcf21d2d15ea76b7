"""Evaluations and comparisons for people: tables for a terminal, and a picture."""

import rich.box
from rich.table import Table

from pipeline.evaluate.catalogue import BANDS
from pipeline.evaluate.compare import Comparison
from pipeline.evaluate.groups import HISTORIES, STARTS
from pipeline.evaluate.of_run import Evaluation
from pipeline.figures import png

_SHOWN = ("hr@10", "ndcg@10", "hr@20", "ndcg@20", "mrr")
_LISTS = ("coverage@10", "popularity@10", "novelty@10")
GROUPS = {
    "history": ("events of the history", HISTORIES),
    "popularity": ("popularity of the target in training", BANDS),
    "start": ("known from training", STARTS),
}


def tables_of(evaluations: list[Evaluation]) -> list[Table]:
    """The evaluations side by side, for a terminal; what their lists are like in a second table."""
    names = metrics_shown(evaluations)
    tables = [_table(evaluations, [name for name in names if name not in _LISTS])]
    if len(tables[0].columns) < len(names) + 2:
        tables.append(_table(evaluations, [name for name in names if name in _LISTS]))
    protocol = evaluations[0].result.protocol
    tables[-1].caption = (
        f"{protocol.split}, {protocol.ranking}, seen items: {protocol.seen}, "
        f"input: newest {protocol.max_history}; ±: 95 % interval"
    )
    return tables


def _table(evaluations: list[Evaluation], names: list[str]) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("scorer")
    for name in (*names, "users"):
        table.add_column(name, justify="right", no_wrap=True)
    for evaluation in evaluations:
        table.add_row(*cells(evaluation, names))
        widths = evaluation.result.half_widths
        around = [f"±{widths[name]:.4f}" if name in widths else "" for name in names]
        table.add_row("", *around, "", style="dim")
    return table


def tables_of_groups(evaluations: list[Evaluation]) -> list[Table]:
    """One table for each way to group users or targets, with all scorers."""
    tables = []
    names = [name for name in metrics_shown(evaluations) if name not in _LISTS][:2]
    for kind, (title, order) in GROUPS.items():
        table = Table(box=rich.box.SIMPLE_HEAD, title=f"by {title}")
        table.add_column("group", min_width=10)
        table.add_column("scorer", no_wrap=True)
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
            table.add_column("±", justify="right", no_wrap=True)
        table.add_column("users" if kind == "history" else "targets", justify="right", no_wrap=True)
        for group in order:
            label = group
            for evaluation in evaluations:
                found = evaluation.result.groups.get(kind, {}).get(group)
                if found is None:
                    continue
                values = []
                for name in names:
                    width = found.half_widths.get(name)
                    values += [
                        f"{found.metrics[name]:.4f}",
                        "" if width is None else f"{width:.4f}",
                    ]
                number = found.targets if found.users is None else found.users
                table.add_row(label, evaluation.scorer, *values, f"{number:,}")
                label = ""
        table.caption = "±: half of the 95 % interval"
        tables.append(table)
    return tables


def table_of_comparison(found: Comparison) -> Table:
    """The differences from the baseline, for a terminal."""
    table = Table(box=rich.box.SIMPLE_HEAD, title=f"compared with {found.baseline}")
    table.add_column("scorer", overflow="fold")
    table.add_column("metric")
    for name in ("mean", "baseline", "difference", "95 % interval", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.differences:
        low, high = one.interval
        table.add_row(
            one.scorer,
            one.metric,
            f"{one.mean:.4f}",
            f"{one.baseline_mean:.4f}",
            f"{one.difference:+.4f}",
            f"{low:+.4f}, {high:+.4f}",
            f"{one.p_corrected:.2g}",
        )
    protocol = found.protocol
    table.caption = (
        f"{protocol.split}, {found.ranking}, seen items: {protocol.seen}, input: newest "
        f"{protocol.max_history}; the same {found.users:,} users; p by {found.samples:,} random "
        f"signs, {f'corrected ({found.correction})' if found.correction else 'not corrected'}"
    )
    return table


def picture_of_comparison(found: Comparison) -> bytes:
    """A forest plot, a PNG: differences from the baseline with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics = list(dict.fromkeys(one.metric for one in found.differences))
    scorers = list(dict.fromkeys(one.scorer for one in found.differences))
    size = 1 + 4.2 * len(metrics), 1.5 + 0.42 * len(scorers)
    figure, axes = pyplot.subplots(
        1, len(metrics), figsize=size, layout="constrained", squeeze=False, sharey=True
    )
    for axis, metric in zip(axes[0], metrics, strict=True):
        for one in found.differences:
            if one.metric != metric:
                continue
            low, high = one.interval
            sure = one.p_corrected < 0.05
            axis.errorbar(
                one.difference,
                scorers.index(one.scorer),
                xerr=[[one.difference - low], [high - one.difference]],
                fmt="o",
                color="#1f6feb" if sure else "#8c959f",
                capsize=4,
            )
        axis.axvline(0, color="#57606a", linewidth=1)
        axis.set(title=metric, xlabel=f"difference from {found.baseline}")
        axis.set_yticks(range(len(scorers)), scorers)
        axis.set_ylim(len(scorers) - 0.5, -0.5)
        axis.grid(alpha=0.25, axis="x")
        axis.spines[["top", "right"]].set_visible(False)
    corrected = ", corrected" if found.correction else ""
    figure.suptitle(
        f"{found.protocol.split}, {found.ranking}, {found.users:,} users; 95 % intervals, "
        f"blue: p < .05{corrected}",
        fontsize="small",
    )
    return png(figure)


def metrics_shown(evaluations: list[Evaluation]) -> list[str]:
    """The metrics that have a column: not all need be in every evaluation."""
    there = {name for evaluation in evaluations for name in evaluation.result.metrics}
    shown = [name for name in (*_SHOWN, *_LISTS) if name in there]
    return shown or sorted(there)[:6]


def cells(evaluation: Evaluation, names: list[str]) -> list[str]:
    """A row of a table: the scorer, the metrics, the users."""
    there = evaluation.result.metrics
    values = [f"{there[name]:.4f}" if name in there else "" for name in names]
    return [evaluation.label, *values, f"{evaluation.result.users:,}"]
