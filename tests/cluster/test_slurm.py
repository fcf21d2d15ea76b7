"""A real SLURM of two nodes: launched, signalled before the limit, requeued, resumed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import Recipe
from pipeline.manifest import Dataset
from pipeline.train.run import read_state
from tests.train.runs import (
    ROOT,
    digests,
    environment,
    recipe,
    train_here,
    wait_for_step,
    wait_until,
    write,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="a local SLURM needs root"),
    pytest.mark.timeout(1200),
]
SCRIPT = ROOT / "cluster" / "slurm" / "local_cluster.sh"


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a client."""
    folder = tmp_path / "slurm"
    started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True)
    assert started.returncode == 0, started.stdout + started.stderr
    yield environment(SLURM_CONF=str(folder / "slurm.conf"))
    subprocess.run([SCRIPT, "stop", folder], check=True, capture_output=True)


def test_a_job_outlives_its_time_limit(
    small_set: Dataset, tmp_path: Path, slurm: dict[str, str]
) -> None:
    changes = {"train__steps": 10_000, "train__checkpoint_every": 1000, "data__lanes": 2}
    wanted = recipe(small_set, tmp_path, "limited", train__engine="deepspeed", **changes)
    spec = {
        "nodes": 2,
        "python": sys.executable,
        "time_limit": "1h",
        "slurm": {
            "shared_nodes": True,
            "warn_before": "2m",
            "setup": [f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}"],
        },
    }
    (tmp_path / "cluster.yaml").write_text(json.dumps(spec))
    start = [sys.executable, "-m", "pipeline", "launch", "slurm", str(write(wanted, tmp_path))]
    start += ["--cluster", str(tmp_path / "cluster.yaml"), "--wait", "--json"]
    launch = subprocess.Popen(
        start, env=slurm, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # How long a start takes is the machine's business, so the limit comes when it trains: between
    # one and two minutes ahead, where it is time to warn.
    wait_for_step(launch, wanted, 20)
    limit_job(slurm, minutes_of(slurm) + 2)
    wait_until(lambda: in_state(wanted, "preempted"), launch)
    limit_job(slurm, 60)
    said, complaints = launch.communicate()
    assert launch.returncode == 0, complaints
    ended = json.loads(said)
    assert (ended["state"], ended["step"], ended["attempt"]) == ("done", 10_000, 2)
    alone = recipe(small_set, tmp_path, "alone", **changes)
    train_here(alone)
    assert digests(wanted) == digests(alone)


def minutes_of(slurm: dict[str, str]) -> int:
    """For how long the only job has run, rounded down."""
    ask = ["squeue", "--noheader", "--format=%M"]
    told = subprocess.run(ask, env=slurm, capture_output=True, text=True, check=True).stdout
    minutes, _ = told.strip().split(":")
    return int(minutes)


def limit_job(slurm: dict[str, str], minutes: int) -> None:
    """Let the first job run for so long."""
    change = ["scontrol", "update", "JobId=1", f"TimeLimit={minutes}"]
    subprocess.run(change, env=slurm, check=True, capture_output=True)


def in_state(wanted: Recipe, name: str) -> bool:
    stands = read_state(wanted.run_url)
    return stands is not None and stands.state == name
