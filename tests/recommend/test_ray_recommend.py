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
from tests.recommend.conftest import COMMON, contents
from tests.train.runs import environment, longhaul, recipe, train_here, wait_until


def command(run: str, output: Path) -> list[str]:
    given = ["recommend", run, "--output", str(output), *COMMON]
    return [*given, "--engine", "ray", "--workers", "2"]


def test_the_bytes_are_those_of_one_process(run: str, undisturbed: Path, tmp_path: Path) -> None:
    said = longhaul(*command(run, tmp_path / "lists"))
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    assert (told["users"], told["parts"], told["skipped_parts"]) == (300, 8, 0)
    assert contents(tmp_path / "lists") == contents(undisturbed)


def makers(pid: int) -> list[psutil.Process]:
    """The workers of Ray Data below a process."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(run: str, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "lists"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *command(run, output), "--part-users", "4"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(list(output.glob("part-*"))) > 5, process)
    killed = makers(process.pid)[0]
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

    assert rows(output) == rows(undisturbed)
    assert not list(output.glob(".*"))


@pytest.mark.slow
def test_a_mistake_is_one_line(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path)
    train_here(wanted)
    for weights in tmp_path.glob("run/checkpoints/*/*.safetensors"):
        weights.write_bytes(b"x" * weights.stat().st_size)
    said = longhaul(*command(wanted.run_url, tmp_path / "lists"))
    assert said.returncode == 1
    last = said.stderr.splitlines()[-1]  # Ray may tell before that it ended workers
    assert last.startswith("error: ")
    assert "safetensors is damaged" in last
