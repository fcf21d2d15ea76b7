"""The forecast against what a run really holds."""

import json
from pathlib import Path

import pytest
import torch

import models
from models.losses import build_loss
from pipeline.manifest import Dataset
from pipeline.train.activations import activation_bytes
from pipeline.train.engine import TorchEngine
from pipeline.train.forecast import forecast
from pipeline.train.memory import memory_of
from pipeline.world import World
from tests.train.runs import checkpoint_of, longhaul, recipe, train_here, write


@pytest.mark.parametrize("name", models.names())
def test_activations_grow_by_the_block(name: str) -> None:
    config = models.config_of(name)
    heads = {"heads": 2} if "heads" in config.model_fields else {}

    def at(blocks: int, tokens: int = 1024, **changes: object) -> int:
        settings = {"name": name, "d": 32, "blocks": blocks, **heads, **changes}
        return activation_bytes(config.model_validate(settings), "fp32", tokens)

    one, two, three = at(1), at(2), at(3)
    assert one > 1024 * 4 * 32  # at least what goes into the block
    assert three - two == pytest.approx(two - one, rel=0.01)
    assert two > one
    assert at(8, activation_checkpointing=True) < at(8) / 2
    wide = at(2, 4096, d=64), at(2, 4096, d=128), at(2, 4096, d=256)
    assert wide[2] - wide[1] == pytest.approx(2 * (wide[1] - wide[0]), rel=0.05)


def test_state_is_what_the_engine_holds(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, model__d=32)
    model = models.build(wanted.model, small_set.manifest.catalogue_size)
    loss = build_loss(model, wanted.train.loss)
    engine = TorchEngine(model, loss, wanted.train, World(0, 1, torch.device("cpu")))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    engine.update(0.1)
    states = engine._optimizer.state.values()
    found = forecast(wanted, small_set, 1)
    assert found.memory["weights"] == sum(p.nbytes for p in model.parameters())
    assert found.memory["gradients"] == gradients
    assert found.memory["optimizer"] == sum(
        tensor.nbytes for state in states for tensor in state.values() if tensor.dim()
    )


def test_stages_share_the_state_out(small_set: Dataset, tmp_path: Path) -> None:
    def memory(stage: int, precision: str = "fp32") -> dict[str, int]:
        changes = {"train__engine": "deepspeed", "train__precision": precision}
        wanted = recipe(small_set, tmp_path, train__zero_stage=stage, **changes)
        return memory_of(wanted, small_set, 2).held

    whole = memory(0)
    half = -(-whole["weights"] // 4 // 2)
    assert memory(1)["optimizer"] == 12 * half
    assert memory(3)["gradients"] == 4 * half
    assert memory(3)["weights"] == 4 * half
    assert memory(1, "bf16")["weights"] == whole["weights"] // 2


def test_counts_hold_for_the_run(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path)
    found = forecast(wanted, small_set, 1)
    train_here(wanted)
    last = checkpoint_of(wanted.run_url, 12)
    assert last.state.data.epoch <= found.epochs
    assert last.state.tokens_seen <= 12 * found.tokens_a_step
    written = sum(file.bytes for file in last.commit.files)
    assert found.checkpoint_bytes < written < found.checkpoint_bytes + 20_000  # headers


def test_a_dry_run_says_and_does_nothing(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path)
    file = write(wanted, tmp_path)
    said = longhaul("train", str(file), "--dry-run", "--json")
    assert json.loads(said.stdout)["steps"] == 12
    assert not Path(wanted.run_url).exists()
