"""Sweeps with Ray Tune on this machine: ended early, failed, lost, killed, stopped, submitted."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cluster.sweep.asha import Asha
from cluster.sweep.outcome import outcomes, write_record
from cluster.sweep.plan import Sweep
from pipeline import run_commands, storage
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.train.run import read_state, stop_reason, stop_requested
from pipeline.train.standing import standings
from tests.cluster.ray_nodes import RAY, RayNodes
from tests.cluster.sweeps import LR, planned, spec
from tests.conftest import prepare_histories
from tests.train.runs import ROOT, environment, steps_in, wait_until
from tests.wandb_logs import of_kind, offline_logs

pytestmark = pytest.mark.ray

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Everybody goes round a ring of 40 items: learnt at once, or not at all."""
    histories = [[1 + (user + step) % 40 for step in range(12)] for user in range(300)]
    return prepare_histories(histories, tmp_path_factory.mktemp("rings"))


def command(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", "sweep", str(path), *arguments]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts sweeps in processes of their own; none outlives its test."""
    started = []

    def begin(path: Path, *arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            command(path, *arguments),
            env=environment(WANDB_DIR=str(path.parent)),
            cwd=path.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            kill(process)


def tree(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def kill(process: "subprocess.Popen[str]") -> None:
    """With Ray and the trials, at once."""
    for one in tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


def wait_for_step(process: "subprocess.Popen[str]", sweep: Sweep, run: str, step: int) -> None:
    """Return once the run has validated at the step; fail where the sweep ends before."""

    def validated() -> bool:
        stands = {one.run: one for one in outcomes(sweep)}[run]
        return any(at >= step for at, _ in stands.validations)

    wait_until(validated, process)


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


def test_stop_asks_a_whole_sweep(small_set: Dataset, tmp_path: Path) -> None:
    sweep = planned(spec(small_set, tmp_path, space={LR: {"choice": [0.1]}}))
    write_record(sweep, "running", outcomes(sweep))
    run_commands.stop(sweep.url)
    assert stop_requested(sweep.url)
    write_record(sweep, "done", outcomes(sweep))
    with pytest.raises(LonghaulError, match="found is not running: done"):
        run_commands.stop(sweep.url)


def test_a_trial_that_fails_does_not_end_the_sweep(
    rings: Dataset, tmp_path: Path, start: Start
) -> None:
    limit = "train.divergence.gradient_norm"
    path = spec(
        rings,
        tmp_path,
        space={limit: {"choice": [1e-9, 1e9]}},
        overrides=["train.steps=20", "train.validation.every=10", "tracking.wandb=offline"],
        asha=None,
    )
    process = start(path, "--json")
    said, told = process.communicate(timeout=600)
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
    logs = [
        log for name in ("found-001", "found-002") for log in offline_logs(tmp_path / "runs" / name)
    ]
    headers = [header for log in logs for header in of_kind(log, "run")]
    assert {header.display_name for header in headers} == {"found-001", "found-002"}
    assert {(header.run_group, tuple(header.tags)) for header in headers} == {("found", ("sweep",))}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_success_is_a_failure(rings: Dataset, tmp_path: Path, start: Start) -> None:
    path = spec(rings, tmp_path, space={"train.divergence.gradient_norm": {"choice": [1e-9]}})
    process = start(path)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "error: no trial of sweep found succeeded; found-001 failed: the gradient" in told


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_asha_ends_the_worse_and_the_best_is_found(
    rings: Dataset, tmp_path: Path, start: Start
) -> None:
    path = spec(
        rings,
        tmp_path,
        space={LR: {"choice": [0.03, 1e-7, 2e-7, 3e-7]}},
        overrides=["train.steps=4000"],
        seed=7,  # the good one is among the first two
        at_once=2,
        asha={"grace": 200, "reduction": 2},
    )
    sweep = planned(path)
    process = start(path)
    said, told = process.communicate(timeout=600)
    assert process.returncode == 0, told
    found = outcomes(sweep)
    best = max(found, key=lambda one: one.best or 0)
    assert (best.point[LR], best.state, best.step) == (0.03, "done", 4000)
    assert best.run in said.splitlines()[3]
    ended = [one for one in found if one.state == "ended early"]
    assert len(ended) >= 2
    for one in ended:
        assert 200 <= one.step < 4000
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_that_was_killed_goes_on(rings: Dataset, tmp_path: Path, start: Start) -> None:
    space = {LR: {"log_uniform": [1e-3, 3e-2]}}
    path = spec(rings, tmp_path, space=space, trials=2, at_once=1, asha=None)
    sweep = planned(path)
    process = start(path)
    wait_for_step(process, sweep, "found-001", 100)
    kill(process)
    killed = {one.run: one for one in outcomes(sweep)}
    assert killed["found-001"].state == "running"
    assert killed["found-002"].state == "new"
    other = start(path, "train.seed=1")
    _, told = other.communicate(timeout=60)
    assert other.returncode == 1
    assert "was begun with another specification (recipe.train.seed: 0 before, 1 now)" in told
    again = start(path, "--json")
    said, told = again.communicate(timeout=600)
    assert again.returncode == 0, told
    trials = json.loads(said)["trials"]
    assert [trial["point"] for trial in trials] == [trial.point for trial in sweep.trials]
    assert [trial["state"] for trial in trials] == ["done"] * 2
    attempts = [read_state(trial.url) for trial in sweep.trials]
    assert [state.attempt for state in attempts if state is not None] == [2, 1]
    kept = killed["found-001"].validations
    assert [tuple(pair) for pair in trials[0]["validations"]][: len(kept)] == kept


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_trial_goes_on_and_an_interrupted_sweep_stops_whole(
    rings: Dataset, tmp_path: Path, start: Start
) -> None:
    space = {LR: {"log_uniform": [1e-3, 3e-2]}}
    changes: dict[str, Any] = {"space": space, "trials": 20, "at_once": 2, "asha": None}
    path = spec(rings, tmp_path, overrides=["train.steps=100000"], **changes)
    sweep = planned(path)
    process = start(path)
    wait_for_step(process, sweep, "found-001", 100)
    trainings = [one for one in tree(process) if one.cmdline()[2:4] == ["pipeline", "train"]]
    assert len(trainings) == 2
    trainings[0].kill()
    trainings[1].parent().kill()  # Tune's actor; the training leaves with it
    first = [trial.url for trial in sweep.trials[:2]]
    wait_until(
        lambda: {state.attempt for url in first if (state := read_state(url))} == {2}, process
    )
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 75
    assert "20 of 20 trials are left: the same command goes on" in told
    found = outcomes(sweep)
    assert [one.state for one in found] == ["preempted"] * 2 + ["new"] * 18
    assert {one.reason for one in found[:2]} == {"sweep found was asked to stop"}
    assert all(one.step in steps_in(one.url) for one in found[:2])
    assert not any(training.is_running() for training in trainings)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submitted_sweep_finds_all_it_needs_in_a_bucket(
    rings: Dataset, tmp_path: Path, bucket: str
) -> None:
    """Specification, recipe, data and runs."""
    changes = {"space": {LR: {"choice": [0.01, 0.03]}}, "overrides": ["train.steps=100"]}
    for file in (spec(rings, tmp_path, **changes), tmp_path / "run.yaml"):
        storage.write_bytes(f"{bucket}/specs/{file.name}", file.read_bytes())
    for name in storage.files_below(rings.url):
        content = storage.read_bytes(storage.join(rings.url, name))
        storage.write_bytes(f"{bucket}/set/{name}", content)
    nodes = RayNodes(port=26679, head_cpus=2, dashboard=28665)
    try:
        longhaul = str(Path(sys.executable).parent / "longhaul")
        submitted = [RAY, "job", "submit", "--working-dir", ".", "--", longhaul, "sweep"]
        submitted += [f"{bucket}/specs/sweep.yaml", f"runs={bucket}/runs"]
        said = None
        # The dashboard is there before the agents are that start jobs.
        while said is None or "No available agent" in said.stderr:
            said = subprocess.run(
                [*submitted, f"data.path={bucket}/set"],
                env=nodes.env,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=600,
            )
    finally:
        nodes.stop()
    assert said.returncode == 0, said.stdout + said.stderr
    found = list(standings(f"{bucket}/runs"))
    assert [(one.name, one.state) for one in found] == [
        ("found-001", "done"),
        ("found-002", "done"),
    ]
    assert {"sweep.json", "sweep.png"} == set(storage.files_below(f"{bucket}/runs/found"))
