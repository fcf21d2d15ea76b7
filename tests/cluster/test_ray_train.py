"""Training on real Ray clusters on this machine: workers lost, nodes drained, jobs submitted."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.manifest import Dataset
from pipeline.train.run import read_state, request_stop
from tests.cluster.ray_nodes import RAY, RayNodes, workers_below
from tests.train.runs import (
    ROOT,
    assert_close,
    command,
    digests,
    environment,
    final_tensors,
    recipe,
    steps_in,
    train_here,
    wait_for_step,
    write,
)

pytestmark = pytest.mark.ray


def on_ray(dataset: Dataset, folder: Path, name: str, **changes: object) -> object:
    return recipe(
        dataset,
        folder,
        name,
        train__engine="deepspeed",
        train__precision="fp32",
        placement={"workers": 2, "launcher": "ray"},
        **changes,
    )


def test_two_workers_compute_what_one_does_and_survive_a_kill(
    small_set: Dataset, tmp_path: Path
) -> None:
    alone = recipe(small_set, tmp_path, "alone", train__steps=120, train__checkpoint_every=5)
    killed = on_ray(small_set, tmp_path, "killed", train__steps=120, train__checkpoint_every=5)
    train_here(alone)
    process = subprocess.Popen(
        command(write(killed, tmp_path)),
        env=environment(RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(process, killed, 10)
    assert_closed_to_others(process.pid)
    workers_below(process.pid)[0].kill()
    said, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    assert "done at step 120" in said
    state = read_state(killed.run_url)
    assert state is not None
    assert state.attempt == 2
    assert digests(killed) == digests(alone)
    # 120 steps of rounding apart; the order of the sum over two ranks differs.
    assert_close(final_tensors(alone), final_tensors(killed), atol=1e-3)


def listening(driver: int, program: str) -> list[tuple[str, int]]:
    """Where a program of the driver's Ray takes connections."""
    return [
        (found.laddr.ip, found.laddr.port)
        for process in psutil.Process(driver).children(recursive=True)
        if any(word.endswith(program) for word in process.cmdline())
        for found in process.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN
    ]


def assert_closed_to_others(driver: int) -> None:
    """The Ray that a driver started for itself lets nobody in who has not its token."""
    pages = [ip for ip, port in listening(driver, "dashboard/dashboard.py") if port < 10_000]
    assert pages == ["127.0.0.1"]  # 8265 or the next free port
    ((_, port),) = listening(driver, "gcs/gcs_server")
    said = subprocess.run(
        [RAY, "status", f"--address=127.0.0.1:{port}"],
        env=environment(RAY_AUTH_MODE="disabled"),
        capture_output=True,
        text=True,
    )
    assert said.returncode != 0
    assert "token is missing or incorrect" in said.stdout + said.stderr


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    """A Ray cluster of one node, with its own ports and folders, that takes jobs."""
    # libgomp says how it waits when a process loads it.
    env = {"OMP_DISPLAY_ENV": "verbose"}
    found = RayNodes(port=26379, head_cpus=3, dashboard=28265, env=env)
    yield found
    found.stop()


@pytest.fixture
def cluster(nodes: RayNodes) -> dict[str, str]:
    """The environment of a client of the cluster."""
    return nodes.env


def test_ray_job_submit_finds_the_cluster(
    small_set: Dataset, tmp_path: Path, nodes: RayNodes
) -> None:
    wanted = recipe(
        small_set, tmp_path, train__engine="deepspeed", placement={"workers": 2, "threads": 1}
    )
    # The checkout is the working directory, as a user submits it.
    submit = [RAY, "job", "submit", "--working-dir", ".", "--"]
    longhaul = str(Path(sys.executable).parent / "longhaul")
    said = subprocess.run(
        [*submit, longhaul, "train", str(write(wanted, tmp_path))],
        env=nodes.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "done at step 12" in said.stdout
    state = read_state(wanted.run_url)
    assert state is not None
    assert (state.state, state.step) == ("done", 12)
    logs = [log.read_text() for log in nodes.folder.glob("session_latest/logs/worker-*.err")]
    spins = [re.findall(r"GOMP_SPINCOUNT = '(\d+)'", log) for log in logs]
    assert spins.count(["1000"]) == 2, f"the workers' threads do not wait as ours: {spins}"


@pytest.mark.timeout(900)  # two jobs and 3,000 steps: four minutes on two cores
def test_a_launched_run_is_stopped_and_launched_again(
    small_set: Dataset, tmp_path: Path, cluster: dict[str, str]
) -> None:
    changes = {"train__steps": 1500, "train__checkpoint_every": 1500}
    alone = recipe(small_set, tmp_path, "alone", **changes)
    train_here(alone)
    wanted = recipe(small_set, tmp_path, "launched", train__engine="deepspeed", **changes)
    spec = tmp_path / "cluster.yaml"
    ray = {"address": "http://127.0.0.1:28265", "working_dir": str(ROOT)}
    spec.write_text(json.dumps({"nodes": 2, "python": sys.executable, "ray": ray}))
    start = [sys.executable, "-m", "pipeline", "launch", "ray", str(write(wanted, tmp_path))]
    start += ["--cluster", str(spec), "--wait", "--json"]
    first = subprocess.Popen(start, env=cluster, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    wait_for_step(first, wanted, 5)
    twice = subprocess.run(start, env=cluster, cwd=tmp_path, capture_output=True, text=True)
    assert twice.returncode == 1
    assert "error: run launched has a ray job that has not ended: stop it first" in twice.stderr
    request_stop(wanted.run_url, lasting=True)
    said, _ = first.communicate(timeout=200)
    assert first.returncode == 75, said
    stopped = json.loads(said)
    assert stopped["state"] == "preempted"
    assert 5 <= stopped["step"] < 1500
    again = subprocess.run(start, env=cluster, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    ended = json.loads(again.stdout)
    assert (ended["state"], ended["step"], ended["attempt"]) == ("done", 1500, 2)
    assert digests(wanted) == digests(alone)


def test_more_workers_than_the_machine_has_cores_are_refused(
    small_set: Dataset, tmp_path: Path
) -> None:
    """Ray itself would wait for a node that never comes."""
    wide = recipe(
        small_set,
        tmp_path,
        data__lanes=1000,
        placement={"workers": 1000, "launcher": "ray"},
    )
    said = subprocess.run(
        command(write(wide, tmp_path)),
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert said.returncode == 1
    assert "error: the workers want 1000 CPUs where there are" in said.stderr
    assert "lower placement.workers" in said.stderr
    assert not Path(wide.run_url).exists()


def test_a_signal_to_the_driver_saves_and_leaves(small_set: Dataset, tmp_path: Path) -> None:
    asked = on_ray(small_set, tmp_path, "asked", train__steps=100_000, train__checkpoint_every=1000)
    process = subprocess.Popen(
        command(write(asked, tmp_path)), env=environment(), cwd=tmp_path, stderr=subprocess.PIPE
    )
    wait_for_step(process, asked, 10)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 75, told
    state = read_state(asked.run_url)
    assert state is not None
    assert (state.state, steps_in(asked.run_url)[-1]) == ("preempted", state.step)


def test_workers_that_cannot_start_are_tried_again(small_set: Dataset, tmp_path: Path) -> None:
    """Ray itself gives up at once where the process group does not come about."""
    apart = recipe(
        small_set,
        tmp_path,
        train__engine="deepspeed",
        placement={"workers": 2, "launcher": "ray", "threads": 1, "max_failures": 1},
    )
    said = subprocess.run(
        command(write(apart, tmp_path)),
        env=environment(GLOO_SOCKET_IFNAME="absent"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert said.returncode == 1
    assert said.stderr.count("; starting workers again") == 1
    assert "Ray gave the run up: " in said.stderr


def test_a_permanent_error_ends_the_run_without_retries(small_set: Dataset, tmp_path: Path) -> None:
    shard_less = on_ray(
        small_set, tmp_path, "wrong", data__path=str(tmp_path / "nothing"), train__steps=4
    )
    began = time.monotonic()
    said = subprocess.run(
        command(write(shard_less, tmp_path)),
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert said.returncode == 1
    assert "no data set at" in said.stderr
    state = read_state(shard_less.run_url)
    assert state is not None
    assert (state.state, state.attempt) == ("failed", 1)
    assert time.monotonic() - began < 200
