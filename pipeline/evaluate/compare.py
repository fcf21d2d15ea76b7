"""Scorers side by side, user by user: differences of means, intervals, and whether it is chance."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import fsum, sqrt

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pipeline.errors import LonghaulError
from pipeline.evaluate.intervals import Z
from pipeline.evaluate.per_user import PerUser, read_parts
from pipeline.evaluate.protocol import Protocol
from pipeline.evaluate.significance import holm, sign_flip
from pipeline.mistakes import nearest

SAMPLES = 10_000


@dataclass(frozen=True)
class Side:
    """One scorer's results for each user: its name here, and the folder they are in."""

    name: str
    folder: str
    found: PerUser


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Difference(_Part):
    """How a scorer differs from the baseline in one metric; differences are its own less that.

    interval: 95 %, the normal approximation of the mean of the users' differences. p: two-sided,
    by random signs (``significance.sign_flip``). p_corrected: by Holm's method over all differences
    of the comparison; with a single one p itself.
    """

    scorer: str
    metric: str
    mean: float
    baseline_mean: float
    difference: float
    interval: tuple[float, float]
    p: float
    p_corrected: float


class Comparison(_Part):
    """Scorers compared with one of them, and all that the numbers depend on."""

    schema_version: int = 1
    baseline: str
    ranking: str
    users: int
    differences: tuple[Difference, ...]
    correction: str | None
    samples: int
    seed: int
    protocol: Protocol
    data: str


def compare(
    baseline: Side,
    others: Sequence[Side],
    metrics: Sequence[str],
    samples: int = SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare each of ``others`` with the baseline, in each metric, over the same users.

    Parts of the results are read one at a time; of all users together only the different values
    that their differences take are kept. Raises LonghaulError where data or protocol differ, or a
    metric is not there.
    """
    for other in others:
        refuse_different(baseline, other)
    for metric in metrics:
        if metric not in baseline.found.metrics:
            there = nearest(metric, baseline.found.metrics)
            raise LonghaulError(f"no user has a metric {metric!r}{there}")
    found = []
    for other in others:
        for metric in metrics:
            found.append(_difference(baseline, other, metric, samples, seed))
    corrected = holm([one.p for one in found])
    return Comparison(
        baseline=baseline.name,
        ranking=baseline.found.protocol.ranking,
        users=baseline.found.users,
        differences=tuple(
            one.model_copy(update={"p_corrected": p})
            for one, p in zip(found, corrected, strict=True)
        ),
        correction=f"Holm, {len(found)} tests" if len(found) > 1 else None,
        samples=samples,
        seed=seed,
        protocol=baseline.found.protocol,
        data=baseline.found.data,
    )


def refuse_different(a: Side, b: Side) -> None:
    """Raise LonghaulError, naming what differs, where two sides cannot be compared."""
    if a.found.data != b.found.data:
        raise LonghaulError(
            f"{a.name} and {b.name} were evaluated on different data: fingerprints "
            f"{a.found.data[:12]} and {b.found.data[:12]}; name one set for both with --data"
        )
    mine, theirs = a.found.protocol.model_dump(), b.found.protocol.model_dump()
    told = [f"{key} {mine[key]} and {theirs[key]}" for key in mine if mine[key] != theirs[key]]
    if told:
        raise LonghaulError(
            f"{a.name} and {b.name} differ in protocol: {'; '.join(told)}; "
            "set one value for both with --set KEY=VALUE"
        )


def _difference(baseline: Side, other: Side, metric: str, samples: int, seed: int) -> Difference:
    values, counts = np.empty(0), np.empty(0, np.int64)
    sums: tuple[list[float], list[float]] = ([], [])
    for a, b in _paired(baseline, other, metric):
        sums[0].append(fsum(a))
        sums[1].append(fsum(b))
        here, times = np.unique(b - a, return_counts=True)
        values, place = np.unique(np.concatenate([values, here]), return_inverse=True)
        weights = np.concatenate([counts, times])
        counts = np.bincount(place, weights, len(values)).astype(np.int64)
    users = int(counts.sum())
    mean = float(values @ counts) / users
    spread = float(((values - mean) ** 2) @ counts)
    half = Z * sqrt(spread / (users * (users - 1))) if users > 1 else float("inf")
    p = sign_flip(values, counts, samples, seed)
    return Difference(
        scorer=other.name,
        metric=metric,
        mean=fsum(sums[1]) / users,
        baseline_mean=fsum(sums[0]) / users,
        difference=mean,
        interval=(mean - half, mean + half),
        p=p,
        p_corrected=p,
    )


def _paired(a: Side, b: Side, metric: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The metric of the same users on both sides, part by part."""
    columns = ["user", metric]
    sides = (read_parts(side.folder, side.found, columns) for side in (a, b))
    for one, other in zip_longest(*sides):
        if one is None or other is None or not _same(one, other):
            raise LonghaulError(
                f"the users of {a.folder} and {b.folder} are not the same, in the same order: "
                "remove both folders and evaluate again"
            )
        yield one.column(metric).to_numpy(), other.column(metric).to_numpy()


def _same(one: pa.Table, other: pa.Table) -> bool:
    return bool(one.column("user").equals(other.column("user")))
