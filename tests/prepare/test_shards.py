"""What is written: readable by stock webdataset, and the same bytes whatever the surroundings."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from pipeline.manifest import Dataset
from pipeline.prepare import layout
from tests.prepare.oracle import check_contract, read_back, run

ROOT = Path(__file__).parents[2]


def big_log(rows: int = 15_000, strings: bool = False) -> pa.Table:
    """A log with ties in time, more than a thousand users of skewed lengths, all columns."""
    random = np.random.default_rng(5)
    users = (random.pareto(0.8, rows) * 3).astype(np.int64) % 3000
    users[::10] = np.arange(rows // 10)
    return pa.table(
        {
            "user": pa.array([f"ü{u}" for u in users]) if strings else pa.array(users),
            "item": random.integers(-50, 400, rows),
            "t": random.integers(0, 500, rows),
            "a": pa.array(np.array(["view", "buy", "cart"])[random.integers(0, 3, rows)]),
        }
    )


OPTIONS: dict[str, Any] = {
    "timestamp": "t",
    "action": "a",
    "min_item_events": 3,
    "shard_bytes": 50_000,
    "split": "time",
    "validation": "50s",
    "test": "50s",
    "gap": "5s",
}


@pytest.mark.parametrize("strings", [False, True])
def test_stock_webdataset_reads_the_shards(strings: bool, tmp_path: Path) -> None:
    pq.write_table(big_log(strings=strings), tmp_path / "log.parquet")
    dataset = run(tmp_path / "log.parquet", tmp_path / "out", **OPTIONS)
    urls = [f"{dataset.url}/{file.path}" for file in dataset.manifest.shards]
    assert len(urls) > 3
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == dataset.member
    assert len(set(dataset.member)) == len(dataset)
    for number, sample in enumerate(samples):
        member = dataset.read(number)
        for name in ("items", "offsets", "users", "splits", "timestamps", "actions"):
            stored = getattr(member, name)
            assert sample[f"{name}.npy"].dtype == stored.dtype
            assert sample[f"{name}.npy"].dtype.byteorder in "=|<"
            np.testing.assert_array_equal(sample[f"{name}.npy"], stored)
    check_contract(dataset, OPTIONS["shard_bytes"])
    assert len(dataset) >= 1000


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    pq.write_table(big_log(), tmp_path / "log.parquet")
    first = run(tmp_path / "log.parquet", tmp_path / "one", **OPTIONS)
    run(tmp_path / "log.parquet", tmp_path / "two", **OPTIONS)
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert sorted(one) == sorted(
        ["manifest.json", "card.json", "index.parquet", "items.parquet"]
        + [f"shards/{n:05d}.tar" for n in range(len(first.manifest.shards))]
        + [f"users/{n:05d}.parquet" for n in range(len(first.manifest.shards))]
    )
    assert one == two


def test_threads_do_not_show(tmp_path: Path) -> None:
    """Other processes, with one thread and with many, and another seed for Python's own hash."""
    pq.write_table(big_log(strings=True), tmp_path / "log.parquet")
    here = run(tmp_path / "log.parquet", tmp_path / "here", **OPTIONS)
    for threads in ("1", "7"):
        script = (
            "import sys, json, pyarrow\n"
            "from pipeline.prepare import PrepareOptions, prepare\n"
            f"pyarrow.set_cpu_count({threads}); pyarrow.set_io_thread_count({threads})\n"
            "prepare(PrepareOptions(**json.loads(sys.argv[1])))\n"
        )
        options = {"inputs": [f"{tmp_path}/log.parquet"], "output": f"{tmp_path}/{threads}"}
        subprocess.run(
            [sys.executable, "-c", script, json.dumps(options | OPTIONS)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": threads, "OMP_NUM_THREADS": threads},
            check=True,
        )
        assert content(tmp_path / threads) == content(Path(here.url))


def test_row_groups_and_formats_do_not_show(tmp_path: Path) -> None:
    """The manifest names its input files, so it differs; the data does not."""
    table = big_log()
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=97, version="1.0")
    pq.write_table(table.slice(0, 7000), tmp_path / "c1.parquet", compression="none")
    pq.write_table(table.slice(7000), tmp_path / "c2.parquet", use_dictionary=False)
    columns = [column.to_pylist() for column in table.columns]
    lines = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    (tmp_path / "d.csv").write_text("\n".join(["user,item,t,a", *lines]))

    found: list[Dataset] = []
    for inputs in (["a.parquet"], ["b.parquet"], ["c1.parquet", "c2.parquet"], ["d.csv"]):
        urls = [f"{tmp_path}/{name}" for name in inputs]
        found.append(run(urls, tmp_path / f"out{len(found)}", **OPTIONS))
    files = [content(Path(dataset.url)) for dataset in found]
    for other in files[1:]:
        assert set(other) == set(files[0])
        for name in other.keys() - {"manifest.json"}:
            assert other[name] == files[0][name], name
    assert len({dataset.fingerprint for dataset in found}) == 1


def test_ties_keep_the_order_of_the_rows(tmp_path: Path) -> None:
    """Half of all events of a user share a time; an unstable sort reorders targets then."""
    random = np.random.default_rng(0)
    users = random.integers(0, 20, 5000)
    times = random.integers(0, 3, 5000)
    rows = np.arange(5000)
    pq.write_table(pa.table({"user": users, "item": rows, "t": times}), tmp_path / "log.parquet")
    for user, history in read_back(
        run(tmp_path / "log.parquet", tmp_path / "out", timestamp="t")
    ).items():
        mine = rows[users == user]
        by_time = sorted(mine.tolist(), key=lambda row: times[row])
        assert history.items == by_time


def test_ties_keep_the_order_of_the_files(tmp_path: Path) -> None:
    for name, items in (("b", (1, 2)), ("a", (3, 4))):
        lines = "".join(f"1,{item},7\n" for item in items)
        (tmp_path / f"{name}.csv").write_text(f"user,item,t\n{lines}")
    listed = run([f"{tmp_path}/b.csv", f"{tmp_path}/a.csv"], tmp_path / "list", timestamp="t")
    assert read_back(listed)[1].items == [1, 2, 3, 4]
    found = run(f"{tmp_path}/*.csv", tmp_path / "glob", timestamp="t")
    assert read_back(found)[1].items == [3, 4, 1, 2]


def test_more_shards_than_users(tmp_path: Path) -> None:
    """Some shards are empty then: still tars, and skipped by stock webdataset."""
    (tmp_path / "log.txt").write_text("".join(f"{n % 3} {n}\n" for n in range(30)))
    dataset = run(tmp_path / "log.txt", tmp_path / "out", shard_bytes=10)
    assert len(dataset.manifest.shards) == 12
    check_contract(dataset, 10)
    urls = [f"{dataset.url}/{file.path}" for file in dataset.manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == dataset.member


def test_a_long_user_has_a_member_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MOST_EVENTS", 100)
    monkeypatch.setattr(layout, "LEAST_MEMBERS", 4)
    lines = [f"{user} {n}\n" for user in range(40) for n in range(500 if user == 7 else 30)]
    (tmp_path / "log.txt").write_text("".join(lines))
    dataset = run(tmp_path / "log.txt", tmp_path / "out")
    long = [n for n in range(len(dataset)) if 7 in dataset.read(n).users]
    assert [dataset.users[n] for n in long] == [1]
    assert [dataset.events[n] for n in long] == [500]
    assert max(dataset.events[n] for n in range(len(dataset)) if n not in long) <= 100
    assert read_back(dataset)[7].items == list(range(500))


def test_fields_have_the_types_of_the_format(tmp_path: Path) -> None:
    pq.write_table(big_log(strings=True), tmp_path / "log.parquet")
    dataset = run(tmp_path / "log.parquet", tmp_path / "out", **OPTIONS)
    member = dataset.read(0)
    assert [array.dtype.str for array in (member.items, member.offsets, member.splits)] == [
        "<u4",
        "<u8",
        "<u4",
    ]
    assert member.users.dtype.kind == "S"
    assert member.timestamps is not None
    assert member.actions is not None
    assert (member.timestamps.dtype.str, member.actions.dtype.str) == ("<i8", "|u1")
    assert int(member.items.min()) >= 1
    items = pq.read_schema(io.BytesIO((tmp_path / "out" / "items.parquet").read_bytes()))
    assert [str(kind) for kind in items.types] == ["uint32", "int64", "int64", "int64", "int64"]
    users = dataset.read_users(0).schema
    assert users.names == ["key", "member", "position", "events"]
    assert [str(k) for k in users.types] == ["string", "uint32", "uint32", "int64"]
