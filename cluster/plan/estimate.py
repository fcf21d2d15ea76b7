"""The plan of a recipe on a cluster: what a step takes on so many workers, and what it adds up to.

A step is the sum of its parts. Reading and the upload of checkpoints go on beside it, and only
lengthen it where they take longer.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from cluster.hardware import DEVICES, Device, Reached
from cluster.plan.counts import Counts
from cluster.plan.exchange import Ways, collectives_of
from cluster.plan.room import Room, does_not_fit, remedies
from cluster.plan.work import Work, sizes_of, work_of
from cluster.spec import ClusterSpec
from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.train.forecast import forecast

_UNPACKED = 7.2e7  # tokens/s that a thread reads from files; measured, benchmarks/loader.py


@dataclass(frozen=True)
class Column:
    """A step on ``workers`` workers; times in seconds, sizes in bytes.

    parts: they add up to ``busy``; beside: what goes on at the same time. efficiency: tokens/s of a
    worker over those of a worker alone. memory: of a worker; its part ``on_device``, where the
    limit is, and the host's, of a node's workers. Limits are None where nobody told them. hours:
    of the whole training. price: of its nodes, where the specification has one.
    """

    workers: int
    nodes: int
    micro_batches: int
    parts: dict[str, float]
    beside: dict[str, float]
    step_seconds: float
    bottleneck: str
    tokens_per_second: float
    efficiency: float
    sent_bytes: dict[str, float]
    memory: dict[str, int]
    device_memory: int
    device_limit: int | None
    host_memory: int
    host_limit: int | None
    fits: bool
    remedies: list[str]
    hours: float
    worker_hours: float
    price: float | None


@dataclass(frozen=True)
class Estimate:
    """Columns by number of workers, what they were reckoned with, and what is not known."""

    run: str
    device: str
    tokens_a_step: int
    steps: int
    epochs: float
    columns: list[Column]
    coefficients: Reached
    unknown: list[str]

    def as_document(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "coefficients": self.coefficients.model_dump()}


def estimate(
    recipe: Recipe, spec: ClusterSpec, counts: Counts, workers: list[int] | None = None
) -> Estimate:
    """The plan on each number of workers, by default on all that the cluster may have.

    Raises LonghaulError where the specification does not go with itself or the recipe, and where
    no column fits into memory.
    """
    device = _device_of(spec)
    known = spec.workers
    wanted = workers or ([known] if isinstance(known, int) else sorted({*known}))
    lanes = recipe.data.lanes
    if max(wanted) > lanes:
        raise LonghaulError(
            f"{max(wanted)} workers exceed data.lanes {lanes}: set data.lanes to the most workers "
            "the run may ever have (it fixes what a step computes)"
        )
    alone = _rate(recipe, spec, device, counts)
    columns = [_column(recipe, spec, device, counts, number, alone) for number in wanted]
    if not any(column.fits for column in columns):
        raise LonghaulError(does_not_fit(recipe, spec, device, counts, wanted[-1]))
    counted = forecast(recipe, counts.dataset, wanted[0])
    return Estimate(
        run=recipe.name,
        device=device.name,
        tokens_a_step=counted.tokens_a_step,
        steps=counted.steps,
        epochs=counted.epochs,
        columns=columns,
        coefficients=device.reached,
        unknown=_unknown(recipe, spec, device, counts),
    )


def seconds_of(work: Work, device: Device, cores: float, low: bool, spec: ClusterSpec) -> float:
    """How long a worker takes. cores: of its CPU, where it has no GPU. low: products in bf16."""
    peak, by, host = (device.bf16 if low else device.fp32), device.reached, spec.hardware.host
    many = 1 if device.gpu else cores
    return (
        (work.products / by.products + work.mixing / by.mixing + work.softmax / by.softmax) / peak
        + (work.passes / by.passes + work.rows / by.rows) / device.bandwidth
    ) / many + (
        work.launches * by.launch
        + work.host_link / host.link
        + work.host_passes / (by.passes * host.bandwidth)
    )


def ways_of(spec: ClusterSpec, device: Device, workers: int) -> Ways:
    """Where so many workers are, filling one node after the other."""
    part, on = spec.hardware, spec.workers_per_node
    return Ways(workers, on, part.inside_of(device), part.between_of(device), device.reached.links)


def step_parts(
    recipe: Recipe, spec: ClusterSpec, device: Device, counts: Counts, workers: int
) -> dict[str, float]:
    """Seconds of the parts of a step, without checkpoints."""
    sizes = sizes_of(recipe, counts, workers, device.gpu)
    low = recipe.train.precision != "fp32"
    found = {
        name: seconds_of(
            work, device, spec.cpus_per_worker, low and name in ("trunk", "loss"), spec
        )
        for name, work in work_of(recipe, sizes).items()
    }
    ways = ways_of(spec, device, workers)
    found["exchange"] = sum(ways.seconds(one) for one in collectives_of(recipe, sizes))
    return found


def _device_of(spec: ClusterSpec) -> Device:
    """What a worker computes on. Raises LonghaulError where the specification is at odds."""
    device = spec.hardware.device
    if device is None and spec.gpus_per_worker:
        known = ", ".join(name for name, one in DEVICES.items() if one.gpu)
        raise LonghaulError(f"hardware.device is missing: say which GPU workers have, as {known}")
    device = device or DEVICES["cpu"]
    if device.gpu != bool(spec.gpus_per_worker):
        raise LonghaulError(
            f"hardware.device {device.name} is {'a GPU' if device.gpu else 'no GPU'}, but "
            f"gpus_per_worker is {spec.gpus_per_worker}"
        )
    if spec.gpus_per_worker > 1:
        raise LonghaulError(
            f"gpus_per_worker {spec.gpus_per_worker}: a worker trains on one GPU, plan for 1"
        )
    return device


def _rate(recipe: Recipe, spec: ClusterSpec, device: Device, counts: Counts) -> float:
    """Tokens/s of one worker alone."""
    parts, beside = _times(recipe, spec, device, counts, 1)
    return recipe.data.lanes * recipe.data.lane_tokens / _step(parts, beside)


def _times(
    recipe: Recipe, spec: ClusterSpec, device: Device, counts: Counts, workers: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds a step: what adds up, and what goes on beside it."""
    parts = step_parts(recipe, spec, device, counts, workers)
    store, every = spec.hardware.store, recipe.train.checkpoint_every
    on = min(workers, spec.workers_per_node)
    nodes = -(-workers // spec.workers_per_node)
    kept = forecast(recipe, counts.dataset, workers).checkpoint_bytes
    copied = Work(host_link=kept / workers) if device.gpu else Work(passes=2 * kept / workers)
    parts["checkpoint"] = seconds_of(copied, device, spec.cpus_per_worker, False, spec) / every
    tokens = recipe.data.lane_tokens * -(-recipe.data.lanes // workers)
    once = counts.bytes <= int(recipe.reading.memory)  # every worker keeps all of it
    stored = 0.0 if once else tokens * counts.token_bytes * on / store.read
    return parts, {
        "reading": max(stored, tokens / _UNPACKED),
        "upload": kept / nodes / store.write / every,
    }


def _step(parts: dict[str, float], beside: dict[str, float]) -> float:
    return max(sum(parts.values()), *beside.values())


def _column(
    recipe: Recipe,
    spec: ClusterSpec,
    device: Device,
    counts: Counts,
    workers: int,
    alone: float,
) -> Column:
    parts, beside = _times(recipe, spec, device, counts, workers)
    step = _step(parts, beside)
    longest = max(parts, key=lambda name: parts[name])
    if step > sum(parts.values()):
        longest = max(beside, key=lambda name: beside[name])
    rate = recipe.data.lanes * recipe.data.lane_tokens / step
    sizes = sizes_of(recipe, counts, workers, device.gpu)
    sent: dict[str, float] = {}
    for one in collectives_of(recipe, sizes):
        sent[one.kind] = sent.get(one.kind, 0.0) + one.sent(workers)
    found = forecast(recipe, counts.dataset, workers)
    room = Room(recipe, spec, device, counts, found)
    nodes = -(-workers // spec.workers_per_node)
    hours = step * recipe.train.steps / 3600
    return Column(
        workers=workers,
        nodes=nodes,
        micro_batches=found.micro_batches,
        parts=parts,
        beside=beside,
        step_seconds=step,
        bottleneck=longest,
        tokens_per_second=rate,
        efficiency=rate / workers / alone,
        sent_bytes=sent,
        memory=found.memory,
        device_memory=room.device,
        device_limit=room.device_limit,
        host_memory=room.host,
        host_limit=room.host_limit,
        fits=room.fits,
        remedies=[] if room.fits else remedies(recipe, spec, device, counts, workers),
        hours=hours,
        worker_hours=hours * workers,
        price=None if spec.price_per_hour is None else spec.price_per_hour * nodes * hours,
    )


def _unknown(recipe: Recipe, spec: ClusterSpec, device: Device, counts: Counts) -> list[str]:
    """What the numbers rest on that nobody measured or told."""
    part, known = spec.hardware, spec.hardware.model_fields_set
    found = [f"shares of {device.name}'s peaks: {device.reached.source}"]
    if "device" not in known:
        found.append("hardware.device is not told: cores as fast as those of the preset cpu")
    inside, between = part.inside_of(device), part.between_of(device)
    for name, link in (("inside", inside), ("between", between)):
        if name not in known:
            found.append(f"hardware.{name} is not told: {link.bandwidth / 1e9:g} GB/s")
    for name in ("read", "write"):
        if name not in part.store.model_fields_set:
            speed = getattr(part.store, name) / 1e9
            found.append(f"hardware.store.{name} is not told: {speed:g} GB/s a node")
    if spec.memory is None:
        found.append("memory of a node is not told: not checked")
    if counts.popularity is None:
        found.append("counts of the data are yours: items drawn evenly, the most distinct rows")
    if recipe.train.validation is not None:
        found.append("validation is not in the hours")
    found.append("lanes are taken as full, workers as equally fast; no start, no restart")
    return found


RESOURCES = tuple(field.name for field in fields(Work))
"""The names of what ``Work`` counts."""
