"""Out of core: memory, tasks and interruptions do not show in the bytes of a data set."""

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LonghaulError
from pipeline.prepare import (
    PrepareOptions,
    deal,
    embedded,
    engine,
    histories,
    prepare,
    read,
    runs,
    vocabulary,
)
from tests.train.runs import ROOT, environment

EVENTS = 6_000


def log(folder: Path, strings: bool) -> list[str]:
    """Three files of events in no order of time, the middle one CSV."""
    draw = random.Random(1)
    urls = []
    for number in range(3):
        users = [min(int(draw.paretovariate(0.7)), 900) for _ in range(EVENTS // 3)]
        items = [draw.randrange(200) ** 2 for _ in users]
        table = pa.table(
            {
                "user": [f"u{user}" for user in users] if strings else users,
                "item": [f"item-{item}" for item in items] if strings else items,
                "time": [draw.randrange(50_000) for _ in users],
                "kind": [draw.choice(["view", "buy", "like"]) for _ in users],
            }
        )
        url = f"{folder}/{number}.{'csv' if number == 1 else 'parquet'}"
        if number == 1:
            pa.csv.write_csv(table, url)
        else:
            pq.write_table(table, url, row_group_size=300)
        urls.append(url)
    return urls


def contents(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def options(urls: list[str], output: Path, **more: Any) -> PrepareOptions:
    known: dict[str, Any] = {"timestamp": "time", "action": "kind", "shard_bytes": 9_000}
    return PrepareOptions(inputs=urls, output=str(output), **known | more)


FILTERS: list[dict[str, Any]] = [
    {},
    {"repeats": "all", "min_item_events": 12, "min_user_events": 3},
    {"min_item_events": 20, "min_user_events": 5, "count_filter": "k_core"},
    {
        "split": "time",
        "validation": "30000/40000",
        "test": "40000/49000",
        "min_user_events": 2,
        "keep_actions": ["view", "buy"],
    },
]


@pytest.mark.parametrize("strings", [False, True], ids=["integers", "strings"])
@pytest.mark.parametrize("filters", FILTERS, ids=["none", "one-pass", "k-core", "time"])
@pytest.mark.parametrize("workers", [1, 3])
def test_memory_and_tasks_do_not_show(
    strings: bool,
    filters: dict[str, Any],
    workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urls = log(tmp_path, strings)
    prepare(options(urls, tmp_path / "whole", **filters))
    # So small that everything is cut: pieces, tasks, blocks, partitions (twice), batches, chunks.
    monkeypatch.setattr(read, "PIECE_ROWS", 500)
    monkeypatch.setattr(engine, "TASK_ROWS", 700)
    monkeypatch.setattr(deal, "BLOCK_ROWS", 350)
    monkeypatch.setattr(runs, "_BATCH", 64)
    monkeypatch.setattr(histories, "_CHUNK", 100)
    monkeypatch.setattr(vocabulary, "_AT_ONCE", 50)
    monkeypatch.setattr(embedded, "limits_of", lambda _: engine.Limits(workers, 50_000))
    monkeypatch.setattr(engine, "partition_count", lambda pieces, memory: 4)
    prepare(options(urls, tmp_path / "parted", **filters))
    assert contents(f"{tmp_path}/parted") == contents(f"{tmp_path}/whole")


def test_integers_that_turn_out_to_be_strings(tmp_path: Path, monkeypatch: Any) -> None:
    """Found in the last file, when all before it was dealt by the hash of integers."""
    (tmp_path / "a.csv").write_text("user,item\n" + "".join(f"{n},{n % 7}\n" for n in range(100)))
    (tmp_path / "b.csv").write_text("user,item\n5,x\n")
    monkeypatch.setattr(engine, "TASK_ROWS", 1)
    found = prepare(
        PrepareOptions(inputs=[f"{tmp_path}/*.csv"], output=f"{tmp_path}/out", workers=1)
    )
    assert (found.user_type, found.item_type) == ("int64", "string")
    assert (found.users, found.events, found.catalogue_size) == (100, 101, 8)


KILLED = """
import json, os, signal, sys
from pipeline.prepare import PrepareOptions, engine, prepare, work
engine.TASK_ROWS = 700
engine.partition_count = lambda pieces, memory: 8
left = int(sys.argv[2])
keep = work.Work.keep
def dying(self, name, result):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    keep(self, name, result)
work.Work.keep = dying
prepare(PrepareOptions(**json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("records", [9, 17])
def test_killed_before_any_record_it_goes_on(records: int, tmp_path: Path) -> None:
    """Killed before record after record, until it is through: the same bytes, and less to do."""
    wanted = options(log(tmp_path, strings=False), tmp_path / "killed", workers=2)
    prepare(wanted.model_copy(update={"output": f"{tmp_path}/whole"}))
    ways = []
    while not ways or ways[-1] != 0:
        assert len(ways) < 40, "it does not get any further"
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, wanted.model_dump_json(), str(records + 1)],
            env=environment(),
            cwd=ROOT,
        )
        assert ended.returncode in (0, -signal.SIGKILL)
        ways.append(ended.returncode)
    assert contents(f"{tmp_path}/killed") == contents(f"{tmp_path}/whole")


def test_what_is_kept_is_only_used_for_the_same(tmp_path: Path) -> None:
    """Another option, or an input that changed, begins anew."""
    urls = log(tmp_path, strings=False)
    wanted = options(urls, tmp_path / "out")
    for changed in (wanted, wanted.model_copy(update={"repeats": "all"})):
        with pytest.raises(KeyboardInterrupt):
            prepare(wanted, _stop_at_writing)
        assert (tmp_path / "out" / ".work").exists()
        pq.write_table(pq.read_table(urls[0]).slice(1), urls[0])
        prepare(changed)
        prepare(changed.model_copy(update={"output": f"{tmp_path}/fresh", "overwrite": True}))
        assert contents(f"{tmp_path}/out") == contents(f"{tmp_path}/fresh")
        wanted = wanted.model_copy(update={"overwrite": True})


def _stop_at_writing(stage: str, done: int, total: int | None) -> None:
    if stage == "write":
        raise KeyboardInterrupt


def test_a_damaged_run_is_told(tmp_path: Path) -> None:
    wanted = options(log(tmp_path, strings=False), tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        prepare(wanted, _stop_at_writing)
    (damaged,) = (tmp_path / "out" / ".work" / "runs").rglob("events.arrow")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(LonghaulError, match="is not as it was written"):
        prepare(wanted)
    prepare(wanted)  # what was damaged is gone


def test_a_user_too_large_for_memory_is_prepared_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No partition gets smaller than one user."""
    (tmp_path / "log.txt").write_text("".join(f"7 {n % 50}\n" for n in range(2_000)))
    monkeypatch.setattr(embedded, "limits_of", lambda _: engine.Limits(1, 10_000))
    found = prepare(PrepareOptions(inputs=[f"{tmp_path}/log.txt"], output=f"{tmp_path}/out"))
    assert (found.users, found.events) == (1, 2_000)


def test_memory_has_a_least(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 2\n")
    wanted = PrepareOptions(inputs=[f"{tmp_path}/log.txt"], output=f"{tmp_path}/o", memory="100MB")
    with pytest.raises(LonghaulError, match="give at least 512MiB"):
        prepare(wanted)
