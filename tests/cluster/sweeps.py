"""Sweeps for tests: a specification as a file, and what is planned from it."""

from pathlib import Path
from typing import Any

import yaml

from cluster.sweep.plan import Sweep, plan
from cluster.sweep.spec import load_sweep_spec
from pipeline.manifest import Dataset
from tests.train.runs import recipe, write

LR = "train.optimizer.lr"


def spec(dataset: Dataset, folder: Path, **changes: Any) -> Path:
    """A sweep of runs of 3000 quick steps, as a file; its name is ``found``."""
    validated = {"every": 100, "users": 100}
    base = recipe(
        dataset,
        folder / "runs",
        train__steps=3000,
        train__validation=validated,
        train__checkpoint_every=500,
        train__log_every=50,
    )
    document = {"name": "found", "recipe": write(base, folder).name, "space": {}} | changes
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def planned(path: Path, *overrides: str) -> Sweep:
    return plan(load_sweep_spec(str(path)), list(overrides))
