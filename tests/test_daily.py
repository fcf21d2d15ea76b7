"""A model trained anew every day, from that of the day before: the commands in its recipe."""

import shlex
from pathlib import Path

import polars as pl
import pytest

from pipeline import storage
from pipeline.manifest import open_dataset
from pipeline.train.run import metrics_of
from pipeline.train.trained import load_trained
from tests.train.runs import ROOT, longhaul

SMALL = ["train.steps=12", "train.engine=torch", "train.log_every=1", "train.validation.every=6"]


def commands() -> list[list[str]]:
    """Those in the header of the recipe."""
    header = (ROOT / "configs" / "daily.yaml").read_text().splitlines()
    return [shlex.split(line[1:])[1:] for line in header if line.startswith("#   longhaul ")]


def events_of_two_days(folder: Path) -> None:
    """The last day's events have items of their own too."""
    options = ["--users", "300", "--items", "120", "--events", "9000"]
    made = longhaul("synth", "log", *options, cwd=folder)
    assert made.returncode == 0, made.stderr
    log = pl.read_parquet(folder / "log" / "events.parquet")
    first = pl.col("timestamp") <= log["timestamp"].quantile(0.8)
    (folder / "events").mkdir()
    log.filter(first & (pl.col("item") > 9)).write_parquet(folder / "events" / "day-1.parquet")
    log.filter(~first).write_parquet(folder / "events" / "day-2.parquet")


@pytest.mark.parametrize("home", ["sharded", pytest.param("dense", marks=pytest.mark.slow)])
def test_the_commands_of_two_days(tmp_path: Path, home: str) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    events_of_two_days(tmp_path)
    asked = commands()
    assert [words[0] for words in asked] == ["prepare", "train", "prepare", "train", "evaluate"]
    for words in asked:
        more = [*SMALL, f"train.table.home={home}"] if words[0] == "train" else []
        said = longhaul(*words, *more, cwd=tmp_path)
        assert said.returncode == 0, said.stderr
    before, after = (open_dataset(f"{tmp_path}/sets/day-{day}") for day in (1, 2))
    new = after.manifest.catalogue_size - before.manifest.catalogue_size
    assert new == 9
    attempt = storage.read_json(f"{tmp_path}/runs/day-2/attempts/attempt-1.json")
    begun = attempt["begun_with"]
    assert (begun["items_kept"], begun["items_new"], begun["items_gone"]) == (111, new, 0)
    first = [
        next(r["loss"] for r in metrics_of(f"{tmp_path}/runs/day-{day}") if "loss" in r)
        for day in (1, 2)
    ]
    assert first[1] < first[0]
    model = load_trained(f"{tmp_path}/runs/day-2", warn=pytest.fail).model
    assert len(model.item_scores()[0]) == 1 + 120
    (result,) = (tmp_path / "runs" / "day-2" / "eval").glob("*.json")
    found = storage.read_json(str(result))["result"]
    assert found["catalogue_size"] == 120
    assert found["data"] == after.fingerprint
