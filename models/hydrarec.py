"""HydraRec: Hydra attention for sequential recommendation (Mushtaque, arXiv 2501.01242).

Hydra attention is Bolya et al. (2022, arXiv 2209.07484): linear attention with as many heads as
channels and the cosine kernel, o_t = q_t * sum_s k_s * v_s with q and k of unit length over the
full width. Known of HydraRec are its abstract and reviews: it sits in BERT4Rec's architecture,
bidirectional with cloze training, and is best with causal masking. No code and no table of it are
public, so the rest is ours: dropout and output projection as in BERT4Rec, ``length_norm`` and
``rescale`` (the sum grows with the length, and its terms shrink with the width), rotary positions
(with one channel a head they only modulate q and k), and softmax attention below the last
``hydra_blocks`` blocks, as the vision model mixes them.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from models.attention import AttentionMixer
from models.base import State, add_and_norm, initialise
from models.batch import PackedBatch
from models.ops import linear, prefix_sum, rotate, segment_sum
from models.post_norm import Mixer, PostNormConfig, PostNormModel


class HydraRecConfig(PostNormConfig):
    """Settings of HydraRec."""

    name: Literal["hydrarec"] = "hydrarec"
    both_ways: bool = Field(False, description="look at later items too: for objective cloze")
    hydra_blocks: int | None = Field(
        None, ge=0, description="Hydra in the last so many blocks, attention below; null: in all"
    )
    heads: int = Field(2, ge=1, description="heads of the attention below; they divide d")
    length_norm: Literal["none", "learned"] = Field(
        "learned", description="divide the sum over n items by n^sigmoid(m), m learned a block"
    )
    rescale: bool = Field(True, description="q and k of length d^(1/4) instead of 1")
    positions: Literal["none", "learned", "rotary"] = "learned"
    max_history: int | None = Field(
        200, ge=1, description="learned positions, or events attention keeps; else null"
    )

    @property
    def causal(self) -> bool:
        return not self.both_ways

    @property
    def attention_blocks(self) -> int:
        """Blocks of softmax attention below the Hydra blocks."""
        return 0 if self.hydra_blocks is None else self.blocks - self.hydra_blocks

    @model_validator(mode="after")
    def _fits(self) -> "HydraRecConfig":
        if self.attention_blocks < 0:
            raise ValueError(f"hydra_blocks {self.hydra_blocks} exceeds blocks {self.blocks}")
        limited = self.positions == "learned" or self.attention_blocks > 0
        if limited != (self.max_history is not None):
            wanted = "a number" if limited else "null"
            raise ValueError(
                f"max_history must be {wanted} with positions {self.positions} and "
                f"{self.attention_blocks} attention blocks"
            )
        return self


class HydraMixer(Mixer):
    """x -> LayerNorm(x + dropout(W_o (q * S n^-sigmoid(m)))), S the sum of k * v so far."""

    def __init__(self, config: HydraRecConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d
        self.in_proj = nn.Linear(d, 3 * d)
        self.out_proj = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)
        # As sigmoid(0.5) = .62, the exponent starts between the mean and its square root.
        self.exponent = nn.Parameter(torch.tensor([0.5])) if config.length_norm != "none" else None

    def project(
        self, x: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q and k * v, ``[T, d]`` each, at least fp32: a sum of many terms follows."""
        q, k, v = linear(x, self.in_proj.weight, self.in_proj.bias).chunk(3, dim=-1)
        q, k = self._unit(q), self._unit(k)
        if self.config.positions == "rotary":
            q, k = rotate(q, positions), rotate(k, positions)
        return q, k * v

    def _unit(self, x: torch.Tensor) -> torch.Tensor:
        # Over the full width: over a head of one channel only the sign would be left.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        unit: torch.Tensor = wide / wide.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        return unit * self.config.d**0.25 if self.config.rescale else unit

    def read(
        self, x: torch.Tensor, q: torch.Tensor, total: torch.Tensor, count: torch.Tensor
    ) -> torch.Tensor:
        """The output for sums ``total`` ``[T, d]`` over ``count`` ``[T]`` items."""
        o = q * total
        if self.exponent is not None:
            power = torch.sigmoid(self.exponent.to(o.dtype))
            o = o * torch.exp(-power * torch.log(count.to(o.dtype)))[:, None]
        y = linear(o.to(x.dtype), self.out_proj.weight, self.out_proj.bias)
        return add_and_norm(self.norm, y, x, self.config.dropout)

    def forward(self, x: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """``[T, d]`` -> ``[T, d]``."""
        positions = batch.positions()
        q, kv = self.project(x, positions)
        if self.config.causal:
            return self.read(x, q, prefix_sum(kv, batch.starts()), positions + 1)
        total = batch.spread(segment_sum(kv, batch.offsets))
        return self.read(x, q, total, batch.spread(batch.offsets.diff()))

    def flops(self, length: int) -> int:
        """Two products and a sum a channel."""
        return 3 * self.config.d

    def init_state(self, n: int) -> State:
        """The sum ``[n, d]`` and how many items are in it, ``[n]``."""
        weight = self.in_proj.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        return {
            "sum": weight.new_zeros(n, self.config.d, dtype=wide),
            "count": torch.zeros(n, dtype=torch.int64, device=weight.device),
        }

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users: ``[n, d]`` -> ``[n, d]``, the new state."""
        q, kv = self.project(x, state["count"])
        total, count = state["sum"] + kv, state["count"] + 1
        return self.read(x, q, total, count), {"sum": total, "count": count}


class HydraRec(PostNormModel):
    """Hydra attention in the post-norm shell."""

    config: HydraRecConfig

    def __init__(self, config: HydraRecConfig, catalogue_size: int) -> None:
        below: list[Mixer] = [
            AttentionMixer(config, config.heads, config.causal, config.max_history)
            for _ in range(config.attention_blocks)
        ]
        hydra = [HydraMixer(config) for _ in range(config.blocks - len(below))]
        positions = config.max_history if config.positions == "learned" else None
        super().__init__(config, catalogue_size, [*below, *hydra], positions)
        self.max_history = config.max_history
        initialise(self)

    def diagnostics(self) -> dict[str, float]:
        """The exponent of each block's length normalisation."""
        told = {}
        for block, mixer in enumerate(self.mixers):
            if isinstance(mixer, HydraMixer) and mixer.exponent is not None:
                told[f"length_exponent/block_{block}"] = float(
                    torch.sigmoid(mixer.exponent.detach().float())
                )
        return told
