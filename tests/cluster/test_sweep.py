"""Sweeps: what they refuse, which points they draw, and real ones with Ray Tune on this machine."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from cluster.sweep.asha import Asha
from cluster.sweep.outcome import outcomes
from cluster.sweep.plan import Sweep, check_places, plan
from cluster.sweep.space import Draw, points
from cluster.sweep.spec import load_sweep_spec
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.train.run import read_state, stop_reason
from pipeline.train.standing import standings
from tests.conftest import prepare_histories
from tests.test_tracking import wandb_records
from tests.train.runs import ROOT, environment, recipe, steps_in, train_here, write

LR = "train.optimizer.lr"


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Everybody goes round a ring of 40 items: learnt at once, or not at all."""
    histories = [[1 + (user + step) % 40 for step in range(12)] for user in range(300)]
    return prepare_histories(histories, tmp_path_factory.mktemp("rings"))


def spec(dataset: Dataset, folder: Path, **changes: Any) -> Path:
    """A sweep of runs of 3000 quick steps, as a file; its name is ``found``."""
    validated = {"every": 100, "users": 100}
    base = recipe(dataset, folder / "runs", train__steps=3000, train__validation=validated)
    document = {"name": "found", "recipe": write(base, folder).name, "space": {}} | changes
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def planned(path: Path, *overrides: str) -> Sweep:
    return plan(load_sweep_spec(str(path)), list(overrides))


def command(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", "sweep", str(path), *arguments]


def start(path: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(path, *arguments),
        env=environment(WANDB_DIR=str(path.parent)),
        cwd=path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: "subprocess.Popen[str]", sweep: Sweep, run: str, step: int) -> None:
    """Return once the run has validated at the step; fail where the sweep ends before."""
    while True:
        stands = {one.run: one for one in outcomes(sweep)}[run]
        if any(at >= step for at, _ in stands.validations):
            return
        assert process.poll() is None, process.communicate()
        with_patience(process)


def with_patience(process: "subprocess.Popen[str]") -> None:
    try:
        process.wait(timeout=0.1)
    except subprocess.TimeoutExpired:
        return


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


def test_asha_remembers_trials_of_before(small_set: Dataset, tmp_path: Path) -> None:
    """What a sweep validated before it was interrupted counts when it goes on."""
    space = {LR: {"choice": [0.1, 0.2, 0.3]}}
    asha = {"grace": 100, "reduction": 2}
    sweep = planned(spec(small_set, tmp_path, space=space, asha=asha))
    before = {
        "found-001": [{"step": 100, "value": 0.5}, {"step": 200, "value": 0.6}],
        "found-002": [{"step": 100, "value": 0.7}],
    }
    scheduler = Asha(sweep, before, running=["found-002", "found-003"])
    tuned = {
        name: SimpleNamespace(trial_id=name, config={"trial": {"run": name}})
        for name in ("found-002", "found-003")
    }
    for trial in tuned.values():
        scheduler.on_trial_add(None, trial)

    def asked(name: str, step: int, value: float, over: bool = False) -> bool:
        result = {"step": step, "value": value, "over": over}
        assert scheduler.on_trial_result(None, tuned[name], result) == "CONTINUE"
        return (Path(sweep.url).parent / name / "stop").exists()

    assert not asked("found-002", 100, 0.1)  # judged there before
    assert not asked("found-002", 200, 0.1, over=True)  # has left by itself
    assert not asked("found-003", 99, 0.1)  # within its grace
    assert asked("found-003", 100, 0.55)  # below the median of 0.5 and 0.7
    assert stop_reason(sweep.trials[2].url) == "ended early by sweep found"


def test_a_trial_that_fails_does_not_end_the_sweep(rings: Dataset, tmp_path: Path) -> None:
    limit = "train.divergence.gradient_norm"
    path = spec(
        rings,
        tmp_path,
        space={limit: {"choice": [1e-9, 1e9]}},
        overrides=["train.steps=20", "train.validation.every=10", "tracking.wandb=offline"],
        asha=None,
    )
    process = start(path, "--json")
    said, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    trials = {trial["point"][limit]: trial for trial in json.loads(said)["trials"]}
    assert trials[1e9]["state"] == "done"
    assert trials[1e9]["best"] == max(value for _, value in trials[1e9]["validations"])
    assert [step for step, _ in trials[1e9]["validations"]] == [10, 20]
    assert trials[1e-9]["state"] == "failed"
    assert "the gradient at step 0 is above 1e-09" in trials[1e-9]["reason"]
    # The record is no run; the trials are.
    assert [one.name for one in standings(str(tmp_path / "runs"))] == ["found-001", "found-002"]
    assert json.loads((tmp_path / "runs" / "found" / "sweep.json").read_text())["state"] == "done"
    assert (tmp_path / "runs" / "found" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    # W&B has both, in one group.
    headers = [
        record.run
        for file in tmp_path.glob("wandb/offline-run-*/*.wandb")
        for record in wandb_records(file)
        if record.HasField("run")
    ]
    assert {header.run_id for header in headers} == {"found-001", "found-002"}
    assert {(header.run_group, tuple(header.tags)) for header in headers} == {("found", ("sweep",))}


@pytest.mark.slow
def test_no_success_is_a_failure(rings: Dataset, tmp_path: Path) -> None:
    path = spec(rings, tmp_path, space={"train.divergence.gradient_norm": {"choice": [1e-9]}})
    process = start(path)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "error: no trial of sweep found succeeded; found-001 failed: the gradient" in told


@pytest.mark.slow
def test_asha_ends_the_worse_and_the_best_is_found(rings: Dataset, tmp_path: Path) -> None:
    path = spec(
        rings,
        tmp_path,
        space={LR: {"choice": [0.03, 1e-7, 2e-7, 3e-7]}},
        at_once=2,
        asha={"grace": 200, "reduction": 2},
    )
    sweep = planned(path)
    process = start(path)
    said, told = process.communicate(timeout=280)
    assert process.returncode == 0, told
    found = outcomes(sweep)
    best = max(found, key=lambda one: one.best or 0)
    assert (best.point[LR], best.state, best.step) == (0.03, "done", 3000)
    assert best.run in said.splitlines()[3]
    ended = [one for one in found if one.state == "ended early"]
    assert len(ended) >= 2
    for one in ended:
        assert 200 <= one.step < 3000
        assert one.step in steps_in(one.url)
        state = read_state(one.url)
        assert state is not None
        assert (state.state, state.reason) == ("preempted", "ended early by sweep found")
    again = subprocess.run(
        command(path, "--json"), env=environment(), cwd=tmp_path, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert [trial["step"] for trial in json.loads(again.stdout)["trials"]] == [
        one.step for one in found
    ]


def tree(pid: int) -> Iterator[psutil.Process]:
    parent = psutil.Process(pid)
    yield parent
    yield from parent.children(recursive=True)


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on(rings: Dataset, tmp_path: Path) -> None:
    space = {LR: {"log_uniform": [1e-3, 3e-2]}}
    path = spec(rings, tmp_path, space=space, trials=3, at_once=2, asha=None)
    sweep = planned(path)
    process = start(path)
    wait_for_step(process, sweep, "found-001", 100)
    for one in list(tree(process.pid)):
        one.kill()
    process.communicate(timeout=30)
    killed = {one.run: one for one in outcomes(sweep)}
    assert killed["found-001"].state == "running"
    assert killed["found-003"].state == "new"
    other = start(path, "train.seed=1")
    _, told = other.communicate(timeout=60)
    assert other.returncode == 1
    assert "was begun with another specification (recipe.train.seed: 0 before, 1 now)" in told
    again = start(path, "--json")
    said, told = again.communicate(timeout=280)
    assert again.returncode == 0, told
    trials = json.loads(said)["trials"]
    assert [trial["point"] for trial in trials] == [trial.point for trial in sweep.trials]
    assert [trial["state"] for trial in trials] == ["done"] * 3
    attempts = [read_state(trial.url) for trial in sweep.trials]
    assert [state.attempt for state in attempts if state is not None][::2] == [2, 1]
    kept = killed["found-001"].validations
    assert [tuple(pair) for pair in trials[0]["validations"]][: len(kept)] == kept


@pytest.mark.slow
def test_a_lost_trial_goes_on_and_an_interrupted_sweep_stops_whole(
    rings: Dataset, tmp_path: Path
) -> None:
    space = {LR: {"log_uniform": [1e-3, 3e-2]}}
    changes: dict[str, Any] = {"space": space, "trials": 20, "at_once": 2, "asha": None}
    path = spec(rings, tmp_path, overrides=["train.steps=100000"], **changes)
    sweep = planned(path)
    process = start(path)
    wait_for_step(process, sweep, "found-001", 100)
    trainings = [one for one in tree(process.pid) if one.cmdline()[2:4] == ["pipeline", "train"]]
    assert len(trainings) == 2
    os.kill(trainings[0].pid, signal.SIGKILL)
    lost = outcomes(sweep)
    while {read_state(one.url).attempt for one in lost[:2]} != {1, 2}:  # type: ignore[union-attr]
        assert process.poll() is None
        with_patience(process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 75
    assert "20 of 20 trials are left: the same command goes on" in told
    found = outcomes(sweep)
    assert [one.state for one in found] == ["preempted"] * 2 + ["new"] * 18
    assert {one.reason for one in found[:2]} == {"sweep found was asked to stop"}
    assert all(one.step in steps_in(one.url) for one in found[:2])
    assert not any(training.is_running() for training in trainings)
