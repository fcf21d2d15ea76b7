"""Several processes: the same numbers to the last bit, everybody once, and no one left waiting."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.errors import LonghaulError
from pipeline.evaluate import (
    Catalogue,
    ModelScorer,
    PerUserWriter,
    Protocol,
    blocks,
    co_occurrence,
    cooccurrence,
    evaluate,
    per_user,
    popularity,
    recent_popularity,
)
from pipeline.manifest import open_dataset
from pipeline.world import current_world
from tests.evaluate.support import DecayModel, User, WindowScorer, random_users, write_dataset

CATALOGUE = 60
PROTOCOLS = [
    Protocol(max_history=8, seen="window", lists=True),
    Protocol(split="validation", targets="all_in_window", users=50),
    Protocol(targets="all_in_window", seen="none", candidates=7),
]
# Every remainder of users by two and by three workers; fewer blocks than workers.
USERS = [60, 61, 62, 63, 64, 65, 2]


def measure(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """All that one worker finds; run alone it is what the others are compared with."""
    blocks.BATCH_TOKENS, per_user._USERS = 1_500, (10, 20)
    cooccurrence.PAIRS = 100
    torch.set_num_threads(1)
    found: dict[str, Any] = {"results": [], "counts": [], "calls": [], "encoded": {}, "rows": []}
    for count in USERS:
        dataset = open_dataset(str(folder / f"{count}"))
        for protocol in PROTOCOLS[:2]:
            model, exact = DecayModel(CATALOGUE), WindowScorer(CATALOGUE)
            for scorer in (ModelScorer(model), exact):
                result = evaluate(dataset, scorer, protocol)
                found["results"].append(result.model_copy(update={"seconds": 0.0}))
            found["encoded"] |= {(count, *key): hidden for key, hidden in model.encoded.items()}
            found["calls"].append(exact.calls)
        found["counts"].append(popularity(dataset).counts)
        found["counts"].append(recent_popularity(dataset, days=3).counts)
    dataset = open_dataset(str(folder / "65"))
    rules = co_occurrence(dataset, window=3, neighbours=4)
    found["counts"] += [rules.offsets, rules.neighbours, rules.weights]
    catalogue = Catalogue(popularity(dataset).counts)
    for number, protocol in enumerate(PROTOCOLS):
        rows = folder / f"rows-{world_size}-{number}"
        writer = PerUserWriter(str(rows), current_world())
        result = evaluate(dataset, rules, protocol, None, None, catalogue, writer)
        writer.commit("co-occurrence", None, protocol, dataset)
        found["results"].append(result.model_copy(update={"seconds": 0.0}))
        found["rows"].append({file.name: file.read_bytes() for file in rows.iterdir()})
    failing = DecayModel(CATALOGUE)
    failing.embedding[7] = torch.nan
    for bad in (failing, DecayModel(CATALOGUE)):
        name = "60" if bad is failing else "damaged"
        with pytest.raises(LonghaulError) as caught:
            evaluate(open_dataset(str(folder / name)), ModelScorer(bad), PROTOCOLS[0])
        found[name] = str(caught.value)
    with pytest.raises(LonghaulError) as caught:
        popularity(open_dataset(str(folder / "damaged")))
    found["damaged counts"] = str(caught.value)
    return found


def worker(rank: int, world_size: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / f"store-{world_size}"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    found = measure(rank, world_size, folder)
    (folder / f"{world_size}-{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("sets")
    for count in USERS:
        users = random_users(count, CATALOGUE, seed=count, times=True)
        for user in users[:2]:
            user.split = (0, 0, 1, min(1, len(user.items) - 1))  # both splits have somebody
        write_dataset(folder / f"{count}", users, CATALOGUE)
    users = [User(key=u, items=[1, 2, 3, 4], split=(2, 2, 3, 3)) for u in range(60)]
    dataset = write_dataset(folder / "damaged", users, CATALOGUE)
    shard = folder / "damaged" / "shards" / "00000.tar"
    content = bytearray(shard.read_bytes())
    content[int(dataset.start[10]) + 600] ^= 1
    shard.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[dict[str, Any]]:
    sizes = blocks.BATCH_TOKENS, per_user._USERS, cooccurrence.PAIRS
    yield measure(0, 1, folder)
    blocks.BATCH_TOKENS, per_user._USERS, cooccurrence.PAIRS = sizes


@pytest.fixture(scope="module", params=[2, 3])
def together(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    world_size = request.param
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(worker, args=(world_size, folder), nprocs=world_size)
    files = [folder / f"{world_size}-{rank}.pickle" for rank in range(world_size)]
    return [pickle.loads(file.read_bytes()) for file in files]


def test_results_are_those_of_one_process(
    alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    for found in together:
        assert found["results"] == alone["results"]  # floats too: to the last bit


def test_what_is_found_for_each_user_is_the_same_bytes(
    alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    assert all("users.json" in rows for rows in alone["rows"])
    assert max(map(len, alone["rows"])) > 3
    for found in together:
        assert found["rows"] == alone["rows"]


def test_counts_are_those_of_one_process(
    alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    for found in together:
        for counts, expected in zip(found["counts"], alone["counts"], strict=True):
            assert np.array_equal(counts, expected)


def test_everybody_is_encoded_once_and_in_the_same_company(
    alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    nobody = blocks.NOBODY.items.numpy().tobytes()
    shares = [{key for key in found["encoded"] if key[1] != nobody} for found in together]
    assert all(shares)
    assert sum(map(len, shares)) == len(set.union(*shares))
    encoded = {batch: hidden for found in together for batch, hidden in found["encoded"].items()}
    assert encoded | alone["encoded"] == encoded
    for batch, hidden in alone["encoded"].items():
        assert encoded[batch] == hidden


def test_all_workers_encode_equally_often(together: list[dict[str, Any]]) -> None:
    assert all(found["calls"] == together[0]["calls"] for found in together)


def test_an_error_of_one_is_the_error_of_all(
    alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    assert "member 000010" in alone["damaged"]
    assert "for user 10" in alone["60"]
    for found in together:
        assert found["damaged"] == found["damaged counts"] == alone["damaged"]
        assert "is nan" in found["60"]
