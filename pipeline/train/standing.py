"""How runs stand, for people who ask: from the folders that the runs keep themselves."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.train.run import load_config, metrics_files, read_metrics, read_state


@dataclass(frozen=True)
class Attempt:
    """One attempt. lines: its metrics. facts: what it computed with; empty if it never said."""

    number: int
    lines: list[dict[str, Any]]
    facts: dict[str, Any]

    @property
    def workers(self) -> int:
        """How many there were."""
        return int(self.facts.get("world_size", 1))

    @property
    def hours(self) -> float:
        """From its first line of metrics to its last."""
        return (self.lines[-1]["time"] - self.lines[0]["time"]) / 3600 if self.lines else 0.0


@dataclass(frozen=True)
class Standing:
    """One run. Times in seconds; what is not known yet is None.

    silent: since its metrics were last heard of. worker_hours: of all attempts. price: of these,
    where the specification of the cluster tells that of a node.
    """

    name: str
    url: str
    state: str
    step: int
    steps: int
    attempt: int
    reason: str | None
    metric: str | None
    best: float | None
    loss: float | None
    targets_per_second: float | None
    left: float | None
    silent: float | None
    worker_hours: float
    price: float | None
    job: dict[str, Any] | None

    def as_document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def standing(run_url: str) -> Standing:
    """How the run at ``run_url`` stands. Raises LonghaulError where there is none."""
    recipe = load_config(run_url)
    url = recipe.run_url
    stands = read_state(url)
    attempts = list(attempts_of(url))
    records = [record for attempt in attempts for record in attempt.lines]
    trained = [record for record in records if "loss" in record]
    metric = recipe.train.validation.metric if recipe.train.validation else None
    ranked = [r[f"validation/{metric}"] for r in records if f"validation/{metric}" in r]
    hours = sum(attempt.workers * attempt.hours for attempt in attempts)
    step, steps = (stands.step, stands.steps) if stands else (0, recipe.train.steps)
    if trained:
        step = max(step, trained[-1]["step"])
    return Standing(
        name=recipe.name,
        url=url,
        state=stands.state if stands else "new",
        step=step,
        steps=steps,
        attempt=stands.attempt if stands else 0,
        reason=stands.reason if stands else None,
        metric=metric,
        best=max(ranked, default=None),
        loss=trained[-1]["loss"] if trained else None,
        targets_per_second=trained[-1]["targets_per_second"] if trained else None,
        left=_left(trained, steps) if stands and stands.state == "running" else None,
        silent=time.time() - records[-1]["time"] if records else None,
        worker_hours=hours,
        price=_price(url, hours),
        job=_kept(url, "launch/submitted.json"),
    )


def standings(runs_url: str) -> Iterator[Standing]:
    """All runs in a folder, by name. Raises LonghaulError where there are none."""
    runs_url = storage.absolute(runs_url)
    found = sorted(
        path.removesuffix("/config.yaml")
        for path in storage.files_below(runs_url)
        if path.count("/") == 1 and path.endswith("/config.yaml")
    )
    if not found:
        raise LonghaulError(f"no runs in {runs_url}: no folder there has a config.yaml")
    for name in found:
        yield standing(storage.join(runs_url, name))


def attempts_of(url: str) -> Iterator[Attempt]:
    """The attempts at the run, in their order."""
    for file in metrics_files(url):
        name = file.rsplit("/", 1)[1].removesuffix(".jsonl")
        facts = _kept(url, f"attempts/{name}.json") or {}
        yield Attempt(int(name.removeprefix("attempt-")), read_metrics(file), facts)


def _left(trained: list[dict[str, Any]], steps: int) -> float | None:
    """Seconds to the last step at the pace of the last lines."""
    recent = trained[-10:]
    if len(recent) < 2 or recent[-1]["step"] <= recent[0]["step"]:
        return None
    pace = (recent[-1]["time"] - recent[0]["time"]) / (recent[-1]["step"] - recent[0]["step"])
    return float(pace * (steps - recent[-1]["step"]))


def _price(url: str, worker_hours: float) -> float | None:
    kept = storage.join(url, "launch", "cluster.yaml")
    if not storage.exists(kept):
        return None
    spec = yaml.safe_load(storage.read_bytes(kept))
    if spec["price_per_hour"] is None:
        return None
    return float(spec["price_per_hour"] * worker_hours / spec["workers_per_node"])


def _kept(url: str, path: str) -> dict[str, Any] | None:
    where = storage.join(url, path)
    if not storage.exists(where):
        return None
    document: dict[str, Any] = storage.read_json(where)
    return document
