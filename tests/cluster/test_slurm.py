"""A real SLURM of two nodes: launched, signalled before the limit, requeued, resumed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.manifest import Dataset
from pipeline.train.run import read_state
from tests.train.runs import ROOT, digests, environment, recipe, train_here, write

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
    changes = {"train__steps": 40_000, "train__checkpoint_every": 1000, "data__lanes": 2}
    wanted = recipe(small_set, tmp_path, "limited", train__engine="deepspeed", **changes)
    spec = {
        "nodes": 2,
        "python": sys.executable,
        "time_limit": "2m",
        "slurm": {
            "shared_nodes": True,
            "warn_before": "70s",
            "setup": [f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}"],
        },
    }
    (tmp_path / "cluster.yaml").write_text(json.dumps(spec))
    start = [sys.executable, "-m", "pipeline", "launch", "slurm", str(write(wanted, tmp_path))]
    start += ["--cluster", str(tmp_path / "cluster.yaml"), "--wait", "--json"]
    said = subprocess.run(start, env=slurm, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    ended = json.loads(said.stdout)
    assert (ended["state"], ended["step"]) == ("done", 40_000)
    stands = read_state(wanted.run_url)
    assert stands is not None
    assert stands.attempt >= 2, "the limit was not reached"
    alone = recipe(small_set, tmp_path, "alone", **changes)
    train_here(alone)
    assert digests(wanted) == digests(alone)
