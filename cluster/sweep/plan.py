"""A sweep worked out: every trial's recipe, checked before anything starts."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.sweep.space import Draw, Point, points
from cluster.sweep.spec import SweepSpec
from pipeline import storage
from pipeline.config import Recipe, assign, parse_recipe, read_document
from pipeline.errors import LonghaulError
from pipeline.evaluate import Ranks, user_metrics
from pipeline.manifest import open_dataset
from pipeline.train.run import differences, load_config


@dataclass(frozen=True)
class Trial:
    """One point, and the run that trains it."""

    point: Point
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of the run."""
        return self.recipe.name

    @property
    def url(self) -> str:
        """Of the run."""
        return self.recipe.run_url

    @property
    def told(self) -> str:
        """The point in one line."""
        return "  ".join(f"{key}={value}" for key, value in self.point.items())


@dataclass(frozen=True)
class Sweep:
    """All trials, and what they have in common."""

    spec: SweepSpec
    url: str
    metric: str
    grace: int
    trials: list[Trial]
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the sweep."""
        return self.spec.name

    @property
    def stop_reason(self) -> str:
        """What its runs say when the sweep is asked to stop."""
        return f"sweep {self.name} was asked to stop"

    @property
    def end_reason(self) -> str:
        """What a run says that was ended early; it is how such a run is known for good."""
        return f"ended early by sweep {self.name}"


def plan(spec: SweepSpec, overrides: list[str]) -> Sweep:
    """Work out the trials. Raises LonghaulError naming the key that no recipe accepts."""
    document = read_document(spec.recipe, [*spec.overrides, *overrides])
    drawn = points(spec.space, spec.seed, spec.count)
    base = _recipe(document, spec, drawn[0])
    if base.train.validation is None:
        raise LonghaulError(f"{spec.recipe}: a sweep compares trials by train.validation")
    for key, draw in spec.space.items():
        for value in draw.extremes:
            _recipe(document, spec, {**drawn[0], key: value}, told=key)
    recipes = [_recipe(document, spec, point) for point in drawn]
    metric = spec.metric or base.train.validation.metric
    _check_metric(metric, base)
    grace, steps = _grace(spec, base), min(recipe.train.steps for recipe in recipes)
    if grace > steps:
        raise LonghaulError(f"asha.grace {grace} exceeds train.steps {steps}: nothing would end")
    runs = storage.absolute(base.runs)
    trials = [
        Trial(point, _of_trial(recipe, spec, metric, runs, number))
        for number, (point, recipe) in enumerate(zip(drawn, recipes, strict=True), start=1)
    ]
    identity = {
        "recipe": _identity_without(base, spec.space),
        "space": {key: _written(draw) for key, draw in spec.space.items()},
        "metric": metric,
        "seed": spec.seed,
        "asha": {"grace": grace, "reduction": spec.asha.reduction} if spec.asha else None,
    }
    return Sweep(spec, storage.join(runs, spec.name), metric, grace, trials, identity)


def check_places(sweep: Sweep) -> None:
    """Raise LonghaulError where data are missing, or a name belongs to something else."""
    if storage.exists(storage.join(sweep.url, "config.yaml")):
        raise LonghaulError(f"{sweep.url} is a run: choose another name for the sweep")
    for path in sorted({trial.recipe.data.path for trial in sweep.trials}):
        open_dataset(path)
    for trial in sweep.trials:
        if not storage.exists(storage.join(trial.url, "config.yaml")):
            continue
        kept = load_config(trial.url)
        if kept.hash() != trial.recipe.hash():
            changes = "; ".join(differences(kept.identity(), trial.recipe.identity()))
            raise LonghaulError(
                f"run {trial.name} at {trial.url} was begun with another recipe ({changes}): "
                "choose another name for the sweep"
            )


def _recipe(document: dict[str, Any], spec: SweepSpec, point: Point, told: str = "") -> Recipe:
    """The recipe at a point; ``told`` is the key that is being tried, all of them where none is."""
    document = copy.deepcopy(document)
    for key, value in point.items():
        assign(document, key, value)
    tried = " ".join(f"{k}={v}" for k, v in point.items() if told in ("", k))
    return parse_recipe(document, f"sweep {spec.name}, {spec.recipe} with {tried}")


def _of_trial(recipe: Recipe, spec: SweepSpec, metric: str, runs: str, number: int) -> Recipe:
    """The run's own recipe: its name, absolute places, one node, one process or torchrun."""
    placement, tracking = recipe.placement, recipe.tracking
    workers = placement.least_workers
    document = recipe.absolute()
    document["name"] = f"{spec.name}-{number:03d}"
    document["runs"] = runs
    document["train"]["validation"]["metric"] = metric
    document["tracking"] |= {"group": spec.name, "tags": [*tracking.tags, "sweep"]}
    document["placement"] |= {
        "workers": workers,
        "launcher": "alone" if workers == 1 else "torchrun",
        "threads": placement.threads or 1,
    }
    return parse_recipe(document, f"sweep {spec.name}")


def _check_metric(metric: str, base: Recipe) -> None:
    """Only metrics of users: for them, higher is better."""
    nobody = Ranks(np.zeros(1, np.int64), np.zeros(1, np.int64))
    names = user_metrics(nobody, np.array([0, 1]), base.evaluation.ks, "against")
    if metric not in names:
        raise LonghaulError(f"metric {metric!r} is not computed; there are: {', '.join(names)}")


def _grace(spec: SweepSpec, base: Recipe) -> int:
    assert base.train.validation is not None
    return (spec.asha and spec.asha.grace) or base.train.validation.every


def _written(draw: Draw) -> dict[str, Any]:
    return draw.model_dump(mode="json", exclude_none=True)


def _identity_without(base: Recipe, keys: dict[str, Draw]) -> dict[str, Any]:
    """What all trials compute alike: the recipe's identity without its name and the keys drawn."""
    identity = base.identity()
    del identity["name"], identity["train"]["validation"]["metric"]
    for key in keys:
        *path, last = key.split(".")
        node: Any = identity
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(last, None)
    return identity
