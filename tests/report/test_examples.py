"""Examples: the first users of the test, their lists as the model ranks, items by their names."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from models import PackedBatch
from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.member import TEST_START
from pipeline.report.examples import examples_of, read_names
from pipeline.report.page import report_of
from pipeline.train.trained import load_trained


def test_examples_are_the_first_users_of_the_test(run: Recipe, small_set: Dataset) -> None:
    """Against a loop over the data set that scores each user by itself."""
    found = examples_of(run, 7, None, print)
    assert found == examples_of(run, 7, None, print)
    scorer = load_trained(run.run_url, warn=print).scorer()
    keys = small_set.read_items().column("key").to_pylist()
    expected = []
    for number in range(len(small_set)):
        member = small_set.read(number)
        for user, key in enumerate(member.users.tolist()):
            begin, end = member.offsets[user : user + 2].astype(np.int64)
            history = member.items[begin : begin + member.splits[user, TEST_START]].astype(np.int64)
            if begin + len(history) < end:
                expected.append((key, history, int(member.items[begin + len(history)])))
    for one, (key, history, target) in zip(found, expected, strict=False):
        assert (one.user, one.events) == (str(key), len(history))
        assert one.history == [str(keys[item - 1]) for item in history[-16:][-10:]]
        assert one.target == str(keys[target - 1])
        window = torch.from_numpy(history[-16:])
        batch = PackedBatch(window, torch.tensor([0, len(window)]), torch.zeros_like(window))
        with torch.no_grad():
            scores = scorer.score(batch).tile(0, 0)[0, 1 : len(keys) + 1]
        order = torch.argsort(scores, descending=True, stable=True)
        assert [name for name, _ in one.top] == [str(keys[item]) for item in order[:10].tolist()]
        assert [score for _, score in one.top] == pytest.approx(
            scores[order[:10]].tolist(), abs=1e-5
        )
        assert one.rank == 1 + int((scores > scores[target - 1]).sum())


def test_names_stand_for_keys_and_are_escaped(run: Recipe, tmp_path: Path) -> None:
    names = tmp_path / "items.parquet"
    table = pl.DataFrame({"key": range(40), "title": [f"<b>Item</b> {key}" for key in range(40)]})
    table.write_parquet(names)
    plain = examples_of(run, 5, None, print)
    named = examples_of(run, 5, f"{names}:key,title", print)
    for one, other in zip(plain, named, strict=True):
        expected = [f"<b>Item</b> {key}" if int(key) < 40 else key for key in one.history]
        assert other.history == expected
    page = report_of(run, print, 5, f"{names}:key,title").page
    assert "&lt;b&gt;Item&lt;/b&gt; " in page
    assert "<b>Item" not in page


def test_names_are_read_from_text_too(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text('id,title\n7,"Up, and away"\n8,\n')
    (tmp_path / "items.tsv").write_text("id\ttitle\n007\tBond\n")
    assert read_names(f"{tmp_path}/items.csv:id,title", ["7", "8"]) == {"7": "Up, and away"}
    assert read_names(f"{tmp_path}/items.tsv:id,title", ["007"]) == {"007": "Bond"}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("items.csv", "is not of the form items.parquet:key,title"),
        ("items.csv:id", "is not of the form items.parquet:key,title"),
        ("items.csv:id,name", "name"),
        ("items.csv:id,title", "none of the items shown has a name there"),
        ("items.parquet:id,title", "items.parquet"),
        ("absent.csv:id,title", "absent.csv"),
    ],
)
def test_names_that_cannot_be_read_are_one_line(tmp_path: Path, spec: str, told: str) -> None:
    (tmp_path / "items.csv").write_text("id,title\n7,Up\n")
    (tmp_path / "items.parquet").write_text("no parquet")
    with pytest.raises(LonghaulError) as refused:
        read_names(f"{tmp_path}/{spec}", ["1"])
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
