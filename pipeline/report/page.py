"""The page of a run: HTML that stands alone, with its pictures beside it as PNG."""

import base64
import html
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline import storage
from pipeline.config import Recipe
from pipeline.evaluate.of_run import Evaluation, evaluations_in
from pipeline.evaluate.protocol import Group, Result
from pipeline.evaluate.show import GROUPS, metrics_shown
from pipeline.report import pictures
from pipeline.report.examples import Example, examples_of
from pipeline.report.records import PARTS, Records, records_of
from pipeline.report.tables import time_in_words
from pipeline.train.run import load_config
from pipeline.train.standing import Attempt, Standing, standing

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em;
  color: #1f2328 }
table { border-collapse: collapse; margin: .5em 0 1em; font-size: 93% }
th, td { text-align: left; padding: .2em .8em .2em 0; border-bottom: 1px solid #d8dee4;
  vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
img { max-width: 100% } .scroll { overflow-x: auto } .hit { font-weight: 600; color: #1a7f37 }
.note { color: #57606a; font-size: 90% } pre { background: #f6f8fa; padding: 1em; overflow-x: auto }
.users { display: flex; flex-wrap: wrap; gap: 0 3em } .users div { flex: 1 1 24em }
"""


@dataclass(frozen=True)
class Report:
    """The page, and its pictures (PNG) by name; ``report`` is the run in one picture."""

    page: str
    pictures: dict[str, bytes]


def write_report(
    run: str,
    output: str,
    warn: Callable[[str], None] = warnings.warn,
    examples: int = 0,
    names: str | None = None,
) -> tuple[str, Report]:
    """Write ``report.html`` and its pictures into the folder ``output``; the page's URL.

    Arguments and errors as of ``report_of``.
    """
    found = report_of(load_config(run), warn, examples, names)
    output = storage.absolute(output)
    for name, picture in found.pictures.items():
        storage.write_bytes(storage.join(output, f"{name}.png"), picture)
    page = storage.join(output, "report.html")
    storage.write_bytes(page, found.page.encode())
    return page, found


def report_of(
    recipe: Recipe,
    warn: Callable[[str], None] = warnings.warn,
    examples: int = 0,
    names: str | None = None,
) -> Report:
    """The report on the recipe's run as it is now.

    warn: told of evaluations and checkpoints that cannot be read. examples: how many users to show
    the recommendations of; names: of the items in them (``examples.read_names``). Raises
    LonghaulError where the run has logged nothing yet, or the examples cannot be made.
    """
    records = records_of(recipe)
    evaluations = evaluations_in(recipe.run_url, warn)
    tables = by_protocol(evaluations)
    shown = examples_of(recipe, examples, names, warn) if examples else []
    first = _most_telling(tables)
    drawn = {
        "report": pictures.overview(recipe, records, first),
        "course": pictures.course(records),
        "speed": pictures.speed(records),
    }
    by_group = pictures.groups(first, pictures.metric_of(recipe, first)) if first else None
    if by_group is not None:
        drawn["groups"] = by_group
    stands = standing(recipe.run_url)
    sections = [
        _facts(recipe, records, stands),
        _picture("Loss, validation and test", drawn["report"]),
        "<h2>How it trained</h2>",
        _picture("Learning rate and gradient norm", drawn["course"]),
        _picture("Throughput, waiting for data, wall time by part", drawn["speed"]),
        _parts(records),
        _attempts(records.attempts),
    ]
    if tables:
        sections.append("<h2>How it ranks</h2>")
        sections += [_ranking(table) for table in tables]
    if by_group is not None:
        metric = pictures.metric_of(recipe, first)
        part = first[0].result.protocol.split
        note = f"<p class=note>{metric}, {part}; ±: half of the 95 % interval.</p>"
        sections += ["<h2>For whom it ranks well</h2>", note]
        sections += [_picture("Groups", by_group), *_groups(first, metric)]
    if shown:
        sections += [_examples(shown)]
    sections.append(f"<h2>Recipe</h2><pre>{html.escape(recipe.to_yaml())}</pre>")
    title = html.escape(recipe.name)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>Run {title}</h1>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )
    return Report(page, drawn)


def by_protocol(evaluations: list[Evaluation]) -> list[list[Evaluation]]:
    """Those that compare with each other together: same protocol, same data; best first."""
    tables: dict[tuple[str, str], list[Evaluation]] = {}
    for one in evaluations:
        asked = one.result.protocol.model_dump_json(), one.result.data
        tables.setdefault(asked, []).append(one)
    for table in tables.values():
        name = metrics_shown(table)[0]
        table.sort(key=lambda one: -one.result.metrics.get(name, 0.0))
    return [tables[asked] for asked in sorted(tables)]


def _most_telling(tables: list[list[Evaluation]]) -> list[Evaluation]:
    """The evaluations to draw: full ranking before sampled, the test, the most scorers."""

    def telling(table: list[Evaluation]) -> tuple[bool, bool, int]:
        protocol = table[0].result.protocol
        return protocol.candidates == "all", protocol.split == "test", len(table)

    return max(tables, key=telling, default=[])


def _facts(recipe: Recipe, records: Records, stands: Standing) -> str:
    last = records.trained[-1]
    rates = sorted(line["targets_per_second"] for line in records.trained)
    config, workers = recipe.train, {attempt.workers for attempt in records.attempts}
    zero = f", ZeRO-{config.zero_stage}" if config.engine == "deepspeed" else ""
    reason = f": {stands.reason}" if stands.reason else ""
    price = "" if stands.price is None else f", {stands.price:,.2f}"
    facts = {
        "State": f"{stands.state} at step {stands.step:,} of {stands.steps:,}{reason}",
        "Model": f"{recipe.model.name}, d = {recipe.model.d}",
        "Training": f"{config.engine}{zero}, {config.precision}, "
        f"{' or '.join(map(str, sorted(workers)))} workers",
        "Seen": f"{last['targets_seen']:,} targets, in epoch {last['epoch'] + 1}",
        "Speed": f"{rates[len(rates) // 2]:,.0f} targets a second (median)",
        "Last loss": f"{last['loss']:.4f} nats a target",
    }
    if stands.best is not None:
        facts[f"Best validation {stands.metric}"] = f"{stands.best:.4f}"
    if stands.left is not None:
        facts["Time left"] = time_in_words(stands.left)
    facts["Hours of workers"] = f"{stands.worker_hours:,.2f}{price}"
    facts["Data"] = recipe.data.path
    if stands.job is not None:
        facts["Job"] = f"{stands.job['launcher']} {stands.job['id']}"
    return _table((), facts.items())


def _parts(records: Records) -> str:
    spent = records.seconds()
    if not spent:
        return ""
    whole = sum(spent.values()) or 1
    rows = [
        (PARTS[part], f"{seconds:,.1f} s", f"{seconds / whole:.1%}")
        for part, seconds in spent.items()
    ]
    note = (
        "Seconds of the first worker's host, over all attempts, from the start of the first step "
        "to the last line of metrics. A GPU works on while its host goes on: its time shows in the "
        "update, which waits for it. The update holds the exchange of gradients with engine torch; "
        "with DeepSpeed part of it is in forward and backward. Checkpoints are what training "
        "waited for, not the upload."
    )
    return _table(("wall time", "", "share"), rows, note)


def _attempts(attempts: list[Attempt]) -> str:
    rows = []
    for attempt in attempts:
        steps = [line["step"] for line in attempt.lines if "loss" in line]
        versions = attempt.facts.get("versions", {})
        rows.append(
            (
                str(attempt.number),
                f"{steps[0]:,} to {steps[-1]:,}" if steps else "none",
                f"{attempt.workers:,}",
                time_in_words(3600 * attempt.hours),
                str(attempt.facts.get("host", "?")),
                str(attempt.facts.get("threads", "?")),
                f"torch {versions.get('torch', '?')}, commit {versions.get('commit', '?')}",
            )
        )
    head = ("attempt", "steps logged", "workers", "time", "host", "threads", "with")
    return "<h2>Attempts</h2>" + _table(head, rows)


def _ranking(table: list[Evaluation]) -> str:
    """All scorers under one protocol."""
    names = metrics_shown(table)
    rows = [
        (one.label, *(_with_width(one.result, name) for name in names), f"{one.result.users:,}")
        for one in table
    ]
    result = table[0].result
    protocol = result.protocol
    targets = {"next": "the next event", "all_in_window": "all items of the part"}[protocol.targets]
    skipped = ", ".join(f"{count:,} {why}" for why, count in result.skipped.items() if count)
    note = (
        f"{protocol.split}, {protocol.ranking} of {result.catalogue_size:,} items; "
        f"target: {targets}; input: newest {protocol.max_history} events; "
        f"seen items left out: {protocol.seen}; "
        f"{result.targets:,} targets of {result.users:,} users"
        + (f" (not scored: {skipped})" if skipped else "")
        + f"; data {result.data[:12]}; ties: {result.tie_rule}. ±: half of the 95 % interval."
    )
    return _table(("scorer", *names, "users"), rows, note)


def _groups(table: list[Evaluation], metric: str) -> list[str]:
    """A table for each way to group users or targets: a row a group, a column a scorer."""
    sections = []
    for kind, (title, order) in GROUPS.items():
        found = [one.result.groups.get(kind, {}) for one in table]
        there = [name for name in order if any(name in groups for groups in found)]
        rows = [
            (
                name,
                *(_with_width(groups[name], metric) if name in groups else "" for groups in found),
                next(_count(groups[name]) for groups in found if name in groups),
            )
            for name in there
        ]
        if rows:
            head = (title, *(one.label for one in table), "how many")
            sections.append(_table(head, rows))
    return sections


def _count(group: Group) -> str:
    if group.users is None:
        return f"{group.targets:,} targets"
    return f"{group.users:,} users"


def _with_width(found: Result | Group, name: str) -> str:
    if name not in found.metrics:
        return ""
    width = found.half_widths.get(name)
    return f"{found.metrics[name]:.4f}" + ("" if width is None else f" ±{width:.4f}")


def _examples(found: list[Example]) -> str:
    shown = []
    for one in found:
        history = "".join(f"<li>{html.escape(item)}</li>" for item in one.history)
        best = "".join(
            f"<tr><td class=number>{place}</td><td{' class=hit' if place == one.rank else ''}>"
            f"{html.escape(item)}</td><td class=number>{score:.3f}</td></tr>"
            for place, (item, score) in enumerate(one.top, 1)
        )
        more = "" if one.events <= len(one.history) else f"the newest of {one.events:,} events, "
        shown.append(
            f"<h3>User {html.escape(one.user)}</h3><div class=users>"
            f"<div><p class=note>History, {more}oldest first:</p><ol>{history}</ol></div>"
            f"<div><p class=note>Recommended, best first, with scores:</p>"
            f"<table>{best}</table></div></div>"
            f"<p>Came next: <b>{html.escape(one.target)}</b>, on rank {one.rank:,}.</p>"
        )
    note = (
        "<p class=note>The first users of the test, in the order of the data set, which is that of "
        "a hash of their keys. Green: what came next.</p>"
    )
    return "<h2>Examples</h2>" + note + "".join(shown)


def _picture(words: str, picture: bytes) -> str:
    image = base64.b64encode(picture).decode()
    return f'<p><img alt="{words}" src="data:image/png;base64,{image}"></p>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], note: str = "") -> str:
    """Cells are escaped. Columns of numbers, but for the first, stand to the right."""

    def cell(tag: str, text: str, number: bool) -> str:
        return f"<{tag}{' class=number' if number else ''}>{html.escape(text)}</{tag}>"

    filled = [tuple(row) for row in rows]
    titles = tuple(head)
    numbers = [
        bool(titles and at) and all(not row[at] or row[at][0].isdigit() for row in filled)
        for at in range(len(filled[0]) if filled else 0)
    ]
    top = "".join(cell("th", *one) for one in zip(titles, numbers, strict=False))
    body = "".join(
        "<tr>" + "".join(cell("td", *one) for one in zip(row, numbers, strict=True)) + "</tr>"
        for row in filled
    )
    titled = f"<tr>{top}</tr>" if top else ""
    below = f"<p class=note>{html.escape(note)}</p>" if note else ""
    return f"<div class=scroll><table>{titled}{body}</table></div>{below}"
