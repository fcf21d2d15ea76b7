"""What is kept of each user: complete, checked, and nothing half-made."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LonghaulError
from pipeline.evaluate import PerUserWriter, Protocol, Result, blocks, evaluate, per_user
from pipeline.evaluate.per_user import PerUser, read_commit, read_parts
from pipeline.manifest import Dataset
from pipeline.world import current_world
from tests.evaluate.support import (
    User,
    WindowScorer,
    oracle_metrics,
    parts,
    question,
    random_users,
    write_dataset,
)

CATALOGUE = 25
PROTOCOL = Protocol(targets="all_in_window", seen="window", max_history=6, ks=(1, 5), lists=True)


def written(
    dataset: Dataset, folder: Path, protocol: Protocol = PROTOCOL
) -> tuple[Result, PerUser]:
    writer = PerUserWriter(str(folder), current_world())
    result = evaluate(dataset, WindowScorer(CATALOGUE), protocol, per_user=writer)
    writer.commit("scorer", 7, protocol, dataset)
    found = read_commit(str(folder))
    assert found is not None
    return result, found


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BATCH_TOKENS", 800)
    monkeypatch.setattr(per_user, "_USERS", (10, 20))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("strings", [False, True])
def test_a_row_a_user(tmp_path: Path, strings: bool) -> None:
    users = random_users(80, CATALOGUE, seed=9)
    for number, user in enumerate(users):
        user.key = f"Zoë {number}".encode() if strings else user.key
    result, found = written(write_dataset(tmp_path / "set", users, CATALOGUE), tmp_path / "rows")
    assert len(found.parts) > 2
    columns = ["user", "history", "known", "targets", "ranks", "ties", *found.metrics]
    table = pa.concat_tables(read_parts(str(tmp_path / "rows"), found, columns))
    rows = table.to_pylist()
    scorer = WindowScorer(CATALOGUE)
    expected: list[tuple[User, list[int], set[int], np.ndarray]] = []
    for user in users:
        if asked := question(user, PROTOCOL):
            window, wanted, seen = asked
            expected.append((user, wanted, seen, scorer.of(window).numpy()))
    assert len(rows) == len(expected) == found.users == result.users
    for row, (user, wanted, seen, scores) in zip(rows, expected, strict=True):
        assert row["user"] == (user.key.decode() if isinstance(user.key, bytes) else user.key)
        assert row["history"] == len(parts(user, PROTOCOL)[0])
        assert row["known"] == (user.split[0] > 0)
        assert row["targets"] == wanted
        others = [i for i in range(1, CATALOGUE + 1) if i in wanted or i not in seen]
        for target, rank, ties in zip(wanted, row["ranks"], row["ties"], strict=True):
            goal = scores[target]
            assert rank == sum(scores[i] >= goal for i in others)
            assert ties == sum(scores[i] == goal for i in others) - 1
        for name, value in oracle_metrics(scores, wanted, seen, PROTOCOL.ks).items():
            if name != "mean_rank":
                assert row[name] == pytest.approx(value)
    for name in found.metrics:
        assert np.mean([row[name] for row in rows]) == pytest.approx(result.metrics[name])
    assert set(found.metrics) == set(result.half_widths) - {"mean_rank"}


@pytest.mark.usefixtures("small_parts")
def test_nothing_passes_for_whole_until_it_is(tmp_path: Path) -> None:
    users = random_users(80, CATALOGUE, seed=9)
    dataset = write_dataset(tmp_path / "set", users, CATALOGUE)
    folder = tmp_path / "rows"
    _, found = written(dataset, folder)

    fewer = PROTOCOL.model_copy(update={"users": 30})
    writer = PerUserWriter(str(folder), current_world())
    assert read_commit(str(folder)) is None
    assert list(folder.iterdir()) == []
    evaluate(dataset, WindowScorer(CATALOGUE), fewer, per_user=writer)
    assert read_commit(str(folder)) is None  # the parts are there, their commit is not
    writer.commit("scorer", None, fewer, dataset)
    again = read_commit(str(folder))
    assert again is not None
    assert len(again.parts) < len(found.parts)
    assert {file.name for file in folder.iterdir()} == {
        "users.json",
        *(part.path for part in again.parts),
    }


@pytest.mark.usefixtures("small_parts")
def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", random_users(80, CATALOGUE, seed=9), CATALOGUE)
    _, found = written(dataset, tmp_path / "rows")
    path = tmp_path / "rows" / found.parts[1].path
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    with pytest.raises(LonghaulError, match=rf"{found.parts[1].path} is damaged"):
        list(read_parts(str(tmp_path / "rows"), found, ["user"]))


def test_a_commit_of_another_schema_is_told(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", random_users(20, CATALOGUE, seed=9), CATALOGUE)
    written(dataset, tmp_path / "rows")
    path = tmp_path / "rows" / "users.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 9}))
    with pytest.raises(LonghaulError, match=r"users\.json is not of this longhaul: schema_version"):
        read_commit(str(tmp_path / "rows"))


def test_parquet_is_read_by_others(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", random_users(20, CATALOGUE, seed=9), CATALOGUE)
    result, _ = written(dataset, tmp_path / "rows")
    (part,) = (tmp_path / "rows").glob("part-*.parquet")
    assert pq.read_metadata(part).num_rows == result.users
