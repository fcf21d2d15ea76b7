"""A table dealt over workers: ranks and lists are those of the whole table, to the last bit."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from models.batch import PackedBatch
from pipeline.errors import LonghaulError
from pipeline.evaluate import (
    ModelScorer,
    Protocol,
    ShardedScorer,
    blocks,
    evaluate,
    scores,
    top_k,
)
from pipeline.manifest import open_dataset
from pipeline.world import World, current_world
from tests.evaluate.support import DecayModel, random_users, write_dataset

CATALOGUE, USERS = 700, 61
PROTOCOLS = [
    Protocol(max_history=8, seen="window", lists=True),
    Protocol(split="validation", targets="all_in_window", seen="none", users=50),
    Protocol(max_history=8, seen="history", ks=(1, 300)),
]


class DealtRows:
    """The rows of a model's table that fall to this worker, as uneven as may be."""

    vectors = 24

    def __init__(self, model: DecayModel, world: World) -> None:
        table, bias = model.item_scores()
        cuts = [*(0, 5, 260)[: world.world_size], CATALOGUE + 1]
        self.held = range(cuts[world.rank], cuts[world.rank + 1])
        parts = [table, *([] if bias is None else [bias[:, None]])]
        self.rows = torch.cat(parts, dim=1)[self.held.start : self.held.stop]

    def fetch(self, items: torch.Tensor, training: bool) -> None:
        """The model has its own for its inputs."""


def measure(world: World, folder: Path, sharded: bool) -> dict[str, Any]:
    blocks.BATCH_TOKENS = 1_500
    scores.TILES["cpu"] = (16, 128)  # several tiles, cut in their middle
    torch.set_num_threads(1)
    model = DecayModel(CATALOGUE)
    dataset = open_dataset(str(folder / "set"))

    def scorer(of: DecayModel) -> Any:
        return ShardedScorer(of, DealtRows(of, world), world) if sharded else ModelScorer(of)

    results = [
        evaluate(dataset, scorer(model), protocol, world).model_copy(update={"seconds": 0.0})
        for protocol in PROTOCOLS
    ]
    items = torch.arange(1, 21)
    batch = PackedBatch(items, torch.tensor([0, 7, 20]), torch.zeros_like(items))
    candidates = torch.arange(CATALOGUE + 1) % 3 > 0
    seen = items, torch.tensor([0, 7, 20])
    with torch.no_grad():
        lists = top_k(scorer(model).score(batch), 30, seen, candidates=candidates)
    broken = DecayModel(CATALOGUE)
    broken.embedding[600] = torch.nan
    with pytest.raises(LonghaulError) as caught:
        evaluate(dataset, scorer(broken), PROTOCOLS[0], world)
    return {"results": results, "lists": lists, "broken": str(caught.value)}


def worker(rank: int, world_size: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / f"store-{world_size}"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    found = measure(current_world(), folder, sharded=True)
    (folder / f"{world_size}-{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("sets")
    users = random_users(USERS, CATALOGUE, seed=1, times=True)
    for user in users[:2]:
        user.split = (0, 0, 1, min(1, len(user.items) - 1))
    write_dataset(folder / "set", users, CATALOGUE)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    before = blocks.BATCH_TOKENS, scores.TILES["cpu"]
    yield measure(World(0, 1, torch.device("cpu")), folder, sharded=False)
    blocks.BATCH_TOKENS, scores.TILES["cpu"] = before


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_equals_the_whole_table(folder: Path, whole: dict[str, Any], workers: int) -> None:
    mp.spawn(worker, (workers, folder), workers)
    for rank in range(workers):
        found = pickle.loads((folder / f"{workers}-{rank}.pickle").read_bytes())
        assert found["results"] == whole["results"]
        for mine, its in zip(found["lists"], whole["lists"], strict=True):
            assert torch.equal(mine, its)
        assert "the score of item 600 for" in found["broken"]
    assert "the score of item 600 for user" in whole["broken"]
