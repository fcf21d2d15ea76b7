"""A run's name belongs to one recipe on one data set; mistakes and bad data stop it in one line."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import models
from models.losses import LossConfig
from models.losses.sampled_softmax import SampledSoftmax
from pipeline import world
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.member import TRAIN_END
from pipeline.train import loop
from pipeline.train.engine import Engine
from pipeline.train.loss import loss_of
from pipeline.train.optimizer import build_optimizer, learning_rate
from pipeline.train.run import commit_of, read_state, request_stop
from pipeline.world import World
from tests.conftest import prepare_histories, random_histories
from tests.train.runs import (
    assert_bit_equal,
    checkpoint_of,
    environment,
    final_tensors,
    longhaul,
    recipe,
    records,
    steps_in,
    train_apart,
    train_here,
    wait_for_step,
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


def test_a_run_of_before_there_were_losses_goes_on(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path)
    train_here(wanted, stop_before=4)
    config = Path(wanted.run_url) / "config.yaml"
    document = yaml.safe_load(config.read_text())
    del document["train"]["loss"]
    config.write_text(yaml.safe_dump(document))
    assert train_here(wanted).state == "done"


def test_another_loss_is_another_run(small_set: Dataset, tmp_path: Path) -> None:
    train_here(recipe(small_set, tmp_path), stop_before=4)
    other = recipe(small_set, tmp_path, train__loss={"name": "sampled_softmax", "uniform": 8})
    with pytest.raises(LonghaulError, match=r"train\.loss\.name: 'full_softmax' before"):
        train_here(other)


def test_a_loss_that_does_not_fit_the_catalogue_is_refused(
    small_set: Dataset, tmp_path: Path
) -> None:
    unfit = recipe(small_set, tmp_path, train__loss={"name": "gbce", "uniform": 5000, "t": 0.5})
    with pytest.raises(LonghaulError, match=r"^train\.loss: gbce with 5000 negatives needs more"):
        train_here(unfit)


def test_negatives_by_popularity_follow_the_training_parts(small_set: Dataset) -> None:
    items = small_set.manifest.catalogue_size
    counts = np.ones(items + 1)  # every item counts once more than it occurs
    for place in range(len(small_set)):
        member = small_set.read(place)
        for user in range(len(member.splits)):
            begin = int(member.offsets[user])
            trained = member.items[begin : begin + int(member.splits[user, TRAIN_END])]
            np.add.at(counts, trained, 1)
    model = models.build(models.config_of("lrurec")(name="lrurec", d=4), items)
    config = LossConfig(name="sampled_softmax", popularity=10)
    loss = loss_of(model, config, small_set, World(0, 1, torch.device("cpu")))
    assert isinstance(loss, SampledSoftmax)
    found = loss.expected(torch.arange(items + 1), torch.tensor([1]))
    np.testing.assert_allclose(found, 10 * counts / counts.sum(), rtol=1e-12)


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


@pytest.mark.parametrize("way", ["SIGTERM", "SIGINT", "SIGUSR1", "longhaul stop"])
def test_asked_to_stop_it_saves_and_says_preempted(
    small_set: Dataset, tmp_path: Path, way: str
) -> None:
    wanted = recipe(small_set, tmp_path, train__steps=100_000, train__checkpoint_every=100_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", str(write(wanted, tmp_path))],
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for_step(process, wanted, 1)
    if way == "longhaul stop":
        asked = longhaul("stop", wanted.run_url)
        assert "asked to stop at step" in asked.stdout
    else:
        process.send_signal(signal.Signals[way])
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    state = json.loads(Path(wanted.run_url, "state.json").read_text())
    assert state["state"] == "preempted"
    assert f"preempted at step {state['step']:,}" in said
    assert steps_in(wanted.run_url)[-1] == state["step"]


def test_starting_withdraws_an_old_request_to_stop(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path)
    request_stop(wanted.run_url)
    assert "done at step 12" in train_apart(wanted, tmp_path).stdout


def test_stopping_what_does_not_run_is_told(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, train__steps=1)
    train_here(wanted)
    for run, told in ((wanted.run_url, "is not running: done at step 1"), ("no", "no run at no")):
        asked = longhaul("stop", run)
        assert asked.returncode == 1
        assert told in asked.stderr


def test_an_attempt_tells_what_it_ran_with(
    small_set: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGHAUL_API_KEY", "secret")
    monkeypatch.setenv("LONGHAUL_STORAGE_PATIENCE", "77")
    wanted = recipe(small_set, tmp_path)
    train_here(wanted, stop_before=3)
    train_here(wanted)
    for attempt in (1, 2):
        text = Path(wanted.run_url, "attempts", f"attempt-{attempt}.json").read_text()
        kept = json.loads(text)
        assert kept["data"] == small_set.fingerprint
        assert kept["recipe_hash"] == wanted.hash()
        assert kept["versions"]["torch"] == torch.__version__
        assert kept["environment"]["LONGHAUL_STORAGE_PATIENCE"] == "77"
        assert "secret" not in text


def test_nothing_to_train_on_is_told(tmp_path: Path) -> None:
    dataset = prepare_histories([[1], [2], [1]], tmp_path)
    with pytest.raises(LonghaulError, match="has nothing to train on: no user has a training part"):
        train_here(recipe(dataset, tmp_path))


def test_a_gradient_that_is_not_finite_stops_the_run(small_set: Dataset, tmp_path: Path) -> None:
    wild = recipe(small_set, tmp_path, train__optimizer={"lr": 1e30, "clip_norm": None})
    with pytest.raises(LonghaulError, match=r"the gradient at step \d+ is not finite"):
        train_here(wild)


class Wild:
    """Spoils the gradient of one step, as a bad batch or a broken device would."""

    def __init__(self, engine: Engine, step: int) -> None:
        self.engine, self.left, self.armed = engine, step, True

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def update(self, lr: float) -> float:
        self.left -= 1
        if self.left == -1:
            for parameter in self.engine.model.parameters():
                assert parameter.grad is not None
                parameter.grad.fill_(float("nan"))
        return self.engine.update(lr)


def test_a_bad_step_is_passed_over_where_the_recipe_says_so(
    small_set: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = recipe(small_set, tmp_path, train__divergence={"policy": "skip"})
    built = loop.build_engine
    attempts = iter([9, -9])  # the first attempt only
    monkeypatch.setattr(loop, "build_engine", lambda *a: Wild(built(*a), next(attempts)))
    assert train_here(wanted).state == "done"
    assert "the gradient at step 9 is not finite" in capsys.readouterr().err
    state = checkpoint_of(wanted.run_url, 12).state
    assert state.skipped == [9]
    assert state.updates == 11
    passed = [record for record in records(wanted) if "skipped_targets" in record]
    assert [record["step"] for record in passed] == [9]
    # The same as a run that was told beforehand.
    told = recipe(small_set, tmp_path, "told", train__divergence={"policy": "skip"})
    monkeypatch.setattr(loop, "build_engine", built)
    with world.alone("cpu", 1) as here:
        assert loop._attempt(told, here, None, [9]).state == "done"
    assert_bit_equal(final_tensors(wanted), final_tensors(told))


def test_too_many_bad_steps_end_the_run(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(
        small_set,
        tmp_path,
        train__divergence={"policy": "skip", "gradient_norm": 1e-9, "most": 2},
    )
    with pytest.raises(LonghaulError, match=r"is above 1e-09 .*passed over before: \[0, 1\]"):
        train_here(wanted)
    state = read_state(wanted.run_url)
    assert state is not None
    assert state.state == "failed"


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


def test_a_commit_is_that_of_the_checkout_and_of_no_repository_around_it(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        told = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *told, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert commit_of(tmp_path) == "unknown"
    git("init")
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "inside").mkdir()
    git("add", "code.py")
    git("commit", "-m", "one")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert commit_of(tmp_path) == commit
    assert commit_of(tmp_path / "inside") == "unknown"
    (tmp_path / "code.py").write_text("2")
    assert commit_of(tmp_path) == f"{commit}-dirty"
