"""The command in real processes: the same bytes from any number of workers, whatever is killed."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.process import app
from tests.recommend.conftest import COMMON, contents
from tests.train.runs import ROOT, environment

# Ends itself, or asks itself to stop, when its third part is half made.
FATAL = """
import os, signal, sys
from pipeline.process import main
from pipeline.recommend import batch

fate, write, begun = getattr(signal, sys.argv.pop(1)), batch.write_part, []
def fatal(request, lister, number, told):
    begun.append(number)
    def heard(users):
        if len(begun) == 3:
            os.kill(os.getpid(), fate)
        told(users)
    return write(request, lister, number, heard)
batch.write_part = fatal
main()
"""


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_workers_of_torchrun_write_the_same_bytes(
    run: str, undisturbed: Path, tmp_path: Path, workers: int
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={workers}", "-m", "pipeline"]
    said = subprocess.run(
        [*launcher, "recommend", run, "--output", str(tmp_path / "lists"), *COMMON],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    assert (told["users"], told["parts"], told["skipped_parts"]) == (300, 8, 0)
    assert told["users_per_second"] == pytest.approx(300 / told["seconds"])
    assert contents(tmp_path / "lists") == contents(undisturbed)


def test_stopped_killed_and_started_again(run: str, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "lists"
    command = ["recommend", run, "--output", str(output), *COMMON]
    for fate, code, parts in (("SIGTERM", 75, 2), ("SIGKILL", -signal.SIGKILL, 4)):
        said = subprocess.run(
            [sys.executable, "-c", FATAL, fate, *command],
            env=environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert said.returncode == code, said.stderr
        there = contents(output)
        half = [name for name in there if name.endswith(".partial")]
        assert len(half) == (fate == "SIGKILL")
        names = [f"part-{number:05d}.parquet" for number in range(parts)]
        assert sorted(there.keys() - half) == [*names, "request.json"]
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)
    assert (told["users"], told["skipped_parts"], told["stopped"]) == (140, 4, False)
    assert contents(output) == contents(undisturbed)


def test_a_few_users_with_conditions(run: str, small_set: Dataset, tmp_path: Path) -> None:
    keys = small_set.read_items().column("key").to_pylist()
    (tmp_path / "allow.txt").write_text("\n".join(map(str, keys[:9])))
    command = ["recommend", run, "--output", str(tmp_path / "few.parquet"), "--seen", "--k", "20"]
    command += ["--allow", str(tmp_path / "allow.txt"), "--user", "7", "--user", "3"]
    said = CliRunner().invoke(app, [*command, "--json"])
    assert said.exit_code == 0, said.output
    rows = json.loads(said.stdout)
    assert [row["user"] for row in rows] == [7, 3]
    assert all(sorted(row["items"]) == keys[:9] for row in rows)
    assert pq.read_table(tmp_path / "few.parquet").to_pylist() == rows


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--user", "7", "--engine", "ray"], "a few users need no workers"),
        (["--user", "7", "--part-users", "9"], "with --user there is one file"),
        (["--engine", "local", "--workers", "2"], "--workers 2 are Ray's"),
        (["--where", "price<2"], "give both, or none"),
        (["--data", "nowhere"], "no data set at .*nowhere"),
    ],
)
def test_what_does_not_go_together(run: str, tmp_path: Path, options: list[str], told: str) -> None:
    ended = CliRunner().invoke(app, ["recommend", run, "--output", str(tmp_path / "x"), *options])
    assert isinstance(ended.exception, LonghaulError)
    assert re.search(told, str(ended.exception))
    assert not (tmp_path / "x").exists()
