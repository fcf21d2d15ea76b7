"""What a run will take, before it is started: steps, tokens, memory of a worker, checkpoints."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

import models
from models import ModelConfig, PackedBatch
from pipeline.config import Recipe
from pipeline.manifest import Dataset
from pipeline.stream.order import micro_steps
from pipeline.train.engine import KINDS

_PROBE_TOKENS = 256


@dataclass(frozen=True)
class Forecast:
    """Counts of a run, and the bytes of one worker among ``workers`` while it trains.

    Memory: ``weights`` (what the forward pass reads), ``gradients``, ``optimizer`` (masters where
    they are apart, moments), ``activations`` of a micro-batch (measured on a small one),
    ``reading`` (members kept, read ahead, and being trained). The engine's own buffers, the
    libraries and the ranking are not in it.
    """

    steps: int
    tokens_a_step: int
    train_events: int
    steps_an_epoch: int
    epochs: float
    workers: int
    micro_batches: int
    parameters: int
    table: int
    memory: dict[str, int]
    checkpoint_bytes: int
    checkpoints_kept: int

    def as_document(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "memory_total": sum(self.memory.values())}


def forecast(recipe: Recipe, dataset: Dataset, workers: int) -> Forecast:
    """The forecast of a recipe on ``workers`` workers."""
    with torch.device("meta"):
        model = models.build(recipe.model, dataset.manifest.catalogue_size)
    parameters = sum(p.numel() for p in model.parameters())
    table = sum(part.numel() for part in model.item_scores() if part is not None)
    tokens = recipe.data.lanes * recipe.data.lane_tokens
    events = int(dataset.train_events.sum())
    steps_an_epoch = max(1, -(-events // tokens))
    saved = activation_bytes(recipe.model) * recipe.data.lane_tokens
    return Forecast(
        steps=recipe.train.steps,
        tokens_a_step=tokens,
        train_events=events,
        steps_an_epoch=steps_an_epoch,
        epochs=recipe.train.steps / steps_an_epoch,
        workers=workers,
        micro_batches=micro_steps(workers, recipe.data.lanes),
        parameters=parameters,
        table=table,
        memory={
            **_state_bytes(recipe, parameters, workers),
            "activations": saved,
            "reading": _reading_bytes(recipe, dataset, workers),
        },
        checkpoint_bytes=4 * len(KINDS) * parameters,
        checkpoints_kept=recipe.train.keep_checkpoints + 1,
    )


def _state_bytes(recipe: Recipe, parameters: int, workers: int) -> dict[str, int]:
    """Weights, gradients and optimizer of one worker, by ZeRO stage and precision."""
    train = recipe.train
    stage = train.zero_stage if train.engine == "deepspeed" else 0
    low = 2 if train.precision == "bf16" else 4
    masters = stage > 0  # DeepSpeed keeps fp32 partitions beside what the forward pass reads
    return {
        "weights": low * parameters // (workers if stage == 3 else 1),
        "gradients": 4 * parameters // (workers if stage >= 2 else 1),
        "optimizer": 4 * (2 + masters) * parameters // (workers if stage else 1),
    }


def activation_bytes(config: ModelConfig) -> int:
    """Bytes that one token keeps for the backward pass, from forwards of one block and of two."""

    def saved(blocks: int) -> float:
        kept: dict[int, int] = {}
        size = min(_PROBE_TOKENS, getattr(config, "max_history", None) or _PROBE_TOKENS)
        items = torch.randint(1, 9, (size,))
        batch = PackedBatch(items, torch.tensor([0, size]), items)
        changes: dict[str, Any] = {"blocks": blocks}
        if hasattr(config, "hydra_blocks"):
            changes["hydra_blocks"] = None  # the kind of most blocks
        model = models.build(config.model_copy(update=changes), 8).train()
        ours = {parameter.data_ptr() for parameter in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in ours:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model.encode(batch)
        kept[0] = hidden.nbytes
        return sum(kept.values()) / size

    one, two = saved(1), saved(2)
    blocks = int(getattr(config, "blocks", 1))
    return round(one + (blocks - 1) * (two - one))


def _reading_bytes(recipe: Recipe, dataset: Dataset, workers: int) -> int:
    """Members kept and read ahead, and the groups that this worker's lanes are in."""
    whole = int((dataset.stop - dataset.start).sum())
    lanes = -(-recipe.data.lanes // workers)
    group = min(len(dataset), recipe.data.shuffle_members) / max(1, len(dataset)) * whole
    held = min(whole, int(recipe.reading.memory)) + min(whole, int(recipe.reading.ahead))
    return held + round(lanes * min(group, whole / lanes))
