"""Whether a worker's memory suffices, and which change to the recipe would make it do so.

The memory itself is forecast by ``pipeline.train.forecast``; here it meets the cluster's limits.
"""

from cluster.hardware import Device
from cluster.plan.counts import Counts
from cluster.spec import ClusterSpec
from pipeline.config import Recipe, assign, parse_recipe
from pipeline.errors import LonghaulError
from pipeline.train.forecast import Forecast, forecast

_USABLE = 0.9  # of a memory: the rest is the libraries' and lost between allocations
_ON_HOST = ("reading", "checkpoint")  # parts of the forecast that a GPU does not hold


class Room:
    """The memory that a worker needs, where it needs it, and how much there is."""

    def __init__(
        self, recipe: Recipe, spec: ClusterSpec, device: Device, counts: Counts, found: Forecast
    ) -> None:
        on = min(found.workers, spec.workers_per_node)
        whole = sum(found.memory.values())
        host = sum(found.memory.get(part, 0) for part in _ON_HOST)
        if recipe.train.offload == "optimizer":
            host += _engines_optimizer(recipe, counts, found)
        self.device = whole - host if device.gpu else 0
        self.host = on * (host if device.gpu else whole)
        self.device_limit = None if device.memory is None else int(_USABLE * device.memory)
        self.host_limit = None if spec.memory is None else int(_USABLE * spec.memory)
        self.fits = self.device <= (self.device_limit or self.device) and self.host <= (
            self.host_limit or self.host
        )


def _engines_optimizer(recipe: Recipe, counts: Counts, found: Forecast) -> int:
    """Bytes of masters and moments without those of a sharded table, which stay on the GPU."""
    if recipe.train.table.home == "dense":
        return found.memory["optimizer"]
    document = recipe.model_dump(mode="json")
    assign(document, "train.table.optimizer", "sgd")  # which has no state of rows
    without = parse_recipe(document, recipe.name)
    return forecast(without, counts.dataset, found.workers).memory["optimizer"]


def remedies(
    recipe: Recipe, spec: ClusterSpec, device: Device, counts: Counts, workers: int
) -> list[str]:
    """Changes to the recipe with which it fits: each that does alone, else the first together."""

    def fits(changes: list[str]) -> bool:
        document = recipe.model_dump(mode="json")
        for change in changes:
            for part in change.split():
                key, _, value = part.partition("=")
                assign(document, key, value)
        try:
            changed = parse_recipe(document, "a remedy")
        except LonghaulError:
            return False
        found = forecast(changed, counts.dataset, workers)
        return Room(changed, spec, device, counts, found).fits

    possible = _possible(recipe, workers)
    alone = [change for change in possible if fits([change])]
    if alone:
        return alone
    together: list[str] = []
    for change in possible:
        together.append(change)
        if fits(together):
            return [" ".join(together)]
    return []


def _possible(recipe: Recipe, workers: int) -> list[str]:
    train = recipe.train
    found = []
    if train.table.home == "dense" and workers > 1:
        found.append("train.table.home=sharded")
    if train.engine == "torch" and workers > 1:
        found.append("train.engine=deepspeed train.zero_stage=3")
    elif train.zero_stage < 3 and workers > 1:
        found.append(f"train.zero_stage={max(2, train.zero_stage + 1)}")
    if train.offload == "none" and train.engine == "deepspeed" and train.zero_stage:
        found.append("train.offload=optimizer")
    if not recipe.model.activation_checkpointing:
        found.append("model.activation_checkpointing=true")
    tokens = recipe.data.lane_tokens
    for share in (2, 4, 8, 16):
        if tokens // share >= recipe.data.window.length:
            found.append(f"data.lane_tokens={tokens // share}")
    return found


def does_not_fit(
    recipe: Recipe, spec: ClusterSpec, device: Device, counts: Counts, workers: int
) -> str:
    """What is missing on so many workers, and what would help, in one line."""
    found = forecast(recipe, counts.dataset, workers)
    room = Room(recipe, spec, device, counts, found)
    parts = found.memory
    needs, limit, who = room.host, room.host_limit, "the workers of a node need"
    if room.device_limit is not None and room.device > room.device_limit:
        needs, limit, who = room.device, room.device_limit, "a GPU's worker needs"
        parts = {part: size for part, size in parts.items() if part not in _ON_HOST}
    most = max(parts, key=lambda part: parts[part])
    said = (
        f"{recipe.name} does not fit on {workers} worker{'s' * (workers > 1)}: {who} "
        f"{needs / 1e9:,.1f} GB, most of it {most}, and {(limit or 0) / 1e9:,.1f} GB are usable"
    )
    changes = remedies(recipe, spec, device, counts, workers)
    if changes:
        return f"{said}; it fits with {', or with '.join(changes)}"
    return f"{said}; no setting here changes that: take more workers, or a smaller model.d"
