"""The whole chain with data, checkpoints, metrics and results in a bucket."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline import storage
from pipeline.manifest import open_dataset
from tests.conftest import random_histories
from tests.train.runs import (
    assert_bit_equal,
    final_tensors,
    longhaul,
    recipe,
    steps_in,
    train_here,
)


def said(*arguments: str) -> str:
    """What a command that succeeds prints."""
    ended = longhaul(*arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def log(bucket: str) -> str:
    histories = random_histories(120, 30, seed=4)
    lines = "".join(f"{u} {i}\n" for u, items in enumerate(histories) for i in items)
    storage.write_bytes(f"{bucket}/log.txt", lines.encode())
    return f"{bucket}/log.txt"


def test_commands_on_a_bucket(bucket: str, log: str, tmp_path: Path) -> None:
    assert "120 users" in said("prepare", log, "--output", f"{bucket}/set")
    dataset = open_dataset(f"{bucket}/set")
    wanted = recipe(dataset, f"{bucket}/runs", train__validation={"every": 6})
    file = f"{bucket}/recipe.yaml"
    storage.write_bytes(file, yaml.safe_dump(wanted.model_dump(mode="json")).encode())
    assert "done at step 12" in said("train", file)
    assert steps_in(f"{bucket}/runs/run")[-1] == 12
    asked = "evaluate", f"{bucket}/runs/run", "--baselines", "--per-user", "--json"
    results = json.loads(said(*asked))
    scorers = ["lrurec", "popularity", "recent popularity", "co-occurrence"]
    assert [r["scorer"] for r in results] == scorers
    scored = sum(int((dataset.read(m).lengths() >= 3).sum()) for m in range(len(dataset)))
    assert {r["result"]["users"] for r in results} == {scored}
    kept = storage.files_below(f"{bucket}/runs/run/eval")
    assert sorted(name.split("/")[-1] for name in kept if "/" in name) == sorted(
        4 * ["part-000000.parquet", "users.json"]
    )
    assert len(kept) == 4 + 8
    rows = json.loads(
        said(
            *("recommend", f"{bucket}/runs/run", "--output", f"{bucket}/few.parquet"),
            *("--user", "3", "--user", "77", "--k", "4", "--json"),
        )
    )
    assert {row["user"] for row in rows} == {3, 77}
    assert all(len(row["items"]) == 4 for row in rows)
    assert storage.exists(f"{bucket}/few.parquet")


def test_a_run_in_a_bucket_resumes_bit_equal(bucket: str, log: str, tmp_path: Path) -> None:
    said("prepare", log, "--output", f"{bucket}/set")
    dataset = open_dataset(f"{bucket}/set")
    whole = recipe(dataset, tmp_path, "whole")
    parted = recipe(dataset, f"{bucket}/runs", "parted")
    train_here(whole)
    train_here(parted, stop_before=7)
    assert train_here(parted).state == "done"
    assert_bit_equal(final_tensors(whole), final_tensors(parted))


def test_an_unreadable_bucket_is_one_line(bucket: str) -> None:
    arguments = ["prepare", "s3://no-such-bucket/log.txt", "--output", f"{bucket}/set"]
    ended = longhaul(*arguments)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert "no-such-bucket" in ended.stderr
    assert not storage.files_below(f"{bucket}/set")
