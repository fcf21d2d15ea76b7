"""The pictures of a run, as PNG: how it trained, where its time went, how it ranks."""

from itertools import pairwise
from typing import Any

from pipeline.config import Recipe
from pipeline.evaluate.of_run import Evaluation
from pipeline.evaluate.protocol import Group
from pipeline.evaluate.show import GROUPS
from pipeline.figures import plain, png
from pipeline.report.records import PARTS, Records

_MODEL, _OTHERS = "#1f6feb", "#8c959f"
_INK = {"optimum": "#2da44e", "recent popularity": "#bf8700", "co-occurrence": "#8250df"}
_LONGEST_NAME = 26


def overview(recipe: Recipe, records: Records, evaluations: list[Evaluation]) -> bytes:
    """Loss, validation, and one test of all scorers: the run in one picture.

    evaluations: of one protocol; none leave the third panel out.
    """
    metric = metric_of(recipe, evaluations)
    ranked = sorted(evaluations, key=lambda one: one.result.metrics[metric])
    panels = 1 + bool(records.validated) + bool(ranked)
    figure, axes = _figure(panels, 13 if panels > 1 else 6.5, 3.8)
    steps = [line["step"] for line in records.trained]
    axes[0].plot(steps, [line["loss"] for line in records.trained], color=_MODEL)
    axes[0].set(title="Training loss per target", xlabel="step", ylabel="nats")
    for axis in axes[: 1 + bool(records.validated)]:
        _mark_attempts(axis, records)
    if records.validated:
        name = _validation_metric(recipe)
        values = [line[f"validation/{name}"] for line in records.validated]
        axes[1].plot([line["step"] for line in records.validated], values, "o-", color=_MODEL)
        axes[1].set(title=f"Validation {name}", xlabel="step")
        axes[1].set_ylim(0, 1.1 * max(values) or 1)
    if ranked:
        _draw_ranking(axes[-1], ranked, metric)
    return _png(figure)


def course(records: Records) -> bytes:
    """Learning rate and gradient norm over the steps."""
    figure, axes = _figure(2, 13, 3.2)
    steps = [line["step"] for line in records.trained]
    for axis, name, title in zip(
        axes,
        ("lr", "gradient_norm"),
        ("Learning rate", "Gradient norm before clipping"),
        strict=True,
    ):
        axis.plot(steps, [line[name] for line in records.trained], color=_MODEL)
        axis.set(title=title, xlabel="step")
        axis.set_ylim(bottom=0)
        _mark_attempts(axis, records)
    return _png(figure)


def speed(records: Records) -> bytes:
    """Throughput and waiting for data over the time, and the wall time by part."""
    parts = records.seconds()
    figure, axes = _figure(2 + bool(parts), 13, 3.4)
    lines = [line for attempt in records.attempts for line in attempt.lines if "loss" in line]
    unit, seconds = _unit(lines[-1]["time"] - lines[0]["time"])
    for attempt in records.attempts:  # apart, since there may be days between two
        told = [line for line in attempt.lines if "loss" in line]
        times = [(line["time"] - lines[0]["time"]) / seconds for line in told]
        rates = [line["targets_per_second"] / 1000 for line in told]
        axes[0].plot(times, rates, color=_MODEL)
        axes[1].plot(times, [100 * line["data_wait_share"] for line in told], color=_MODEL)
    axes[0].set(title="Thousand targets a second", xlabel=f"{unit} since the first line")
    axes[1].set(title="Waiting for data, % of the steps", xlabel=f"{unit} since the first line")
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(0, max(5, *(105 * line["data_wait_share"] for line in lines)))
    if parts:
        whole = sum(parts.values()) or 1
        unit, seconds = _unit(whole)
        drawn = axes[2].barh(
            [PARTS[part] for part in parts],
            [spent / seconds for spent in parts.values()],
            color=_MODEL,
        )
        shares = [f"{spent / whole:.1%}" for spent in parts.values()]
        axes[2].bar_label(drawn, shares, padding=3)
        axes[2].invert_yaxis()
        axes[2].margins(x=0.2)
        axes[2].set(title="Wall time by part", xlabel=f"{unit}, all attempts")
    return _png(figure)


def groups(evaluations: list[Evaluation], metric: str) -> bytes | None:
    """For whom each scorer ranks well, with 95 % intervals.

    None where no result has groups that could be compared.
    """
    kinds = {}
    for kind, (_, order) in GROUPS.items():
        there = {name for one in evaluations for name in _groups_of(one, kind, metric)}
        if len(there) > 1:
            kinds[kind] = [name for name in order if name in there]
    if not kinds:
        return None
    figure, axes = _figure(len(kinds), 13 if len(kinds) > 1 else 6.5, 3.9)
    for axis, (kind, names) in zip(axes, kinds.items(), strict=True):
        for number, one in enumerate(evaluations):
            shift = 0.6 * ((number + 0.5) / len(evaluations) - 0.5)
            found = _groups_of(one, kind, metric)
            axis.errorbar(
                [names.index(name) + shift for name in found],
                [group.metrics[metric] for group in found.values()],
                yerr=[group.half_widths.get(metric, 0.0) for group in found.values()],
                fmt="o",
                markersize=4,
                capsize=2,
                color=_colour(one),
                label=_short_name(one.label),
            )
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize="small")
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.set_ylim(bottom=0)
        axis.set(title=f"{metric} by {GROUPS[kind][0]}")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="small"
    )
    return _png(figure)


def metric_of(recipe: Recipe, evaluations: list[Evaluation]) -> str:
    """The metric to draw: that of validation where all evaluations have it."""
    wanted = _validation_metric(recipe)
    return wanted if all(wanted in one.result.metrics for one in evaluations) else "mrr"


def _validation_metric(recipe: Recipe) -> str:
    return recipe.train.validation.metric if recipe.train.validation else "ndcg@10"


def _draw_ranking(axis: Any, ranked: list[Evaluation], metric: str) -> None:
    values = [one.result.metrics[metric] for one in ranked]
    widths = [one.result.half_widths.get(metric, 0.0) for one in ranked]
    protocol = ranked[0].result.protocol
    axis.barh(
        range(len(ranked)),
        values,
        xerr=widths,
        color=[_colour(one) for one in ranked],
        error_kw={"capsize": 3, "ecolor": "#24292f"},
    )
    axis.set_yticks(range(len(ranked)), [_short_name(one.label) for one in ranked])
    for at, (value, width) in enumerate(zip(values, widths, strict=True)):
        axis.annotate(
            f"{value:.4f}",
            (value + width, at),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    axis.set_xlim(0, 1.25 * max(v + w for v, w in zip(values, widths, strict=True)) or 1)
    axis.locator_params(axis="x", nbins=5)
    axis.set(title=f"{protocol.split.capitalize()} {metric}", xlabel=protocol.ranking)


def _groups_of(one: Evaluation, kind: str, metric: str) -> dict[str, Group]:
    found = one.result.groups.get(kind, {})
    return {name: group for name, group in found.items() if metric in group.metrics}


def _colour(one: Evaluation) -> str:
    return _MODEL if one.step is not None else _INK.get(one.scorer, _OTHERS)


def _short_name(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _mark_attempts(axis: Any, records: Records) -> None:
    """A dotted line where an attempt goes on from the one before."""
    first = [
        min(line["step"] for line in attempt.lines) for attempt in records.attempts if attempt.lines
    ]
    for _, step in pairwise(first):
        axis.axvline(step, color="#57606a", linewidth=0.8, linestyle=":")


def _unit(seconds: float) -> tuple[str, float]:
    """The unit to tell a time in, and its seconds."""
    for name, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return name, size
    return "seconds", 1.0


def _figure(panels: int, width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, panels, figsize=(width, height), layout="constrained", squeeze=False
    )
    return figure, axes[0]


def _png(figure: Any) -> bytes:
    plain(figure.axes)
    return png(figure)
