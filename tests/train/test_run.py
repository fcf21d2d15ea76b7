"""A run's name belongs to one recipe on one data set; mistakes and bad data stop it in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.train.optimizer import build_optimizer, learning_rate
from pipeline.train.run import read_state
from pipeline.world import World
from tests.conftest import prepare_histories, random_histories
from tests.train.runs import (
    environment,
    recipe,
    records,
    train_apart,
    train_here,
    wait_for_text,
    write,
)


def test_another_recipe_under_the_same_name_is_refused_with_the_difference(
    small_set: Dataset, tmp_path: Path
) -> None:
    train_here(recipe(small_set, tmp_path), stop_before=4)
    other = recipe(small_set, tmp_path, train__optimizer={"lr": 0.02, "clip_norm": 0.5})
    with pytest.raises(LonghaulError, match=r"train\.optimizer\.lr: 0\.01 before, 0\.02 now"):
        train_here(other)


def test_placement_and_logging_may_change(small_set: Dataset, tmp_path: Path) -> None:
    train_here(recipe(small_set, tmp_path), stop_before=4)
    other = recipe(
        small_set,
        tmp_path,
        train__log_every=2,
        train__checkpoint_every=3,
        placement={"workers": 2, "max_failures": 0},
    )
    assert train_here(other).state == "done"


def test_other_data_are_refused(small_set: Dataset, tmp_path: Path) -> None:
    train_here(recipe(small_set, tmp_path), stop_before=4)
    foreign = prepare_histories(random_histories(300, 50, seed=9), tmp_path / "foreign")
    with pytest.raises(LonghaulError, match="was trained on other data: its checkpoint names"):
        train_here(recipe(foreign, tmp_path))


def test_the_metrics_file_holds_every_attempt(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path)
    train_here(wanted, stop_before=5)
    train_here(wanted)
    logged = list(records(wanted))
    assert [record["step"] for record in logged] == list(range(1, 13))
    assert all(
        {"loss", "lr", "gradient_norm", "targets_per_second", "data_wait_share"} <= record.keys()
        for record in logged
    )
    assert logged[-1]["targets_seen"] > logged[0]["targets_seen"] > 0


def test_a_damaged_member_stops_all_workers_and_is_told(tmp_path: Path) -> None:
    dataset = prepare_histories(random_histories(300, 50, seed=1), tmp_path)
    shard = next(Path(dataset.url, "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[int(dataset.start[100]) + 600] ^= 255
    shard.write_bytes(content)
    wanted = recipe(dataset, tmp_path, train__steps=40)
    ended = train_apart(wanted, tmp_path, workers=2)
    assert ended.returncode == 1
    assert f"error: member {dataset.member[100]} of {shard} is damaged" in ended.stderr
    assert "Traceback (most recent call last)" not in ended.stderr.split("torch/distributed")[0]
    state = read_state(wanted.run_url)
    assert state is not None
    assert state.state == "failed"
    assert "is damaged" in str(state.reason)


def test_sigterm_saves_and_says_preempted(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, train__steps=100_000, train__checkpoint_every=100_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", str(write(wanted, tmp_path))],
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for_text(process, Path(wanted.run_url, "metrics", "attempt-1.jsonl"), "loss")
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    state = json.loads(Path(wanted.run_url, "state.json").read_text())
    assert state["state"] == "preempted"
    assert f"preempted at step {state['step']:,}" in said
    assert (Path(wanted.run_url) / "checkpoints" / f"step-{state['step']:08d}").exists()


def test_nothing_to_train_on_is_told(tmp_path: Path) -> None:
    dataset = prepare_histories([[1], [2], [1]], tmp_path)
    with pytest.raises(LonghaulError, match="has nothing to train on: no user has a training part"):
        train_here(recipe(dataset, tmp_path))


def test_a_gradient_that_is_not_finite_stops_the_run(small_set: Dataset, tmp_path: Path) -> None:
    wild = recipe(small_set, tmp_path, train__optimizer={"lr": 1e30, "clip_norm": None})
    with pytest.raises(LonghaulError, match=r"the gradient at step \d+ is not finite"):
        train_here(wild)


def test_alone_imports_no_ray(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, train__engine="deepspeed", train__steps=2)
    script = (
        "import sys; from pipeline import process; sys.argv = ['longhaul', 'train', sys.argv[1]]\n"
        "assert process.run_command() == 0\n"
        "assert 'deepspeed' in sys.modules; assert 'ray' not in sys.modules\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(write(wanted, tmp_path))],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "done at step 2" in ended.stdout


def test_learning_rate_of_each_schedule(small_set: Dataset, tmp_path: Path) -> None:
    def rates(schedule: str) -> list[float]:
        config = recipe(
            small_set,
            tmp_path,
            train__optimizer={
                "lr": 0.8,
                "warmup_steps": 4,
                "schedule": schedule,
                "final_lr": 0.0,
            },
        ).train.optimizer
        return [learning_rate(step, 12, config) for step in range(13)]

    assert rates("constant") == pytest.approx([0.2, 0.4, 0.6, 0.8] + [0.8] * 9)
    assert rates("linear")[4:] == pytest.approx([0.8 - 0.1 * i for i in range(9)])
    cosine = rates("cosine")
    assert cosine[4] == pytest.approx(0.8)
    assert cosine[8] == pytest.approx(0.4)
    assert cosine[12] == pytest.approx(0.0, abs=1e-12)


def test_weight_decay_groups(small_set: Dataset, tmp_path: Path) -> None:
    import models

    wanted = recipe(small_set, tmp_path)
    model = models.build(wanted.model, 10)
    decayed, spared = build_optimizer(model, wanted.train.optimizer).param_groups
    assert decayed["weight_decay"] == 0.01
    assert spared["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
    assert any(p is model.item_embedding.weight for p in decayed["params"])


def test_one_rank_fails_for_all() -> None:
    alone = World(0, 1, None)  # type: ignore[arg-type]
    with pytest.raises(LonghaulError, match="mine"):
        alone.agree(LonghaulError("mine"))
    assert alone.on_rank_zero(lambda: 5) == 5
