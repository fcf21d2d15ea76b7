"""Workers who hold a part of a trained table each find what one finds who holds all of it."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.evaluate import Protocol, evaluate
from pipeline.manifest import Dataset, open_dataset
from pipeline.train.checkpoint import Checkpoint
from pipeline.train.table import dealt
from pipeline.train.trained import load_together
from pipeline.world import World, current_world
from tests.train.runs import checkpoint_of, environment, longhaul, recipe, train_here

ROWS = 51  # of the table
PROTOCOLS = [
    Protocol(max_history=16, seen="window", lists=True),
    Protocol(max_history=16, split="validation", seen="history", targets="all_in_window"),
]
MODELS: dict[str, dict[str, Any]] = {
    "lrurec": {"model__name": "lrurec"},
    "sasrec": {"model__name": "sasrec"},  # without biases
    "bert4rec": {
        "model": {"name": "bert4rec", "d": 8, "max_history": 17},
        "train__objective": {"name": "cloze", "mask_probability": 0.3},
        "data__window__bos": True,
    },
}


def sharded(dataset: Dataset, folder: Path, name: str, **changes: Any) -> Recipe:
    wanted = recipe(dataset, folder, name, train__table={"home": "sharded"}, **changes)
    train_here(wanted)
    return wanted


def measure(run_url: str, set_url: str, world: World) -> Any:
    torch.set_num_threads(1)
    trained = load_together(run_url, world, warn=str)
    dataset = open_dataset(set_url)
    return [
        evaluate(dataset, trained.scorer(), protocol, world).model_copy(update={"seconds": 0.0})
        for protocol in PROTOCOLS
    ]


def worker(rank: int, world_size: int, runs: list[str], set_url: str, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    dealt.BLOCK_ROWS = 7
    read, whole = 0, Checkpoint.read

    def counted(
        self: Checkpoint, tensor: str, begin: int = 0, end: int | None = None
    ) -> torch.Tensor:
        nonlocal read
        found = whole(self, tensor, begin, end)
        if "item_embedding" in tensor:
            assert len(found) <= 7 * 8
            read += len(found)
        return found

    Checkpoint.read = counted  # type: ignore[method-assign]
    for number, run in enumerate(runs):
        read = 0
        try:
            found = measure(run, set_url, current_world())
        except LonghaulError as error:
            found = str(error)
        (folder / f"{number}-{rank}.pickle").write_bytes(pickle.dumps((found, read)))
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_metrics_are_those_of_one_worker(small_set: Dataset, tmp_path: Path, workers: int) -> None:
    runs = [sharded(small_set, tmp_path, name, **changes) for name, changes in MODELS.items()]
    damaged = sharded(small_set, tmp_path, "damaged", train__checkpoint_every=100)
    kept = checkpoint_of(damaged.run_url, 12)
    for file in kept.commit.files:
        path = Path(kept.url) / file.path
        path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)
    urls = [run.run_url for run in (*runs, damaged)]
    arguments = workers, urls, small_set.url, tmp_path
    mp.start_processes(worker, arguments, workers, start_method="spawn")
    told = [
        [
            pickle.loads((tmp_path / f"{number}-{rank}.pickle").read_bytes())
            for rank in range(workers)
        ]
        for number in range(len(urls))
    ]
    for run, found in zip(runs, told, strict=False):
        alone = measure(run.run_url, small_set.url, World(0, 1, torch.device("cpu")))
        assert all(results == alone for results, _ in found)
        assert sum(read for _, read in found) == ROWS * 8
        assert max(read for _, read in found) <= -(-ROWS // workers) * 8
    for problem, _ in told[-1]:  # all are told
        assert "none of the 1 checkpoints" in problem
        assert "is damaged" in problem


def test_the_command_under_torchrun(small_set: Dataset, tmp_path: Path) -> None:
    run = sharded(small_set, tmp_path, "run")
    asked = ["evaluate", run.run_url, "--set", "lists=true", "--json"]
    alone = longhaul(*asked)
    assert alone.returncode == 0, alone.stderr
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    shared = subprocess.run(
        [*launcher, "--nproc-per-node=2", "-m", "pipeline", *asked],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert shared.returncode == 0, shared.stderr
    (one,), (two,) = (json.loads(said.stdout) for said in (alone, shared))
    for found in (one, two):
        assert found["result"].pop("seconds") > 0
    assert any(name.startswith("coverage@") for name in one["result"]["metrics"])
    assert one == two
    candidates = subprocess.run(
        [*launcher, "--nproc-per-node=2", "-m", "pipeline", *asked[:2], "--set", "candidates=5"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert candidates.returncode != 0
    assert "is ranked whole: set evaluation.candidates all" in candidates.stderr
