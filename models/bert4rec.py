"""BERT4Rec: bidirectional attention trained to fill gaps (Sun et al., CIKM 2019).

As in the paper: post-norm blocks of attention and GELU feed-forward layers, learned positions, a
GELU projection before the tied output with its bias, cloze training. Ours: token 0, the reserved
item, stands for [MASK], and no pads exist.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from models.attention import AttentionMixer
from models.base import add_and_norm, initialise
from models.batch import PackedBatch
from models.ops import bias_gelu_dropout, linear
from models.post_norm import PostNormConfig, PostNormModel


class BERT4RecConfig(PostNormConfig):
    """Settings of BERT4Rec."""

    name: Literal["bert4rec"] = "bert4rec"
    heads: int = Field(2, ge=1, description="attention heads; they divide d")
    max_history: int = Field(
        201, ge=2, description="positions there are: the window and the item asked for"
    )

    @property
    def causal(self) -> bool:
        return False


class BERT4Rec(PostNormModel):
    """Attention both ways in the post-norm shell, and a projection of the hidden states."""

    config: BERT4RecConfig

    def __init__(self, config: BERT4RecConfig, catalogue_size: int) -> None:
        mixers = [AttentionMixer(config, config.heads, False, None) for _ in range(config.blocks)]
        super().__init__(config, catalogue_size, mixers, config.max_history)
        self.projection = nn.Linear(config.d, config.d)
        self.projection_norm = nn.LayerNorm(config.d)
        initialise(self)

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states ``[T, d]``, each from all items of its segment."""
        x = linear(super().encode(batch), self.projection.weight)
        x = bias_gelu_dropout(x, self.projection.bias, 0.0, self.training)
        return add_and_norm(self.projection_norm, x, None, 0.0)
