"""A trained run, and the lists of it that one process writes."""

from pathlib import Path

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
    output = tmp_path_factory.mktemp("lists") / "alone"
    checkpoint = best_checkpoint(run)
    request = stage.Request(
        small_set,
        str(output),
        k=5,
        max_history=16,
        part_users=40,
        origin=stage.Origin(run=run, step=12, model=checkpoint.commit.sha256),
    )
    with world.alone("cpu", 1) as here:
        stage.recommend(request, load_checkpoint(checkpoint).scorer(), here)
    return output
