"""The lists of all users and of a few against sorting everything, and the folder they are in."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import PackedBatch
from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.evaluate import ModelScorer, scores
from pipeline.manifest import Dataset
from pipeline.recommend import (
    Origin,
    Request,
    Summary,
    histories,
    lists,
    read_candidates,
    recommend,
    recommend_users,
)
from pipeline.world import World
from tests.evaluate.support import DecayModel, WindowScorer

CATALOGUE = 50
K, WINDOW = 7, 6


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, row groups and tiles of a few users."""
    monkeypatch.setattr(histories, "BATCH_USERS", 13)
    monkeypatch.setattr(histories, "BATCH_EVENTS", 150)
    monkeypatch.setattr(lists, "_GROUP_USERS", 20)
    monkeypatch.setitem(scores.TILES, "cpu", (4, 64))


def asked(dataset: Dataset, output: Path, **changes: Any) -> Request:
    return Request(
        dataset, str(output), **{"k": K, "max_history": WINDOW, "part_users": 64} | changes
    )


def all_histories(dataset: Dataset) -> dict[int, list[int]]:
    """Item ids by user, in the order of the data set."""
    found = {}
    for member in map(dataset.read, range(len(dataset))):
        for user, key in enumerate(member.users.tolist()):
            low, high = member.offsets[user : user + 2].astype(int)
            found[key] = member.items[low:high].astype(int).tolist()
    return found


def rows_in(output: Path) -> list[dict[str, Any]]:
    """Of all parts that the manifest names."""
    manifest = json.loads((output / "manifest.json").read_text())
    tables = [pq.read_table(output / part["path"]) for part in manifest["parts"]]
    assert [part["users"] for part in manifest["parts"]] == [len(table) for table in tables]
    assert manifest["counts"]["users"] == sum(map(len, tables))
    rows = [row for table in tables for row in table.to_pylist()]
    lengths = [len(row["items"]) for row in rows]
    assert manifest["counts"]["items"] == sum(lengths)
    assert manifest["counts"]["short"] == sum(length < manifest["k"] for length in lengths)
    return rows


def check(
    rows: list[dict[str, Any]],
    dataset: Dataset,
    order: list[int],
    k: int = K,
    seen: bool = False,
    allowed: Callable[[int], bool] = lambda key: True,
) -> None:
    """Against numpy: ``WindowScorer``'s small integers, with ties by the lower item."""
    scorer, known = WindowScorer(CATALOGUE), all_histories(dataset)
    keys = [0, *dataset.read_items().column("key").to_pylist()]
    assert [row["user"] for row in rows] == order
    for row in rows:
        history = known[row["user"]]
        values = scorer.of(history[-WINDOW:]).numpy()
        out = set() if seen else set(history)
        left = [i for i in range(1, CATALOGUE + 1) if i not in out and allowed(keys[i])]
        best = sorted(left, key=lambda i: (-values[i], i))[:k]
        assert row["items"] == [keys[i] for i in best]
        assert row["scores"] == values[best].tolist()


@settings(max_examples=12)
@given(
    k=st.integers(1, 60),
    part_users=st.integers(20, 400),
    seen=st.booleans(),
    denied=st.none() | st.sets(st.integers(1, CATALOGUE), max_size=CATALOGUE - 1),
)
def test_everybody_gets_the_best(
    small_set: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
    k: int,
    part_users: int,
    seen: bool,
    denied: set[int] | None,
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    candidates = None
    if denied is not None:
        (folder / "deny.txt").write_text("\n".join(map(str, denied)))
        candidates = read_candidates(small_set, deny=str(folder / "deny.txt"))
    request = asked(
        small_set,
        folder / "lists",
        k=k,
        part_users=part_users,
        seen=seen,
        candidates=candidates,
    )
    told = []
    done = recommend(request, WindowScorer(CATALOGUE), progress=lambda *how: told.append(how))
    assert (done.users, done.parts, done.skipped_parts) == (300, -(-300 // part_users), 0)
    assert [total for _, total in told] == [300] * len(told)
    assert [count for count, _ in told] == sorted(count for count, _ in told)
    assert told[-1][0] == 300
    order = list(all_histories(small_set))
    check(rows_in(folder / "lists"), small_set, order, k, seen, lambda i: i not in (denied or ()))


def test_parts_and_their_row_groups(small_set: Dataset, tmp_path: Path) -> None:
    recommend(asked(small_set, tmp_path / "lists"), WindowScorer(CATALOGUE))
    names = [f"part-0000{n}.parquet" for n in range(5)]
    assert storage.files_below(str(tmp_path / "lists")) == ["manifest.json", *names, "request.json"]
    for name in names[:-1]:
        file = pq.ParquetFile(tmp_path / "lists" / name)
        groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        assert sum(groups) == 64
        assert min(groups[:-1]) >= 20
        assert file.schema_arrow.names == ["user", "items", "scores"]


def test_by_default_a_part_is_a_64th_of_the_users(small_set: Dataset) -> None:
    def parts_of(users: int) -> tuple[int, int]:
        class Larger(Request):
            users = property(lambda self: users)

        larger = Larger(small_set, "lists", k=1, max_history=1)
        assert sum(len(larger.range_of(n)) for n in range(larger.parts)) == users
        return larger.users_of_part, larger.parts

    assert parts_of(1) == (1024, 1)
    assert parts_of(65_536) == (1024, 64)
    assert parts_of(65_537) == (2048, 33)
    assert parts_of(10**8) == (98_304, 1018)


def test_a_model_gives_each_user_what_it_gives_him_alone(
    small_set: Dataset, tmp_path: Path
) -> None:
    model = DecayModel(CATALOGUE)
    recommend(asked(small_set, tmp_path / "lists"), ModelScorer(model))
    keys = np.array([0, *small_set.read_items().column("key").to_pylist()])
    known = all_histories(small_set)
    for row in rows_in(tmp_path / "lists"):
        history = known[row["user"]]
        window = torch.tensor(history[-WINDOW:])
        batch = PackedBatch(window, torch.tensor([0, len(window)]), torch.zeros_like(window))
        values = (model.encode(batch)[-1] @ model.embedding.T + model.bias).numpy()
        values[[0, *history]] = -np.inf
        assert row["items"] == keys[np.argsort(-values, kind="stable")[:K]].tolist()


class TestAFew:
    def test_they_are_in_the_order_asked_for(self, small_set: Dataset, tmp_path: Path) -> None:
        request = asked(small_set, tmp_path / "few.parquet")
        users = ["250", "3", "77", "3", "0"]
        table = recommend_users(request, WindowScorer(CATALOGUE), users)
        assert pq.read_table(tmp_path / "few.parquet").equals(table)
        check(table.to_pylist(), small_set, [250, 3, 77, 0])

    def test_an_unknown_user(self, small_set: Dataset, tmp_path: Path) -> None:
        request = asked(small_set, tmp_path / "few.parquet")
        for user, told in (("300", "user 300 is not in"), ("x", "are integers: .*'x'")):
            with pytest.raises(LonghaulError, match=told):
                recommend_users(request, WindowScorer(CATALOGUE), ["3", user])
        assert not (tmp_path / "few.parquet").exists()


class TestGoingOn:
    def contents(self, output: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in output.iterdir()}

    def make(self, request: Request, stop_after: int | None = None) -> Summary:
        world = World(0, 1, torch.device("cpu"))

        def progress(done: int, total: int) -> None:
            world.stop_wanted = stop_after is not None and done >= stop_after

        return recommend(request, WindowScorer(CATALOGUE), world, progress)

    def test_asked_to_stop_and_going_on(self, small_set: Dataset, tmp_path: Path) -> None:
        self.make(asked(small_set, tmp_path / "whole"))
        stopped = self.make(asked(small_set, tmp_path / "parted"), stop_after=150)
        assert stopped.stopped
        assert stopped.users == 128
        there = sorted(self.contents(tmp_path / "parted"))
        assert there == ["part-00000.parquet", "part-00001.parquet", "request.json"]
        again = self.make(asked(small_set, tmp_path / "parted"))
        assert (again.users, again.skipped_parts, again.stopped) == (172, 2, False)
        assert self.contents(tmp_path / "parted") == self.contents(tmp_path / "whole")
        once_more = self.make(asked(small_set, tmp_path / "parted"))
        assert (once_more.users, once_more.skipped_parts) == (0, 5)
        assert self.contents(tmp_path / "parted") == self.contents(tmp_path / "whole")

    def test_in_a_bucket_as_in_a_folder(
        self, small_set: Dataset, tmp_path: Path, bucket: str
    ) -> None:
        self.make(asked(small_set, tmp_path / "lists"))
        request = replace(asked(small_set, tmp_path), output=f"{bucket}/lists")
        assert self.make(request, stop_after=150).users == 128
        assert self.make(request).skipped_parts == 2
        names = storage.files_below(request.output)
        found = {name: storage.read_bytes(f"{request.output}/{name}") for name in names}
        assert found == self.contents(tmp_path / "lists")

    def test_parts_that_are_lost_or_damaged_are_made_again(
        self, small_set: Dataset, tmp_path: Path
    ) -> None:
        request = asked(small_set, tmp_path / "lists")
        self.make(request)
        whole = self.contents(tmp_path / "lists")
        part = tmp_path / "lists" / "part-00001.parquet"
        # Cut short, empty, of another request, and another part of this one.
        self.make(asked(small_set, tmp_path / "others", k=3))
        stranger = (tmp_path / "others" / "part-00001.parquet").read_bytes()
        for content in (part.read_bytes()[:-10], b"", stranger, whole["part-00002.parquet"]):
            part.write_bytes(content)
            assert self.make(request).skipped_parts == 4
            assert self.contents(tmp_path / "lists") == whole
        part.unlink()
        self.make(request, stop_after=1)
        assert "manifest.json" not in self.contents(tmp_path / "lists")

    def test_another_request_is_refused_with_the_difference(
        self, small_set: Dataset, tmp_path: Path
    ) -> None:
        (tmp_path / "deny.txt").write_text("3\n")
        (tmp_path / "same.txt").write_text("3\n3\n")
        denied = read_candidates(small_set, deny=str(tmp_path / "deny.txt"))
        same = read_candidates(small_set, deny=str(tmp_path / "same.txt"))
        origin = Origin(run="runs/a", step=4, model="a" * 64)
        given = {"candidates": denied, "origin": origin}
        self.make(asked(small_set, tmp_path / "lists", **given))
        before = self.contents(tmp_path / "lists")
        moved = Origin(run="runs/moved", step=4, model="a" * 64)
        alike = asked(small_set, tmp_path / "lists", candidates=same, origin=moved)
        assert self.make(alike).skipped_parts == 5
        other = Origin(run="runs/a", step=8, model="b" * 64)
        for change, told in (
            ({"k": 9}, "holds other lists: k 7 there, 9 asked for; name another folder"),
            ({"seen": True, "max_history": 3}, "max_history 6 there, 3 .*; seen False there, True"),
            ({"candidates": None}, r"candidates deny=.*/deny.txt count=49 there, all asked for"),
            ({"origin": other}, r"model runs/a step 4 \(aaaaaaaa\) there, runs/a step 8 \(bbbbb"),
            ({"part_users": 65}, "part_users 64 there, 65 asked for"),
        ):
            with pytest.raises(LonghaulError, match=told):
                self.make(asked(small_set, tmp_path / "lists", **given | change))
        after = self.contents(tmp_path / "lists")
        assert {n: c for n, c in after.items() if n.startswith("part")} == {
            n: c for n, c in before.items() if n.startswith("part")
        }

    def test_a_folder_of_something_else_is_left_alone(
        self, small_set: Dataset, tmp_path: Path
    ) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(LonghaulError, match="is no folder of recommendations: it holds thesis"):
            self.make(asked(small_set, tmp_path))
        assert list(self.contents(tmp_path)) == ["thesis.txt"]

    def test_a_failure_leaves_what_was_whole(self, small_set: Dataset, tmp_path: Path) -> None:
        class Failing(WindowScorer):
            def of(self, window: list[int]) -> torch.Tensor:
                return super().of(window) * (torch.nan if self.calls > 8 else 1)

        with pytest.raises(LonghaulError, match=r"for user \d+ is nan"):
            recommend(asked(small_set, tmp_path / "lists"), Failing(CATALOGUE))
        assert sorted(self.contents(tmp_path / "lists")) == ["part-00000.parquet", "request.json"]
        recommend(asked(small_set, tmp_path / "lists"), WindowScorer(CATALOGUE))
        check(rows_in(tmp_path / "lists"), small_set, list(all_histories(small_set)))
