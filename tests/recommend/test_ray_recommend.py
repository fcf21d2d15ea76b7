"""Recommendations with workers of Ray: the bytes of one process, whatever worker is killed."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pipeline.manifest import Dataset
from tests.cluster.ray_nodes import workers_below
from tests.recommend.conftest import COMMON, contents
from tests.train.runs import environment, longhaul, recipe, train_here, wait_until

pytestmark = pytest.mark.ray


def command(run: str, output: Path) -> list[str]:
    given = ["recommend", run, "--output", str(output), *COMMON]
    return [*given, "--engine", "ray", "--workers", "2"]


def test_the_bytes_are_those_of_one_process(run: str, undisturbed: Path, tmp_path: Path) -> None:
    said = longhaul(*command(run, tmp_path / "lists"))
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    assert (told["users"], told["parts"], told["skipped_parts"]) == (300, 8, 0)
    assert contents(tmp_path / "lists") == contents(undisturbed)


@pytest.mark.slow
def test_workers_that_score_together(
    sharded_run: str, with_whole_table: Path, tmp_path: Path
) -> None:
    said = longhaul(*command(sharded_run, tmp_path / "lists"))
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    assert (told["users"], told["parts"], told["skipped_parts"]) == (300, 8, 0)
    assert contents(tmp_path / "lists") == contents(with_whole_table)


def makers(pid: int) -> list[psutil.Process]:
    """The workers of Ray Data below a process."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("home", ["dense", "sharded"])
def test_a_worker_that_is_killed_is_replaced(
    home: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run, alone, workers = {
        "dense": ("run", "undisturbed", makers),
        "sharded": ("sharded_run", "with_whole_table", workers_below),
    }[home]
    output = tmp_path / "lists"
    given = command(request.getfixturevalue(run), output)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *given, "--part-users", "4"],
        env=environment(RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(list(output.glob("part-*"))) > 5, process)
    killed = workers(process.pid)[0]
    killed.send_signal(signal.SIGKILL)
    there = len(list(output.glob("part-*")))
    told, complaints = process.communicate(timeout=200)
    assert process.returncode == 0, complaints
    assert there < 75
    assert json.loads(told)["users"] == 300

    def rows(folder: Path) -> list[object]:
        return [
            row for part in sorted(folder.glob("part-*")) for row in pq.read_table(part).to_pylist()
        ]

    assert rows(output) == rows(request.getfixturevalue(alone))
    assert not list(output.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("home", ["dense", "sharded"])
def test_a_mistake_is_one_line(small_set: Dataset, tmp_path: Path, home: str) -> None:
    wanted = recipe(small_set, tmp_path, train__table={"home": home})
    train_here(wanted)
    for weights in tmp_path.glob("run/checkpoints/*/*.safetensors"):
        weights.write_bytes(b"x" * weights.stat().st_size)
    said = longhaul(*command(wanted.run_url, tmp_path / "lists"))
    assert said.returncode == 1
    last = said.stderr.splitlines()[-1]  # Ray may tell before that it ended workers
    assert last.startswith("error: /")  # the mistake itself, not that Ray gave up
    assert "safetensors is damaged" in last
