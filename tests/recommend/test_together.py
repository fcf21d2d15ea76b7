"""Workers who hold a part of the item table each write what one writes who holds all of it."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.errors import LonghaulError
from pipeline.evaluate import scores
from pipeline.manifest import Dataset, open_dataset
from pipeline.recommend import Request, histories, recommend, recommend_users
from pipeline.train.trained import (
    TrainedTogether,
    best_checkpoint,
    load_checkpoint,
    load_checkpoint_together,
)
from pipeline.world import World, current_world
from tests.recommend.conftest import COMMON, contents, request_of
from tests.train.runs import checkpoint_of, environment

ROWS = 51  # of the table
FEW = ["250", "3", "77"]
ONE_PART = {"k": 60, "seen": True, "part_users": 300}


def cut_small() -> None:
    """Several batches a part, and tiles of which workers share some."""
    histories.BATCH_USERS = 16
    scores.TILES["cpu"] = (8, 8)
    torch.set_num_threads(1)


@pytest.fixture
def cut() -> Iterator[None]:
    before = histories.BATCH_USERS, scores.TILES["cpu"]
    cut_small()
    yield
    histories.BATCH_USERS, scores.TILES["cpu"] = before


def attempt(act: Callable[[], Any]) -> Any:
    """What it gives, or what it tells the reader."""
    try:
        return act()
    except LonghaulError as error:
        return str(error)


def worker(rank: int, world_size: int, folder: Path, request: Request, bad: Path) -> None:
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    cut_small()
    found = measure(request, bad, current_world())
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


def measure(request: Request, bad: Path, world: World) -> dict[str, Any]:
    assert request.origin is not None
    best = best_checkpoint(request.origin.run)
    trained = load_checkpoint_together(best, world)
    assert isinstance(trained, TrainedTogether)
    scorer, rows, held = trained.scorer(), trained.table.rows, trained.table.held

    def make(name: str, **changes: Any) -> Any:
        wanted = replace(request, output=f"{request.output}/{name}", **changes)
        return attempt(lambda: recommend(wanted, scorer, world))

    few = replace(request, output=f"{request.output}/few.parquet")
    told = {
        "rows": len(rows),
        "trunk": [tuple(parameter.shape) for parameter in trained.model.parameters()],
        "as told": torch.equal(
            rows[:, :8], best.weights()["item_embedding.weight"][held.start : held.stop]
        ),
        "lists": make("lists"),
        "one part": make("one-part", **ONE_PART),
        "few": recommend_users(few, scorer, FEW, world).to_pylist(),
        "stranger": attempt(lambda: recommend_users(few, scorer, ["300"], world)),
        "damaged member": make("member", dataset=open_dataset(str(bad / "set"))),
        "no place": make("no-place"),
        "damaged checkpoint": attempt(
            lambda: load_checkpoint_together(best_checkpoint(str(bad / "run")), world)
        ),
    }
    # One alone is asked to stop, in its first part.
    world.stop_wanted = world.rank == world.world_size - 1
    told["stopped"] = make("stopped")
    world.stop_wanted = False
    told["gone on"] = make("stopped")
    if 30 in held:
        rows[30 - held.start] = torch.nan
    told["diverged"] = make("diverged", part_users=300)  # all but one are company
    return told


@pytest.fixture
def bad(sharded_run: str, small_set: Dataset, tmp_path: Path) -> Path:
    """A data set with a damaged member, and a run with a damaged checkpoint."""
    shutil.copytree(small_set.url, tmp_path / "bad" / "set")
    with open(tmp_path / "bad" / "set" / small_set.shard[60], "r+b") as shard:
        shard.seek(int(small_set.start[60]))
        shard.write(bytes(int(small_set.stop[60] - small_set.start[60])))
    shutil.copytree(sharded_run, tmp_path / "bad" / "run")
    for file in checkpoint_of(str(tmp_path / "bad" / "run"), 12).commit.files:
        for path in (tmp_path / "bad" / "run").rglob(file.path):
            path.write_bytes(bytes(path.stat().st_size))
    return tmp_path / "bad"


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_they_write_the_same_bytes_and_fail_together(
    sharded_run: str, small_set: Dataset, tmp_path: Path, bad: Path, workers: int
) -> None:
    alone = request_of(sharded_run, small_set, tmp_path / "alone")
    scorer = load_checkpoint(best_checkpoint(sharded_run)).scorer()
    recommend(alone, scorer)
    one_part = replace(alone, output=str(tmp_path / "alone-one-part"), **ONE_PART)
    recommend(one_part, scorer)
    few = recommend_users(replace(alone, output=str(tmp_path / "few")), scorer, FEW).to_pylist()

    output = tmp_path / "lists"
    (output / "no-place" / "part-00001.parquet").mkdir(parents=True)
    request = replace(alone, output=str(output))
    mp.start_processes(worker, (workers, tmp_path, request, bad), workers, start_method="spawn")
    told = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(workers)]

    assert sum(one["rows"] for one in told) == ROWS
    assert max(one["rows"] for one in told) <= -(-ROWS // workers)
    assert all(one["as told"] and one["trunk"] for one in told)
    assert not any(ROWS in shape for one in told for shape in one["trunk"])
    whole = contents(tmp_path / "alone")
    assert len(whole) == 10
    assert contents(output / "lists") == contents(output / "stopped") == whole
    assert contents(output / "one-part") == contents(tmp_path / "alone-one-part")
    assert pq.read_table(output / "few.parquet").to_pylist() == few
    for one in told:
        assert (one["lists"].users, one["one part"].users, one["few"]) == (300, 300, few)
        assert "user 300 is not in" in one["stranger"]
        assert re.search(r"00000.tar .*damaged", one["damaged member"])
        assert "cannot write" in one["no place"]
        assert "part-00001.parquet: IsADirectoryError" in one["no place"]
        assert "is damaged" in one["damaged checkpoint"]
        assert (one["stopped"].stopped, one["stopped"].parts) == (True, 8)
        assert (one["gone on"].stopped, one["gone on"].skipped_parts) == (False, workers - 1)
        assert re.search(r"the score of item \d+ for user \d+ is nan", one["diverged"])
    for failed in ("member", "no-place"):
        kept = {path.name for path in (output / failed).glob("part-*") if path.is_file()}
        assert kept == {f"part-0000{number}.parquet" for number in {0, 2} & set(range(workers))}
    assert not list(output.rglob("*.partial"))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_command(
    sharded_run: str, with_whole_table: Path, tmp_path: Path, workers: int
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={workers}", "-m", "pipeline", "recommend", sharded_run]
    asked = ["--output", str(tmp_path / "lists"), *COMMON]
    few = ["--output", str(tmp_path / "few.parquet"), *COMMON[:2], "--user", "7", "--json"]
    for options in (asked, few):
        said = subprocess.run(
            [*launcher, *options], env=environment(), capture_output=True, text=True, timeout=200
        )
        assert said.returncode == 0, said.stderr
    assert contents(tmp_path / "lists") == contents(with_whole_table)
    (row,) = json.loads(said.stdout)
    everybody = [
        row for part in with_whole_table.glob("part-*") for row in pq.read_table(part).to_pylist()
    ]
    assert row in everybody
    assert row["user"] == 7
