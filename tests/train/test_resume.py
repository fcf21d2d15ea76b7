"""A run that stops goes on as if nothing had happened, to the last bit."""

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from pipeline.config import Recipe
from pipeline.manifest import Dataset
from tests.train.runs import (
    assert_bit_equal,
    assert_close,
    command,
    digests,
    environment,
    final_tensors,
    recipe,
    records,
    train_apart,
    train_here,
    wait_for_step,
    write,
)

ENGINES = [
    ("torch", 1, "fp32"),
    ("torch", 1, "autocast"),
    ("deepspeed", 0, "fp32"),
    ("deepspeed", 0, "autocast"),
    ("deepspeed", 1, "fp32"),
    ("deepspeed", 1, "bf16"),
    ("deepspeed", 1, "autocast"),
    ("deepspeed", 2, "fp32"),
    ("deepspeed", 2, "bf16"),
    ("deepspeed", 3, "fp32"),
    ("deepspeed", 3, "bf16"),
]
MODELS = ["lrurec", "sasrec"]
SAMPLED = {
    "name": "sampled_softmax",
    "uniform": 20,
    "popularity": 10,
    "batch": 10,
    "block_tokens": 50,
}
GBCE = {"name": "gbce", "uniform": 20, "t": 0.7}
FULL = {"name": "full_softmax"}


@pytest.mark.parametrize(
    ("model", "loss", "engine", "stage", "precision"),
    [
        *[(model, FULL, *engine) for model in MODELS for engine in ENGINES],
        ("lrurec", SAMPLED, "torch", 1, "autocast"),
        ("lrurec", SAMPLED, "deepspeed", 1, "bf16"),
        ("sasrec", SAMPLED, "deepspeed", 3, "fp32"),
        ("lrurec", GBCE, "deepspeed", 2, "bf16"),
    ],
)
def test_stopped_and_resumed_is_bit_equal(
    small_set: Dataset,
    tmp_path: Path,
    model: str,
    loss: dict[str, object],
    engine: str,
    stage: int,
    precision: str,
) -> None:
    changes = {
        "train__engine": engine,
        "train__zero_stage": stage,
        "train__precision": precision,
        "model__name": model,
        "train__loss": loss,
    }
    whole = recipe(small_set, tmp_path, "whole", **changes)
    parted = recipe(small_set, tmp_path, "parted", **changes)
    assert train_here(whole).state == "done"
    stopped = train_here(parted, stop_before=7)
    assert (stopped.state, stopped.step) == ("preempted", 7)
    resumed = train_here(parted)
    assert (resumed.state, resumed.step, resumed.attempt) == ("done", 12, 2)
    assert_bit_equal(final_tensors(whole), final_tensors(parted))
    assert digests(whole) == digests(parted)


@pytest.mark.parametrize(("engine", "stage", "precision"), ENGINES)
@pytest.mark.parametrize("loss", [FULL, SAMPLED], ids=["full", "sampled"])
def test_every_engine_computes_the_same_updates(
    small_set: Dataset,
    tmp_path: Path,
    loss: dict[str, object],
    engine: str,
    stage: int,
    precision: str,
) -> None:
    plain = recipe(small_set, tmp_path, "plain", train__steps=5, train__loss=loss)
    other = recipe(
        small_set,
        tmp_path,
        "other",
        train__steps=5,
        train__engine=engine,
        train__zero_stage=stage,
        train__precision=precision,
        train__loss=loss,
    )
    train_here(plain)
    train_here(other)
    # Adam moves every weight by up to lr a step, whatever the gradient: a rounding of a tiny
    # gradient may turn its sign, so low precision is held to the size of a step.
    bound = 1e-6 if precision == "fp32" else 0.01
    a, b = final_tensors(plain), final_tensors(other)
    weights = [name for name in a if name.startswith("weight/")]
    difference = sum(float((a[n] - b[n]).abs().sum()) for n in weights) / sum(
        a[n].numel() for n in weights
    )
    assert difference < bound
    assert digests(plain) == digests(other)


def kill_at(wanted: Recipe, folder: Path, step: int) -> None:
    """Start training and SIGKILL it once its metrics tell of ``step``."""
    started = command(write(wanted, folder))
    process = subprocess.Popen(started, env=environment(), cwd=folder, text=True)
    wait_for_step(process, wanted, step)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_killed_at_a_random_step_is_bit_equal(small_set: Dataset, tmp_path: Path) -> None:
    # Long enough to be still running when the metrics are read, which appear every few seconds.
    changes = {"train__steps": 600, "train__checkpoint_every": 7, "model__d": 16}
    whole = recipe(small_set, tmp_path, "whole", **changes)
    killed = recipe(small_set, tmp_path, "killed", **changes)
    train_here(whole)
    step = random.randrange(7, 200)
    kill_at(killed, tmp_path, step)
    again = train_apart(killed, tmp_path)
    assert again.returncode == 0, again.stderr
    assert_bit_equal(final_tensors(whole), final_tensors(killed))
    assert digests(killed) == digests(whole)


def test_every_segment_is_trained_once_per_epoch_across_stops(
    small_set: Dataset, tmp_path: Path
) -> None:
    parted = recipe(small_set, tmp_path, "parted", train__steps=60, data__lanes=2)
    for stop in (3, 11, 12, 29, 41):
        train_here(parted, stop_before=stop)
    train_here(parted)
    by_epoch: dict[int, int] = {}
    for epoch, digest in digests(parted).values():
        by_epoch[epoch] = (by_epoch.get(epoch, 0) + digest) % 2**48
    last = max(by_epoch)
    assert last >= 2, "the run is too short to hold whole epochs"
    # Whole epochs train the same set of segments, so the sums of their hashes agree.
    assert len({digest for epoch, digest in by_epoch.items() if epoch < last}) == 1
    assert sorted(digests(parted)) == list(range(1, 61))


@pytest.mark.parametrize(
    ("engine", "stage", "loss"),
    [
        ("torch", 1, FULL),
        ("deepspeed", 1, FULL),
        pytest.param("deepspeed", 2, FULL, marks=pytest.mark.slow),
        ("deepspeed", 3, FULL),
        pytest.param("torch", 1, SAMPLED, marks=pytest.mark.slow),
        pytest.param("deepspeed", 3, SAMPLED, marks=pytest.mark.slow),
    ],
)
def test_the_same_steps_at_every_world_size(
    small_set: Dataset, tmp_path: Path, engine: str, stage: int, loss: dict[str, object]
) -> None:
    runs = {}
    for workers in (1, 2, 3):
        runs[workers] = recipe(
            small_set,
            tmp_path,
            f"world-{workers}",
            train__engine=engine,
            train__zero_stage=stage,
            train__steps=6,
            train__loss=loss,
        )
        ended = train_apart(runs[workers], tmp_path, workers)
        assert ended.returncode == 0, ended.stderr
    for workers in (2, 3):
        assert digests(runs[workers]) == digests(runs[1])
        assert_close(final_tensors(runs[workers]), final_tensors(runs[1]), atol=5e-6)
        losses = [[r["loss"] for r in records(run)] for run in (runs[1], runs[workers])]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_run_goes_on_at_other_world_sizes_stages_and_engines(
    small_set: Dataset, tmp_path: Path
) -> None:
    """2 workers at stage 1, then 3 at stage 3, then plain torch alone: the steps stay the same."""
    whole = recipe(small_set, tmp_path, "whole", train__steps=9)
    train_here(whole)
    legs = [(2, "deepspeed", 1, 3), (3, "deepspeed", 3, 6), (1, "torch", 1, 9)]
    for workers, engine, stage, steps in legs:
        # The steps are part of a run's identity only through its schedule; here it is constant.
        leg = recipe(
            small_set,
            tmp_path / f"{steps}",
            "moving",
            train__engine=engine,
            train__zero_stage=stage,
            train__steps=steps,
        )
        run = Path(leg.run_url)
        before = tmp_path / f"{steps - 3}" / "moving" / "checkpoints"
        if before.exists():
            run.mkdir(parents=True)
            before.rename(run / "checkpoints")
        ended = train_apart(leg, tmp_path, workers)
        assert ended.returncode == 0, ended.stderr
    assert_close(final_tensors(whole), final_tensors(leg), atol=5e-6)
