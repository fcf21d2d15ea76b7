"""One page on a run: how it trained, how it ranks. HTML that stands alone, and the picture."""

import base64
import html
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rich.box
from rich.table import Table

from models.sizes import Profile
from pipeline import storage
from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.evaluate.of_run import Evaluation, evaluations_in
from pipeline.evaluate.show import cells, metrics_shown
from pipeline.train.forecast import Forecast
from pipeline.train.run import load_config, metrics_of, read_state
from pipeline.train.standing import Standing

_INK = {"model": "#1f6feb", "other": "#8c959f", "optimum": "#2da44e"}


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
            _short(profile.trunk),
            _short(profile.parameters),
            "-" if state is None else f"{_short(state)}B",
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
        table.add_row(f"{name} of a worker", f"{_short(size)}B")
    table.add_row("together", f"{_short(sum(found.memory.values()))}B")
    table.add_section()
    table.add_row("a checkpoint", f"{_short(found.checkpoint_bytes)}B")
    kept = found.checkpoints_kept * found.checkpoint_bytes
    table.add_row(f"{found.checkpoints_kept} checkpoints kept", f"{_short(kept)}B")
    table.caption = "activations are measured on a small batch; libraries and ranking are not in it"
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
        table.add_row("time left", _time(found.left))
    if found.silent is not None and found.state == "running":
        table.add_row("last heard of", f"{_time(found.silent)} ago")
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
            "" if one.left is None else _time(one.left),
            f"{one.worker_hours:,.2f}",
        ]
        cells += ["" if one.price is None else f"{one.price:,.2f}"] * priced
        table.add_row(*cells)
    table.caption = "hours: of all workers and attempts"
    return table


def _time(seconds: float) -> str:
    """A time in its two largest units: 3 h 12 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _short(number: float) -> str:
    """A count in three figures: 12.3k, 45.6M, 1.2G."""
    for unit in ("", "k", "M"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}G"


def write_report(run: str, output: str, warn: Callable[[str], None] = warnings.warn) -> str:
    """Write ``report.html`` and ``report.png`` into the folder ``output``; the page's URL.

    warn: told of evaluations that this longhaul does not read. Raises LonghaulError where the run
    has logged nothing yet.
    """
    recipe = load_config(run)
    records, evaluations = _records(recipe), evaluations_in(recipe.run_url, warn)
    picture = _picture(records, evaluations, recipe)
    output = storage.absolute(output)
    storage.write_bytes(storage.join(output, "report.png"), picture)
    page = storage.join(output, "report.html")
    storage.write_bytes(page, _page(recipe, records, evaluations, picture).encode())
    return page


def picture_of(recipe: Recipe) -> bytes:
    """The report's picture of the recipe's run, a PNG."""
    return _picture(_records(recipe), evaluations_in(recipe.run_url), recipe)


@dataclass(frozen=True)
class _Records:
    trained: list[dict[str, Any]]
    validated: list[dict[str, Any]]


def _records(recipe: Recipe) -> _Records:
    kept = metrics_of(recipe.run_url)
    trained = [record for record in kept if "loss" in record]
    if not trained:
        raise LonghaulError(
            f"run {recipe.name} at {recipe.run_url} has logged no training step yet"
        )
    return _Records(trained, [record for record in kept if "seconds" in record])


def _picture(records: _Records, evaluations: list[Evaluation], recipe: Recipe) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    trained, validated = records.trained, records.validated
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    steps = [record["step"] for record in trained]
    axes[0].plot(steps, [record["loss"] for record in trained], color=_INK["model"])
    axes[0].set(title="Training loss per target", xlabel="step", ylabel="nats")
    metric = recipe.train.validation.metric if recipe.train.validation else "ndcg@10"
    if validated:
        values = [record[f"validation/{metric}"] for record in validated]
        axes[1].plot([r["step"] for r in validated], values, "o-", color=_INK["model"])
        axes[1].set(title=f"Validation {metric}", xlabel="step")
        axes[1].set_ylim(0, 1.1 * max(values))
    else:
        rates = [record["targets_per_second"] for record in trained]
        axes[1].plot(steps, rates, color=_INK["model"])
        axes[1].set(title="Targets per second", xlabel="step")
    tested = [e for e in evaluations if e.result.protocol.split == "test"]
    name = metric if all(metric in e.result.metrics for e in tested) else "mrr"
    tested.sort(key=lambda e: e.result.metrics[name])
    colours = [
        _INK["model" if e.step else e.scorer if e.scorer in _INK else "other"] for e in tested
    ]
    bars = axes[2].barh(
        [e.label if _sampled(e) else e.scorer for e in tested],
        [e.result.metrics[name] for e in tested],
        color=colours,
    )
    axes[2].bar_label(bars, fmt="%.4f", padding=3)
    kinds = "sampled or full" if any(map(_sampled, tested)) else "full"
    axes[2].set(title=f"Test {name}, {kinds} ranking")
    axes[2].margins(x=0.18)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    pyplot.close(figure)
    return buffer.getvalue()


def _sampled(evaluation: Evaluation) -> bool:
    return evaluation.result.protocol.candidates != "all"


def _page(recipe: Recipe, records: _Records, evaluations: list[Evaluation], picture: bytes) -> str:
    trained = records.trained
    stands, last = read_state(recipe.run_url), trained[-1]
    rates = sorted(record["targets_per_second"] for record in trained)
    fewest, most = recipe.placement.least_workers, recipe.placement.most_workers
    facts = {
        "State": f"{stands.state} at step {stands.step:,} of {stands.steps:,}" if stands else "?",
        "Model": f"{recipe.model.name}, d = {recipe.model.d}",
        "Training": f"{recipe.train.engine}"
        + (f", ZeRO-{recipe.train.zero_stage}" if recipe.train.engine == "deepspeed" else "")
        + f", {recipe.train.precision}, {fewest}{f' to {most}' if most > fewest else ''} workers",
        "Seen": f"{last['targets_seen']:,} targets in {last['epoch'] + 1} epochs",
        "Speed": f"{rates[len(rates) // 2]:,.0f} targets a second (median)",
        "Last loss": f"{last['loss']:.4f} nats a target",
    }
    rows = "".join(f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
    results = ""
    if evaluations:
        names = metrics_shown(evaluations)
        head = "".join(
            f"<th>{name}</th>" for name in ("scorer", *names, "users", "split", "seen", "ranking")
        )
        body = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(evaluation, names))
            + f"<td>{evaluation.result.protocol.split}</td>"
            + f"<td>{evaluation.result.protocol.seen}</td>"
            + f"<td>{evaluation.result.ranking}</td></tr>"
            for evaluation in evaluations
        )
        results = f"<h2>How it ranks</h2><table><tr>{head}</tr>{body}</table>"
    image = base64.b64encode(picture).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{recipe.name}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse }} img {{ max-width: 100% }}
th, td {{ text-align: left; padding: .2em 1em .2em 0; border-bottom: 1px solid #ddd }}
</style></head><body>
<h1>Run {html.escape(recipe.name)}</h1><table>{rows}</table>
<p><img alt="Loss, validation and test" src="data:image/png;base64,{image}"></p>
{results}
<h2>Recipe</h2><pre>{html.escape(recipe.to_yaml())}</pre>
</body></html>
"""
