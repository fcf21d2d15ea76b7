"""The data card as a page: HTML that stands alone, with its picture."""

import base64
import html

import numpy as np

from pipeline import storage
from pipeline.figures import plain, png
from pipeline.manifest import MANIFEST, Manifest
from pipeline.prepare.card import CARD, PAGE, Card, date_of, traits_in


def write_page(url: str) -> str:
    """Write the page of the card of the data set at ``url`` beside it; the page's URL."""
    manifest = Manifest.model_validate(storage.read_json(storage.join(url, MANIFEST)))
    card = Card.model_validate(storage.read_json(storage.join(url, CARD)))
    page = storage.join(url, PAGE)
    storage.write_bytes(page, _page(card, manifest).encode())
    return page


def _page(card: Card, manifest: Manifest) -> str:
    facts = {
        "Users": f"{card.users:,}",
        "Items": f"{card.items:,}",
        "Events": f"{card.events:,}, {card.mean_length:,.1f} a user",
        "Split": manifest.split.kind.replace("_", " "),
        "Shards": f"{len(manifest.shards):,}, {manifest.members:,} members",
        "Made from": f"{len(manifest.lineage.inputs):,} files, "
        f"{sum(file.bytes for file in manifest.lineage.inputs) / 1e9:,.2f} GB",
    }
    if card.first_event is not None:
        facts["Time"] = f"{card.first_event} to {card.last_event}, in {manifest.timestamp_unit}"
        facts["Ties in time"] = f"{card.ties:,} events at the time of their user's event before"
        facts["Duplicates"] = f"{card.duplicates:,} of them with its item as well"
    shares = ", ".join(f"{float(k):.1%}: {v:.1%}" for k, v in card.top_items.items())
    facts["Share of events of the top items"] = shares
    rows = "".join(f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
    kept = "".join(
        f"<tr><th>{name.replace('_', ' ')}</th><td class=n>{count:,}</td></tr>"
        for name, count in card.counts.items()
    )
    heads = "".join(f"<th>{float(q):.0%}</th>" for q in card.length_quantiles)
    body = "".join(
        f"<tr><th>{name}</th>"
        + "".join(f"<td class=n>{v:,}</td>" for v in found.values())
        + "</tr>"
        for name, found in (
            ("events of a user", card.length_quantiles),
            ("events of an item", card.item_quantiles),
        )
    )
    image = base64.b64encode(picture(card)).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Data card</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse }} img {{ max-width: 100% }} .n {{ text-align: right }}
th, td {{ text-align: left; padding: .2em 1em .2em 0; border-bottom: 1px solid #ddd }}
</style></head><body>
<h1>Data card</h1><table>{rows}</table>
<p><img alt="History lengths, popularity, events a day" src="data:image/png;base64,{image}"></p>
<h2>Read, removed, left</h2><table>{kept}</table>
<h2>Quantiles</h2><table><tr><th></th>{heads}</tr>{body}</table>
</body></html>
"""


def picture(card: Card) -> bytes:
    """History lengths, popularity and events a day, a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, 3 if card.days else 2, figsize=(13, 3.8), layout="constrained"
    )
    ink = "#1f6feb"
    starts = np.array([start for start, _, _ in card.length_histogram])
    widths = np.array([stop + 1 - start for start, stop, _ in card.length_histogram])
    users = [count for _, _, count in card.length_histogram]
    axes[0].bar(starts, users, widths, align="edge", color=ink, edgecolor="white", linewidth=0.5)
    axes[0].set(title="Users by events", xlabel="events of a user", ylabel="users", xscale="log")
    ranks, events = zip(*card.popularity, strict=True)
    axes[1].plot(ranks, events, color=ink)
    axes[1].set(
        title="Popularity of items", xlabel="rank", ylabel="events", xscale="log", yscale="log"
    )
    if card.days:
        found = traits_in(card).days
        numbers = range(min(found), max(found) + 1)
        axes[2].plot(numbers, [found.get(number, 0) for number in numbers], color=ink)
        named = numbers[:: max(1, len(numbers) // 3)]
        axes[2].set_xticks(named, [date_of(number) for number in named])
        axes[2].set(title="Events a day, as read")
        axes[2].set_ylim(bottom=0)
    plain(axes)
    return png(figure)
