"""What a sweep refuses before anything starts, and which points and runs it plans."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cluster.sweep.plan import check_places
from cluster.sweep.space import Draw, points
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from tests.cluster.sweeps import LR, planned, spec
from tests.train.runs import ROOT, recipe, train_here


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"spaces": {}}, "unknown key 'spaces'; did you mean 'space'?"),
        ({"asha": {"gracious": 3}}, "unknown key 'asha.gracious'; did you mean 'grace'?"),
        ({"space": {}}, "space: Dictionary should have at least 1 item"),
        ({"space": {LR: {"unifrm": [0, 1]}}}, "did you mean 'uniform'?"),
        ({"space": {LR: {}}}, f"space.{LR}: exactly one of choice, uniform, log_uniform, integer"),
        ({"space": {LR: {"uniform": [1, 0]}}}, "uniform [1.0, 0.0] is empty"),
        ({"space": {LR: {"log_uniform": [0, 1]}}}, "log_uniform [0.0, 1.0] must begin above zero"),
        ({"space": {LR: {"uniform": [0.1, 1]}}}, "key 'trials' is missing"),
        ({"space": {LR: {"choice": [0.1]}}, "trials": 2}, "trials 2 exceeds the 1 points"),
        ({"space": {"name": {"choice": ["a"]}}}, "space.name changes nothing of what a run"),
        ({"space": {"placement.threads": {"choice": [1]}}}, "space.placement.threads changes"),
        ({"space": {"train.validation.metric": {"choice": ["mrr"]}}}, "several metrics"),
        ({"space": {"train.stepz": {"choice": [5]}}}, "'train.stepz'; did you mean 'steps'?"),
        (
            {"space": {LR: {"uniform": [-1, 1]}}, "trials": 1},
            f"{LR}: Input should be greater than 0",
        ),
        ({"space": {"model.name": {"choice": ["lrurec", "lru"]}}}, "no model is called 'lru'"),
        ({"metric": "mean_rank"}, "metric 'mean_rank' is not computed; there are: hr@5"),
        ({"asha": {"grace": 3001}}, "asha.grace 3001 exceeds train.steps 3000"),
        ({"overrides": ["train.validation=null"]}, "compares trials by train.validation"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    small_set: Dataset, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    path = spec(small_set, tmp_path, **{"space": {LR: {"choice": [0.1, 0.2]}}, **changes})
    with pytest.raises(LonghaulError) as refused:
        planned(path)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_value_that_is_not_drawn_is_refused_too(small_set: Dataset, tmp_path: Path) -> None:
    """More trials later must not find what the first ones did not."""
    space = {"model.dropout": {"uniform": [0.0, 1.5]}}
    path = spec(small_set, tmp_path, space=space, trials=1)
    with pytest.raises(LonghaulError, match=r"model\.dropout=1\.5: model\.dropout: Input should"):
        planned(path)


def test_points_are_a_pure_function_of_the_seed() -> None:
    space = {
        "a": Draw(log_uniform=(1e-4, 1e-1)),
        "b": Draw(choice=["x", "y", None]),
        "c": Draw(integer=(3, 5)),
        "d": Draw(uniform=(-1.0, 1.0)),
    }
    few, many = points(space, 7, 3), points(space, 7, 400)
    assert few == [
        {"a": 0.0776169, "b": None, "c": 3, "d": 0.700777},
        {"a": 0.00394554, "b": "y", "c": 5, "d": -0.442381},
        {"a": 0.00041851, "b": None, "c": 3, "d": -0.610871},
    ]
    assert many[:3] == few
    assert points(dict(reversed(space.items())), 7, 3) == few
    assert points(space, 8, 3) != few
    assert {p["b"] for p in many} == {"x", "y", None}
    assert {p["c"] for p in many} == {3, 4, 5}
    assert all(1e-4 <= p["a"] <= 1e-1 and -1 <= p["d"] <= 1 for p in many)
    # Uniform in the logarithm: a third of the draws in each decade.
    decades = [sum(math.floor(math.log10(p["a"])) == e for p in many) for e in (-4, -3, -2)]
    assert min(decades) > 100


def test_points_that_can_be_counted_all_come_once() -> None:
    space = {"a": Draw(choice=[1, 2, 3]), "b": Draw(integer=(1, 4))}
    drawn = points(space, 0, 12)
    assert len({(point["a"], point["b"]) for point in drawn}) == 12


def test_trials_are_runs_with_places_of_their_own(small_set: Dataset, tmp_path: Path) -> None:
    tracking = {"wandb": "offline", "tags": ["mine"], "group": "other"}
    path = spec(
        small_set,
        tmp_path,
        space={"model.d": {"choice": [8, 16]}},
        metric="hr@5",
        overrides=[f"tracking={json.dumps(tracking)}", "placement.workers=[2,3]"],
    )
    sweep = planned(path, "runs=elsewhere")
    first = sweep.trials[0].recipe
    assert [trial.name for trial in sweep.trials] == ["found-001", "found-002"]
    assert {trial.recipe.model.d for trial in sweep.trials} == {8, 16}
    assert first.runs == str(Path.cwd() / "elsewhere")
    assert first.train.validation is not None
    assert first.train.validation.metric == "hr@5"
    assert (first.tracking.group, first.tracking.tags) == ("found", ["mine", "sweep"])
    assert (first.placement.workers, first.placement.launcher) == (2, "torchrun")


def test_names_that_belong_to_others_are_refused(small_set: Dataset, tmp_path: Path) -> None:
    path = spec(small_set, tmp_path, space={LR: {"choice": [0.1, 0.2]}})
    runs = tmp_path / "runs"
    train_here(recipe(small_set, runs, "found-002", train__steps=1))
    with pytest.raises(LonghaulError, match=r"run found-002 .* was begun with another recipe \("):
        check_places(planned(path))
    train_here(recipe(small_set, runs, "found", train__steps=1))
    with pytest.raises(LonghaulError, match=r"found is a run: choose another name"):
        check_places(planned(path))
    with pytest.raises(LonghaulError, match="no data set at"):
        check_places(planned(path, f"runs={tmp_path}", "data.path=nothing"))


def test_the_example_is_valid() -> None:
    sweep = planned(ROOT / "configs" / "sweeps" / "demo.yaml")
    assert len(sweep.trials) == 8
