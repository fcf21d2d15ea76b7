"""What every model offers: encode a packed batch, or take one event at a time."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from models.batch import PackedBatch

State = dict[str, torch.Tensor]
"""A model's memory of ``n`` users: tensors whose first dimension is ``n``."""


class ModelConfig(BaseModel):
    """Settings every model has. Each model's own settings stand beside the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    d: int = Field(64, ge=1, description="width of item vectors and hidden states")


class SequentialModel(nn.Module):
    """Hidden states from histories, scored against the item table.

    objectives: what the model may be trained for without seeing its own answer.
    max_history: events ``step`` can take before the state is full; None where there is no limit.
    """

    objectives: ClassVar[tuple[str, ...]] = ("next_item",)
    max_history: int | None = None
    item_embedding: nn.Embedding

    @abstractmethod
    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states ``[T, d]``: position ``t`` knows its segment's items up to ``t``."""

    @abstractmethod
    def init_state(self, n: int) -> State:
        """The state of ``n`` users without history."""

    @abstractmethod
    def step(self, items: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Take the next item of ``n`` users (int64 ``[n]``): hidden ``[n, d]`` and the new state.

        Over a history this equals ``encode`` at its last position, to rounding. Raises ValueError
        past ``max_history``.
        """

    def item_scores(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Table ``[V + 1, d]`` and bias ``[V + 1]`` or None.

        Scores are ``hidden @ table.T + bias``. Row 0 is the empty history; it is never a candidate.
        """
        return self.item_embedding.weight, None

    def undecayed(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: biases and norms."""
        return {name for name, _ in self.named_parameters() if "bias" in name or "norm" in name}

    def diagnostics(self) -> dict[str, float]:
        """Numbers worth a line in the metrics, computed now and then."""
        return {}


def truncated_normal_(tensor: torch.Tensor, **_: Any) -> torch.Tensor:
    """Fill with N(0, 0.02^2) cut at two standard deviations (LRURec section 1.6)."""
    return nn.init.trunc_normal_(tensor, std=0.02, a=-0.04, b=0.04)
