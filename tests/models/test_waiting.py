"""A training step on a GPU asks the GPU nothing: no operation whose result the host must know."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import models
from models import PackedBatch
from models.losses import LossConfig, build_loss
from models.ops import checks
from tests.models.ops.op_forms import form

WAITING = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
ITEMS = 30
LOSSES = {
    "full_softmax": {"name": "full_softmax"},
    "sampled_softmax": {"name": "sampled_softmax", "uniform": 6, "batch": 2, "block_tokens": 9},
    "gbce": {"name": "gbce", "uniform": 5, "t": 0.5},
}
MODELS: dict[str, dict[str, object]] = {
    "lrurec": {},
    "sasrec": {},
    "hydrarec": {},
    "elastic": {"experts": 4, "memory": "residual", "memory_side": 8, "memory_heads": 2},
    "recgrela": {},
    "bert4rec": {},
}


class Waits(TorchDispatchMode):
    """Notes the operations that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        of_unknown_size = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or by_mask or of_unknown_size:
            self.found.append(name)
        return function(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        *((name, "sampled_softmax") for name in MODELS),
        ("lrurec", "full_softmax"),
        ("lrurec", "gbce"),
    ],
)
def test_a_step_does_not_wait(name, loss, monkeypatch):
    # What a CPU is asked at once, a GPU checks by itself.
    monkeypatch.setattr(checks, "require", lambda holds, message: None)
    torch.manual_seed(0)
    with form("triton") as device:
        model = models.build(models.config_of(name)(name=name, d=16, **MODELS[name]), ITEMS)
        if device == "cpu":
            monkeypatch.setattr(model, "check_length", lambda batch: None)
        model = model.to(device).train()
        of_model = build_loss(model, LossConfig(**LOSSES[loss]), None)
        places = torch.arange(19)
        targets = torch.where(places % 5 == 2, 0, places % ITEMS + 1)
        batch = PackedBatch(places % ITEMS + 1, torch.tensor([0, 7, 7, 19]), targets)
        drawn = of_model.draw(batch)  # ahead, on the CPU
        batch = batch.to(device)
        drawn = drawn.to(device) if drawn else None
        with Waits() as waits:
            of_model(batch, drawn).backward()
    assert waits.found == []
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.item_embedding.weight.grad.abs().sum() > 0
