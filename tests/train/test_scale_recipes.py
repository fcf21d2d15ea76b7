"""The recipes of configs/scale: reduced they train and resume, whole they are forecast."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from pipeline.config import Recipe, load_recipe
from pipeline.manifest import Dataset
from pipeline.train.forecast import forecast
from tests.train.runs import checkpoint_of, steps_in, train_here

FOLDER = Path(__file__).parents[2] / "configs" / "scale"
ITEMS = {
    "billion-trunk": 1_000_000,
    "hundred-million-trunk": 1_000_000,
    "million-items": 1_000_000,
    "ten-million-items": 10_000_000,
    "yambda-5b": 9_390_623,
}
GB = 1e9


def reduced(name: str, dataset: Dataset, folder: Path) -> Recipe:
    """By the overrides of the command in the recipe's header, for one worker."""
    text = (FOLDER / f"{name}.yaml").read_text().replace("\\\n#", "")
    (command,) = re.findall(r"-m pipeline train (.*)", text)
    _, *overrides = command.split()
    here = [f"data.path={dataset.url}", f"runs={folder}", "placement.threads=1"]
    return load_recipe(str(FOLDER / f"{name}.yaml"), [*overrides, *here])


def test_every_recipe_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(ITEMS)


@pytest.mark.parametrize("name", ITEMS)
def test_reduced_it_trains_and_resumes(name: str, small_set: Dataset, tmp_path: Path) -> None:
    wanted = reduced(name, small_set, tmp_path)
    assert train_here(wanted, stop_before=2).state == "preempted"
    assert steps_in(wanted.run_url) == [2]
    assert train_here(wanted).state == "done"
    last = checkpoint_of(wanted.run_url, 4)
    assert last.commit.attempt == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in last.tensors().values())


@pytest.mark.parametrize("name", ITEMS)
def test_whole_it_fits_and_nothing_is_allocated(name: str, small_set: Dataset) -> None:
    manifest = small_set.manifest.model_copy(update={"catalogue_size": ITEMS[name]})
    whole = dataclasses.replace(small_set, manifest=manifest)
    recipe = load_recipe(str(FOLDER / f"{name}.yaml"))
    before = _peak()
    found = forecast(recipe, whole, recipe.placement.most_workers)
    assert _peak() - before < 1 * GB  # activations are tried on small models
    assert found.parameters > ITEMS[name] * recipe.model.d
    assert 1 * GB < sum(found.memory.values()) < 30 * GB  # of the 80 that the headers assume
    assert found.checkpoint_bytes > 4 * found.parameters


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
