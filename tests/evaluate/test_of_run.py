"""What an evaluation leaves in a run, and what becomes of what older ones left."""

import json
from pathlib import Path

import pytest

from pipeline import world
from pipeline.evaluate import Protocol
from pipeline.evaluate.of_run import evaluate_run, evaluations_in, name_of
from pipeline.evaluate.show import tables_of, tables_of_groups
from pipeline.manifest import Dataset
from pipeline.report.page import write_report
from pipeline.train.trained import load_trained
from tests.train.runs import longhaul, recipe, train_here


def test_evaluations_of_a_run(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path)
    train_here(wanted)
    trained = load_trained(wanted.run_url)
    asked = [Protocol(lists=True), Protocol(candidates=20, seen="none")]
    with world.alone("cpu", 1) as here:
        full, sampled = (
            list(evaluate_run(trained, small_set, protocol, here, baselines=True, per_user=True))
            for protocol in asked
        )
    names = ["lrurec", "popularity", "recent popularity", "co-occurrence"]
    assert [one.scorer for one in full] == [one.scorer for one in sampled] == names
    told: list[str] = []
    kept = evaluations_in(wanted.run_url, told.append)
    assert sorted(kept, key=repr) == sorted([*full, *sampled], key=repr)
    assert told == []
    folder = Path(wanted.run_url) / "eval"
    stem = name_of("lrurec", 12, asked[1], small_set.fingerprint)
    assert (folder / f"{stem}.json").exists()
    assert (folder / stem / "users.json").exists()
    assert sampled[0].label == "lrurec (step 12), 20 sampled"

    assert [table.row_count for table in tables_of(full)] == [8, 8]
    assert len(tables_of(sampled)) == 1
    assert "ranked among 20 sampled items" in str(tables_of(sampled)[0].caption)
    history, popularity, _ = tables_of_groups(full)
    assert history.row_count == 4 * len(full[0].result.groups["history"])
    assert popularity.row_count == 4 * len(full[0].result.groups["popularity"])

    # A result of an older longhaul is told of in one line, and left out.
    old = json.loads((folder / f"{stem}.json").read_text())
    old["result"]["schema_version"] = 1
    del old["result"]["half_widths"]
    (folder / "test-old.json").write_text(json.dumps(old))
    assert len(evaluations_in(wanted.run_url, told.append)) == 8
    assert len(told) == 1
    assert "test-old.json is left out: its result has schema_version 1" in told[0]
    assert "\n" not in told[0]
    told.clear()
    url, _ = write_report(wanted.run_url, str(tmp_path / "page"), told.append)
    page = Path(url).read_text()
    assert len(told) == 1
    assert "ranked among 20 sampled items (seed 0)" in page


def test_from_the_command_line(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path)
    train_here(wanted)
    said = longhaul(
        "evaluate", wanted.run_url, "--groups", "--per-user", "--output", str(tmp_path / "results")
    )
    assert said.returncode == 0, said.stderr
    assert "by events of the history" in said.stdout
    assert len(list((tmp_path / "results").glob("test-lrurec-step-00000012-*/users.json"))) == 1
    assert not (Path(wanted.run_url) / "eval").exists()
    wrong = longhaul("evaluate", wanted.run_url, "--set", "candidates=many")
    assert wrong.returncode == 1
    assert "error: candidates: all or a number of items from 1 on, not 'many'" in wrong.stderr


def test_the_recipe_of_an_older_run_is_read() -> None:
    assert Protocol.model_validate({"coverage": True}) == Protocol(lists=True)
    with pytest.raises(ValueError, match="lists"):
        Protocol.model_validate({"coverage": "perhaps"})
