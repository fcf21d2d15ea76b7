"""Metrics reach the run's own file and, offline, the log that W&B would sync."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from pipeline.manifest import Dataset
from pipeline.tracking import MetricsFile
from tests.train.runs import recipe, records, train_here


def wandb_records(file: Path) -> Iterator[Record]:
    """The records of a ``.wandb`` file: LevelDB log blocks of 32 KiB behind a 7-byte header."""
    content = file.read_bytes()
    assert content[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def test_offline_runs_log_what_the_file_holds(
    small_set: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    wanted = recipe(small_set, tmp_path, "tracked", tracking={"wandb": "offline"})
    train_here(wanted)
    wandb.teardown()  # the service writes its log out when it ends; until then it may lag behind
    file = next(tmp_path.glob("wandb/offline-run-*-tracked/*.wandb"))
    logged = [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in r.history.item}
        for r in wandb_records(file)
        if r.HasField("history")
    ]
    assert [row["step"] for row in logged] == list(range(1, 13))
    assert [row["loss"] for row in logged] == [record["loss"] for record in records(wanted)]


def test_disabled_tracking_leaves_wandb_alone(
    small_set: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train_here(recipe(small_set, tmp_path, train__steps=2))
    assert not list(tmp_path.glob("wandb*"))


def test_the_file_is_rewritten_whole(tmp_path: Path) -> None:
    file = MetricsFile(str(tmp_path / "attempt-1.jsonl"), every_seconds=1e9)
    file.log({"step": 1})
    file.log({"step": 2})
    file.flush()
    lines = (tmp_path / "attempt-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["attempt-1.jsonl"]
