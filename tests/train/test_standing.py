"""How runs stand, as their folders tell it."""

import json
import os
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.secrets import FILES, read_secrets
from pipeline.train.run import LAUNCHED, read_state, request_stop, stop_lasts
from pipeline.train.standing import standing, standings
from tests.train.runs import longhaul, recipe, records, train_here, write


def test_a_run_is_told_from_its_folder(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, "one", train__validation={"every": 6})
    train_here(wanted, stop_before=7)
    half = standing(wanted.run_url)
    assert (half.state, half.step, half.steps, half.attempt) == ("preempted", 7, 12, 1)
    assert (half.left, half.price, half.job) == (None, None, None)
    train_here(wanted)
    spec = {"price_per_hour": 8.0, "workers_per_node": 4}
    storage.write_json(storage.join(wanted.run_url, "launch", "cluster.yaml"), spec)
    train_here(recipe(small_set, tmp_path, "two", train__steps=2))
    one, two = standings(str(tmp_path))
    assert (one.name, one.state, one.step, one.attempt) == ("one", "done", 12, 2)
    assert (two.name, two.metric, two.best) == ("two", None, None)
    seen = list(records(wanted))
    assert one.best == max(r["validation/ndcg@10"] for r in seen if "validation/ndcg@10" in r)
    # Both attempts count, and the time between them does not.
    times = [record["time"] for record in seen]
    first = sum("loss" in r and r["step"] <= 7 for r in seen) + 1  # and a validation
    hours = (times[first - 1] - times[0] + times[-1] - times[first]) / 3600
    assert one.worker_hours == pytest.approx(hours)
    assert one.price == pytest.approx(8.0 * hours / 4)


def test_the_commands_tell_it(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path)
    train_here(wanted)
    said = longhaul("runs", str(tmp_path))
    assert said.returncode == 0, said.stderr
    assert "12 of 12" in said.stdout
    said = longhaul("status", wanted.run_url, "--json")
    assert json.loads(said.stdout)["state"] == "done"
    said = longhaul("status", str(tmp_path / "absent"))
    assert (said.returncode, said.stderr.count("\n")) == (1, 1)
    with pytest.raises(LonghaulError, match="no runs in"):
        list(standings(str(tmp_path / "absent")))


def test_what_was_stopped_is_not_begun_anew_by_its_launcher(
    small_set: Dataset, tmp_path: Path
) -> None:
    wanted = recipe(small_set, tmp_path)
    file = str(write(wanted, tmp_path))
    train_here(wanted, stop_before=5)
    request_stop(wanted.run_url, lasting=True)
    again = longhaul("train", file, **{LAUNCHED: "1"})
    assert again.returncode == 0, again.stderr
    assert "until it is launched again" in again.stdout
    stands = read_state(wanted.run_url)
    assert stands is not None
    assert (stands.state, stands.attempt) == ("preempted", 1)
    by_hand = longhaul("train", file)
    assert by_hand.returncode == 0, by_hand.stderr
    assert "done at step 12" in by_hand.stdout
    assert not stop_lasts(wanted.run_url)


def test_secrets_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("value\n")
    monkeypatch.setenv("LONGHAUL_TEST_VALUE", "another")  # so that it is restored afterwards
    monkeypatch.setenv(FILES, json.dumps({"LONGHAUL_TEST_VALUE": f"{tmp_path}/secret"}))
    read_secrets()
    assert os.environ["LONGHAUL_TEST_VALUE"] == "value"
    monkeypatch.setenv(FILES, json.dumps({"LONGHAUL_TEST_VALUE": f"{tmp_path}/absent"}))
    with pytest.raises(LonghaulError, match=r"LONGHAUL_TEST_VALUE should be in .*absent"):
        read_secrets()
