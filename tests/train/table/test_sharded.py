"""A sharded table trains what a dense one trains, at any world size, and goes on where it was."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Recipe
from pipeline.manifest import Dataset
from pipeline.stream.stream import Stream
from pipeline.train.assembly import build_engine
from pipeline.train.engine import Engine, Read
from pipeline.train.table.sharded import _round_at_random
from pipeline.world import alone
from tests.train.runs import (
    assert_bit_equal,
    assert_close,
    digests,
    final_tensors,
    recipe,
    records,
    train_apart,
    train_here,
)

# With the usual epsilon AdamW turns the rounding of a tiny gradient into a step of its own.
STEADY = {"lr": 0.01, "clip_norm": 0.5, "eps": 1e-4}
SAMPLED = {"train__loss": {"name": "sampled_softmax", "uniform": 12, "batch": 4}}
TABLES: dict[str, dict[str, Any]] = {
    "adam": {"home": "sharded"},
    "dense adam": {"home": "sharded", "optimizer": "dense_adam"},
    "adagrad": {"home": "sharded", "optimizer": "adagrad", "lr_factor": 5.0},
    "sgd": {"home": "sharded", "optimizer": "sgd", "lr_factor": 10.0},
    "bf16": {"home": "sharded", "storage": "bf16"},
}


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    """Everything, whole, from the pieces of one rank."""
    shapes = engine.shapes()
    found: dict[str, torch.Tensor] = {}
    for piece, part in engine.export():
        name = piece.tensor
        shape = shapes[name] if name in shapes else shapes[name.split("/", 1)[1]]
        whole = found.setdefault(name, torch.full((shape.numel(),), torch.nan))
        whole[piece.begin : piece.end] = part
    return {name: whole.view(-1) for name, whole in found.items()}


def reader(state: dict[str, torch.Tensor]) -> Read:
    def read(tensor: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        return state[tensor][begin:end].clone()

    return read


def train_steps(engine: Engine, wanted: Recipe, dataset: Dataset, steps: int) -> list[float]:
    """Norms of the gradients of the first steps of the recipe, in this process."""
    stream = Stream(dataset, wanted.data, seed=0, rank=0, world_size=1)
    stream.start(0)
    norms = []
    for step in range(steps):
        read = stream.next_step()
        for micro in read.micro:
            torch.manual_seed(100 * step + micro.lane)
            engine.backward(micro.batch, read.targets)
        norms.append(engine.update(wanted.train.optimizer.lr))
    stream.close()
    return norms


@pytest.mark.parametrize(
    ("engine", "stage", "offload"),
    [
        ("torch", 1, "none"),
        ("deepspeed", 0, "none"),
        ("deepspeed", 1, "none"),
        ("deepspeed", 2, "optimizer"),
        ("deepspeed", 3, "none"),
    ],
)
@pytest.mark.parametrize("loss", ["full", "sampled"])
@pytest.mark.parametrize("model", ["lrurec", "sasrec"])
def test_equals_the_dense_table(
    small_set: Dataset, tmp_path: Path, model: str, loss: str, engine: str, stage: int, offload: str
) -> None:
    """Forward, gradient, clipping, decay, and all rows' AdamW, whatever trains the trunk."""
    changes: dict[str, Any] = SAMPLED if loss == "sampled" else {}
    # A large epsilon, so that AdamW feels the size of a gradient, and with it the clipping.
    optimizer = {"lr": 0.5, "eps": 0.01, "clip_norm": 0.05}
    changes = {**changes, "model__name": model, "train__optimizer": optimizer}
    dense = recipe(small_set, tmp_path, **changes)
    sharded = recipe(
        small_set,
        tmp_path,
        **changes,
        train__table=TABLES["dense adam"],
        train__engine=engine,
        train__zero_stage=stage,
        train__offload=offload,
    )
    with alone("cpu", 1) as world:
        built = [build_engine(wanted, small_set, world) for wanted in (dense, sharded)]
        begun = state_of(built[0])
        built[1].restore(reader({**state_of(built[1]), **begun}), 0)
        norms = [
            train_steps(one, wanted, small_set, 4)
            for one, wanted in zip(built, (dense, sharded), strict=True)
        ]
        ended = [state_of(one) for one in built]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0][0] > 2 * optimizer["clip_norm"]
    ended[1].pop("updates/item_embedding.weight")
    assert_close(ended[0], ended[1], atol=3e-6)
    assert (
        float(
            (ended[0]["weight/item_embedding.weight"] - begun["weight/item_embedding.weight"])
            .abs()
            .max()
        )
        > 0.01
    )


@pytest.mark.parametrize(
    ("table", "precision"),
    [*((table, "fp32") for table in TABLES), ("adam", "bf16"), ("adam", "autocast")],
)
def test_stopped_and_resumed_is_bit_equal(
    small_set: Dataset, tmp_path: Path, table: str, precision: str
) -> None:
    changes = {
        "train__table": TABLES[table],
        "train__engine": "deepspeed",
        "train__zero_stage": 2,
        "train__precision": precision,
        **SAMPLED,
    }
    whole = recipe(small_set, tmp_path, "whole", **changes)
    parted = recipe(small_set, tmp_path, "parted", **changes)
    assert train_here(whole).state == "done"
    assert train_here(parted, stop_before=7).state == "preempted"
    assert train_here(parted).state == "done"
    assert_bit_equal(final_tensors(whole), final_tensors(parted))


@pytest.mark.parametrize(
    ("table", "loss", "engine", "stage"),
    [
        ("adam", SAMPLED, "torch", 1),
        ("dense adam", {}, "deepspeed", 2),
        ("adagrad", SAMPLED, "deepspeed", 3),
    ],
)
def test_the_same_steps_at_every_world_size(
    small_set: Dataset, tmp_path: Path, table: str, loss: dict[str, Any], engine: str, stage: int
) -> None:
    """Three lanes alone and on two workers, one of which has a dead micro-batch a step."""
    alone, two = (
        recipe(
            small_set,
            tmp_path,
            name,
            train__engine=engine,
            train__zero_stage=stage,
            train__steps=6,
            train__table=TABLES[table],
            train__validation={"every": 3},
            train__optimizer=STEADY,
            **loss,
        )
        for name in ("alone", "two")
    )
    train_here(alone)
    ended = train_apart(two, tmp_path, workers=2)
    assert ended.returncode == 0, ended.stderr
    assert digests(two) == digests(alone)
    assert_close(final_tensors(two), final_tensors(alone), atol=5e-6)
    told = [
        [r["validation/mean_rank"] for r in records(run) if "validation/mean_rank" in r]
        for run in (alone, two)
    ]
    assert len(told[0]) == 2
    assert told[0] == pytest.approx(told[1], rel=1e-3)


def test_a_run_goes_on_at_another_world_size(small_set: Dataset, tmp_path: Path) -> None:
    changes = {"train__table": TABLES["adam"], "train__optimizer": STEADY, **SAMPLED}
    whole = recipe(small_set, tmp_path, "whole", train__steps=9, **changes)
    train_here(whole)
    for workers, steps in ((1, 3), (3, 6), (2, 9)):
        leg = recipe(small_set, tmp_path / f"{steps}", "moving", train__steps=steps, **changes)
        before = tmp_path / f"{steps - 3}" / "moving" / "checkpoints"
        if before.exists():
            Path(leg.run_url).mkdir(parents=True)
            before.rename(Path(leg.run_url) / "checkpoints")
        ended = train_apart(leg, tmp_path, workers)
        assert ended.returncode == 0, ended.stderr
    assert_close(final_tensors(whole), final_tensors(leg), atol=5e-6)


def test_rounding_at_random_keeps_the_mean() -> None:
    noise = torch.Generator().manual_seed(0)
    rows = torch.full((100_000, 1), 1.0 + 2**-10)  # an eighth between two bf16 numbers
    rounded = _round_at_random(rows, noise).float()
    assert set(rounded.flatten().tolist()) == {1.0, 1.0 + 2**-7}
    spread = 2**-7 * (1 / 8 * 7 / 8 / len(rows)) ** 0.5
    assert abs(float(rounded.mean()) - float(rows[0])) < 5 * spread
    exact = torch.randn(1000, 3).bfloat16()
    assert torch.equal(_round_at_random(exact.float(), noise), exact)
