"""A trained run, and the lists of it that one process writes."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import recommend as stage
from pipeline import world
from pipeline.manifest import Dataset
from pipeline.train.trained import best_checkpoint, load_checkpoint
from tests.train.runs import recipe, train_here

COMMON = ["--k", "5", "--part-users", "40", "--json"]


@pytest.fixture(scope="module")
def run(small_set: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    wanted = recipe(small_set, tmp_path_factory.mktemp("runs"))
    train_here(wanted)
    return wanted.run_url


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(run: str, small_set: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes."""
    return write_alone(run, small_set, tmp_path_factory.mktemp("lists") / "alone")


@pytest.fixture(scope="module")
def sharded_run(small_set: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose item table is sharded."""
    wanted = recipe(small_set, tmp_path_factory.mktemp("runs"), train__table={"home": "sharded"})
    train_here(wanted)
    return wanted.run_url


@pytest.fixture(scope="module")
def with_whole_table(
    sharded_run: str, small_set: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What one process writes that holds the whole table."""
    return write_alone(sharded_run, small_set, tmp_path_factory.mktemp("lists") / "whole")


def write_alone(run: str, dataset: Dataset, output: Path) -> Path:
    """The lists of a run's users by this process."""
    with world.alone("cpu", 1) as here:
        scorer = load_checkpoint(best_checkpoint(run)).scorer()
        stage.recommend(request_of(run, dataset, output), scorer, here)
    return output


def request_of(run: str, dataset: Dataset, output: Path, **changes: Any) -> stage.Request:
    """What ``COMMON`` asks for."""
    origin = stage.Origin(run=run, step=12, model=best_checkpoint(run).commit.sha256)
    asked: dict[str, Any] = {"k": 5, "max_history": 16, "part_users": 40, "origin": origin}
    return stage.Request(dataset, str(output), **asked | changes)
