"""One trained and evaluated run that the tests of the report share."""

import pytest

from pipeline import world
from pipeline.config import Recipe
from pipeline.evaluate import Protocol
from pipeline.evaluate.of_run import evaluate_run
from pipeline.manifest import Dataset
from pipeline.train.trained import load_trained
from tests.train.runs import recipe, train_here


@pytest.fixture(scope="session")
def run(small_set: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run of two attempts, evaluated with baselines under two protocols."""
    folder = tmp_path_factory.mktemp("reported")
    changes = {"train__validation": {"every": 4}, "evaluation__seen": "none"}
    wanted = recipe(small_set, folder, "reported", **changes)
    train_here(wanted, stop_before=7)
    train_here(wanted)
    with world.alone("cpu", 1) as here:
        trained = load_trained(wanted.run_url, here.device, print)
        for protocol, baselines in (
            (Protocol(max_history=16, seen="none"), True),
            (Protocol(max_history=16, seen="history", split="validation"), False),
        ):
            list(evaluate_run(trained, small_set, protocol, here, baselines=baselines))
    return wanted
