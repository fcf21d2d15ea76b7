"""Sizes of every model by name, and what a size costs.

``small`` is the published width where one is known. ``xl`` has a trunk of about a billion
parameters; ``large`` and ``xl`` recompute activations instead of keeping them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.base import ModelConfig, SequentialModel
from models.registry import build, config_of

_WIDTHS: dict[str, dict[str, Any]] = {
    "tiny": {"d": 32},
    "small": {"d": 64},
    "medium": {"d": 256},
    "large": {"d": 1024, "activation_checkpointing": True},
    "xl": {"d": 2048, "activation_checkpointing": True},
}
NAMES = tuple(_WIDTHS)

# Blocks, heads, experts, from the smallest size to the largest.
_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "bert4rec": {"blocks": (2, 2, 4, 12, 20), "heads": (1, 2, 4, 8, 16)},
    "control": {"blocks": (2, 2, 4, 12, 24)},
    "elastic": {
        "blocks": (2, 2, 4, 12, 18),
        "heads": (1, 2, 4, 8, 16),
        "experts": (8, 20, 32, 64, 64),
    },
    "hydrarec": {"blocks": (2, 2, 4, 12, 20)},
    "lrurec": {"blocks": (2, 2, 4, 12, 15)},
    "recgrela": {"blocks": (2, 4, 6, 12, 18), "heads": (4, 4, 8, 16, 32)},
    "sasrec": {"blocks": (2, 2, 4, 16, 40), "heads": (1, 1, 4, 8, 16)},
}


def settings(model: str, size: str) -> dict[str, Any]:
    """The settings that ``size`` stands for. ValueError for a size there is not."""
    if size not in _WIDTHS:
        raise ValueError(f"no size is called {size!r}; there are: {', '.join(NAMES)}")
    place = NAMES.index(size)
    return _WIDTHS[size] | {key: values[place] for key, values in _SHAPES[model].items()}


@dataclass(frozen=True)
class Profile:
    """What a model costs.

    trunk: parameters without the item table and its bias. state_bytes: memory of one user between
    two events, None where the model is not causal. flops: of the trunk, forward, a token, in
    histories of ``length`` (a multiplication and an addition are two).
    """

    model: str
    size: str
    settings: ModelConfig
    parameters: int
    trunk: int
    state_bytes: int | None
    flops: int
    length: int

    def as_document(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "settings": self.settings.model_dump(mode="json")}


def profile(name: str, size: str, catalogue_size: int, length: int) -> Profile:
    """Counts of a model, without memory for its weights."""
    config = config_of(name)(name=name, **settings(name, size))
    with torch.device("meta"):
        model = build(config, catalogue_size)
    parameters = sum(p.numel() for p in model.parameters())
    table = sum(part.numel() for part in model.item_scores() if part is not None)
    state = None
    if config.causal:
        state = sum(t.numel() * t.element_size() for t in model.init_state(1).values())
    return Profile(
        model=name,
        size=size,
        settings=config,
        parameters=parameters,
        trunk=parameters - table,
        state_bytes=state,
        flops=linear_flops(model) + model.mixing_flops(length),
        length=length,
    )


def linear_flops(model: SequentialModel) -> int:
    """Of the trunk's linear maps, forward, a token."""
    return 2 * sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def profiles(catalogue_size: int, length: int) -> list[Profile]:
    """Every model at every size."""
    return [profile(name, size, catalogue_size, length) for name in _SHAPES for size in NAMES]
