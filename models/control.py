"""Controls: models that every real one must beat to show that its mixing does something.

``mean`` gives each token the mean of its history so far, whatever the tokens are; ``none`` predicts
from the last item alone. Everything else is the shell of the real models.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from models.base import State, add_and_norm, initialise
from models.batch import PackedBatch
from models.ops import linear, prefix_sum
from models.post_norm import Mixer, PostNormConfig, PostNormModel


class ControlConfig(PostNormConfig):
    """Settings of the controls."""

    name: Literal["control"] = "control"
    mixer: Literal["mean", "none"] = Field("mean", description="what stands in for the mixing")


class MeanMixer(Mixer):
    """x -> LayerNorm(x + dropout(W_o mean of W_v x so far))."""

    def __init__(self, config: ControlConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.value = nn.Linear(config.d, config.d)
        self.out_proj = nn.Linear(config.d, config.d)
        self.norm = nn.LayerNorm(config.d)

    def _read(self, x: torch.Tensor, total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        mean = (total / count[:, None]).to(x.dtype)
        y = linear(mean, self.out_proj.weight, self.out_proj.bias)
        return add_and_norm(self.norm, y, x, self.dropout)

    def forward(self, x: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """``[T, d]`` -> ``[T, d]``."""
        values = linear(x, self.value.weight, self.value.bias)
        return self._read(x, prefix_sum(values, batch.starts()), batch.positions() + 1)

    def flops(self, length: int) -> int:
        """A sum and a division a channel."""
        return 2 * self.value.out_features

    def init_state(self, n: int) -> State:
        """The sum ``[n, d]`` and how many items are in it, ``[n]``."""
        weight = self.value.weight
        count = torch.zeros(n, dtype=torch.int64, device=weight.device)
        return {"sum": weight.new_zeros(n, len(weight)), "count": count}

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users: ``[n, d]`` -> ``[n, d]``, the new state."""
        total = state["sum"] + linear(x, self.value.weight, self.value.bias)
        count = state["count"] + 1
        return self._read(x, total, count), {"sum": total, "count": count}


class NoMixer(Mixer):
    """x -> x."""

    def forward(self, x: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """``[T, d]`` -> ``[T, d]``."""
        return x

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users, of which nothing is kept."""
        return x, state


class Control(PostNormModel):
    """A control in the post-norm shell."""

    config: ControlConfig

    def __init__(self, config: ControlConfig, catalogue_size: int) -> None:
        mixers = [
            MeanMixer(config) if config.mixer == "mean" else NoMixer() for _ in range(config.blocks)
        ]
        super().__init__(config, catalogue_size, mixers)
        initialise(self)
