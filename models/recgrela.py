"""RecGRELA: gated rotary-enhanced linear attention (arXiv 2506.13315, TBI805/RecGRELA 608a39b).

As in the code: rotary positions on the full width before the split into heads (so that heads get
frequency bands of their own), rotated keys and queries in the numerator and plain ones in the
denominator, V taken from the gate's input projection, a causal depthwise convolution with SiLU as
shortcut, a SiLU gate, pre-norm blocks, DropPath on the mixing only, no last norm, tied output
without bias.

Published is a form that sums over the whole padded row (``form: padded``, for comparison). Ours are
``causal``, where every sum runs over the prefix, which trains all positions at once and takes one
event at a time, and ``both_ways``, the published sums without the pads. A model of one block keeps
its residuals here; the code drops them.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from models.base import ModelConfig, SequentialModel, State, add_and_norm
from models.batch import PackedBatch
from models.item_table import Embedding
from models.ops import (
    bias_gelu_dropout,
    causal_convolution,
    causal_linear_attention,
    dropout,
    linear,
    prefix_sum,
    rotate,
    segment_sum,
)

_EPS = 1e-6  # in the denominator, a token
_NORM_EPS = 1e-12
_TAPS = 4  # of the convolution


class RecGRELAConfig(ModelConfig):
    """Defaults are the published ones."""

    name: Literal["recgrela"] = "recgrela"
    form: Literal["causal", "both_ways", "padded"] = Field(
        "causal", description="what a token sees; padded: the published row, pads and all"
    )
    blocks: int = Field(4, ge=1, description="pairs of mixing and feed-forward layers")
    heads: int = Field(4, ge=1, description="heads of the linear attention; they divide d")
    dropout: float = Field(0.1, ge=0, lt=1, description="after embedding and in feed-forward")
    drop_path: float = Field(0.1, ge=0, lt=1, description="chance that a segment skips a mixing")
    max_history: int | None = Field(
        None, ge=1, description="form padded: the length of its rows; else null"
    )

    @property
    def causal(self) -> bool:
        return self.form == "causal"

    @model_validator(mode="after")
    def _fits(self) -> "RecGRELAConfig":
        if self.d % self.heads or self.d % 2:
            raise ValueError(f"d {self.d} must be even and a multiple of heads {self.heads}")
        if (self.form == "padded") != (self.max_history is not None):
            raise ValueError("max_history is the length of the rows of form padded, else null")
        return self


class GRELABlock(nn.Module):
    """x + DropPath(W3 ((attention + shortcut) * gate)), then x + FFN(LayerNorm(x))."""

    def __init__(self, config: RecGRELAConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d
        self.mixing_norm = nn.LayerNorm(d, eps=_NORM_EPS)
        self.gate = nn.Linear(d, d)
        self.value = nn.Linear(d, d)
        self.query_key = nn.Linear(d, 2 * d)
        self.taps = nn.Parameter(torch.empty(d, _TAPS))
        self.taps_bias = nn.Parameter(torch.empty(d))
        self.out = nn.Linear(d, d)
        self.feed_forward_norm = nn.LayerNorm(d, eps=_NORM_EPS)
        self.wide = nn.Linear(d, 4 * d)
        self.narrow = nn.Linear(4 * d, d)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """gate, v, phi(q), phi(k) of x ``[T, d]``; phi is ELU + 1."""
        h = self.mixing_norm(x)
        v = linear(h, self.value.weight, self.value.bias)
        q, k = linear(v, self.query_key.weight, self.query_key.bias).chunk(2, dim=-1)
        gate = nn.functional.silu(linear(h, self.gate.weight, self.gate.bias))
        return gate, v, nn.functional.elu(q) + 1, nn.functional.elu(k) + 1

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, d]`` -> ``[T, heads, d / heads]``."""
        heads: torch.Tensor = x.unflatten(-1, (self.config.heads, -1))
        return heads

    def finish(
        self,
        x: torch.Tensor,
        gate: torch.Tensor,
        attended: torch.Tensor,
        convolved: torch.Tensor,
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What follows the mixing, ``[T, d]``; kept ``[T, 1]`` scales it (DropPath)."""
        mixed = (attended.to(x.dtype) + nn.functional.silu(convolved)) * gate
        mixed = linear(mixed, self.out.weight, self.out.bias)
        x = x + (mixed if kept is None else mixed * kept)
        p = self.config.dropout
        z = self.feed_forward_norm(x)
        z = bias_gelu_dropout(linear(z, self.wide.weight), self.wide.bias, p, self.training)
        z = linear(z, self.narrow.weight, self.narrow.bias)
        return x + dropout(z, p, self.training)

    def forward(self, x: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """``[T, d]`` -> ``[T, d]``."""
        gate, v, q, k = self.project(x)
        positions, starts = batch.positions(), batch.starts()
        rotated_q, rotated_k = self.split(rotate(q, positions)), self.split(rotate(k, positions))
        values = self.split(v)
        if self.config.causal:
            numerator = causal_linear_attention(rotated_q, rotated_k, values, starts)
            keys, count = prefix_sum(k, starts), positions + 1
        else:
            outer = torch.einsum("thm,thn->thmn", rotated_k, values)
            sums = segment_sum(outer.flatten(1), batch.offsets).view(-1, *outer.shape[1:])
            numerator = torch.einsum("thm,thmn->thn", rotated_q, batch.spread(sums))
            keys = batch.spread(segment_sum(k, batch.offsets))
            count = batch.spread(batch.offsets.diff())
        attended = self.divide(numerator, q, keys, count)
        convolved = causal_convolution(v, self.taps, self.taps_bias, starts)
        return self.finish(x, gate, attended, convolved, self._drop_path(x, batch))

    def divide(
        self, numerator: torch.Tensor, q: torch.Tensor, keys: torch.Tensor, count: torch.Tensor
    ) -> torch.Tensor:
        """``[T, d]``: the numerator ``[T, heads, d / heads]`` over q . keys + eps count, a head."""
        denominator = (self.split(q) * self.split(keys)).sum(-1) + _EPS * count[:, None]
        return (numerator / denominator[..., None]).flatten(1)

    def _drop_path(self, x: torch.Tensor, batch: PackedBatch) -> torch.Tensor | None:
        p = self.config.drop_path
        if not self.training or not p:
            return None
        kept = torch.rand(len(batch.offsets) - 1, 1, device=x.device) >= p
        return batch.spread(kept.to(x.dtype) / (1 - p))

    def init_state(self, n: int) -> State:
        """S in the rotating frame ``[n, heads, m, m]``, keys ``[n, d]``, last values, count."""
        weight = self.value.weight
        d, heads = self.config.d, self.config.heads
        wide = torch.promote_types(weight.dtype, torch.float32)
        return {
            "sum": weight.new_zeros(n, heads, d // heads, d // heads, dtype=wide),
            "keys": weight.new_zeros(n, d, dtype=wide),
            "values": weight.new_zeros(n, _TAPS - 1, d),
            "count": torch.zeros(n, dtype=torch.int64, device=weight.device),
        }

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users; positions rotate the state back, so they never run out."""
        gate, v, q, k = self.project(x)
        total = _turned_back(state["sum"])
        wide = total.dtype
        outer = torch.einsum("nhm,nhv->nhmv", self.split(k).to(wide), self.split(v).to(wide))
        total = total + outer
        keys, count = state["keys"] + k, state["count"] + 1
        numerator = torch.einsum("nhm,nhmv->nhv", self.split(q).to(wide), total)
        attended = self.divide(numerator, q, keys, count)
        window = torch.cat([state["values"], v[:, None]], dim=1)
        convolved = (window * self.taps.T).sum(1) + self.taps_bias
        new = {"sum": total, "keys": keys, "values": window[:, 1:], "count": count}
        return self.finish(x, gate, attended, convolved), new


def _turned_back(total: torch.Tensor) -> torch.Tensor:
    """``[n, heads, m, v]``, its rows as channels of the full width rotated by one position back."""
    heads, rows = total.shape[1:3]
    # Where a pair (1, 0) comes to lie are the cosine and the sine of its angle.
    units = total.new_tensor([1.0, 0.0]).repeat(heads * rows // 2)
    back = torch.full((1,), -1, dtype=torch.int64, device=total.device)
    cos, sin = rotate(units[None], back).view(heads, -1, 2, 1).unbind(2)
    first, second = total.unflatten(2, (-1, 2)).unbind(3)
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=3)
    return turned.flatten(2, 3)


class RecGRELA(SequentialModel):
    """Embedding, gated linear attention blocks, tied output."""

    config: RecGRELAConfig

    def __init__(self, config: RecGRELAConfig, catalogue_size: int) -> None:
        super().__init__()
        self.config = config
        self.max_history = config.max_history
        self.item_embedding = Embedding(catalogue_size + 1, config.d)
        self.embedding_norm = nn.LayerNorm(config.d, eps=_NORM_EPS)
        self.blocks = nn.ModuleList(GRELABlock(config) for _ in range(config.blocks))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, GRELABlock):  # torch's own start of a convolution
                nn.init.uniform_(module.taps, -(_TAPS**-0.5), _TAPS**-0.5)
                nn.init.uniform_(module.taps_bias, -(_TAPS**-0.5), _TAPS**-0.5)

    def start_rows(
        self, rows: torch.Tensor, generator: torch.Generator, catalogue_size: int
    ) -> None:
        """See ``SequentialModel.start_rows``."""
        nn.init.normal_(rows, std=0.02, generator=generator)

    def _embed(self, items: torch.Tensor) -> torch.Tensor:
        x = self.item_embedding(items)
        return add_and_norm(self.embedding_norm, x, None, self.config.dropout)

    def mixing_flops(self, length: int) -> int:
        """State renewed and read in every head, rotation, convolution, denominator."""
        d, blocks = self.config.d, self.config.blocks
        return blocks * (4 * d * (d // self.config.heads) + (12 + 2 * _TAPS + 3) * d)

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states ``[T, d]``."""
        if self.config.max_history is not None:
            self.check_length(batch)
            whole, real = _padded(batch, self.config.max_history)
            return self._mix(whole)[real]
        return self._mix(batch)

    def _mix(self, batch: PackedBatch) -> torch.Tensor:
        x = self._embed(batch.items)
        for block in self.blocks:
            x = self.run_block(block, x, batch)
        return x

    def init_state(self, n: int) -> State:
        """What each block keeps, as ``BLOCK.KEY``."""
        self.check_causal()
        blocks: list[GRELABlock] = list(self.blocks)  # type: ignore[arg-type]
        return self.number_states(block.init_state(n) for block in blocks)

    def step(self, items: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users."""
        return self.step_blocks(self.blocks, self._embed(items), state)


def _padded(batch: PackedBatch, length: int) -> tuple[PackedBatch, torch.Tensor]:
    """Every segment filled up with token 0 at its end, and which tokens are real, bool."""
    lengths = batch.offsets.diff()
    real = (torch.arange(length, device=lengths.device) < lengths[:, None]).flatten()
    items = batch.items.new_zeros(len(real))
    items[real] = batch.items
    offsets = torch.arange(len(lengths) + 1, device=lengths.device) * length
    return PackedBatch(items, offsets, torch.zeros_like(items)), real
