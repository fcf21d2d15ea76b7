"""ELASTIC: linear dispatcher attention through interest experts (Deng et al., arXiv 2408.09380).

Known of it are abstract and reviews; no code, no table, no hyperparameter is public. In the
published attention K experts gather a history by softmax over time, and the tokens read the experts
by softmax over experts: ``form: encoder`` here, with a residual and a norm on the experts as in its
ancestor Luna (Ma et al. 2021). It sees the whole history, so it trains for the last item only.

Ours is ``form: causal``, the default: the gathering softmax runs over the prefix, which makes it
attention with bounded memory (Peng et al. 2022) and trains all positions at once. For that the
experts' queries are learned per block and do not depend on the history.

The interest memory is known to be a product-key memory out of which experts are selected. Two
readings: ``experts`` (the slots found by a query of the whole history are the experts; encoder
only, since the query would tell a causal model its future) and ``residual`` (a layer that tokens
read; in the encoder the experts do).
"""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from models.base import State, add_and_norm, initialise
from models.batch import PackedBatch
from models.memory import InterestMemory
from models.ops import (
    linear,
    running_softmax_experts,
    segment_softmax,
    segment_sum,
)
from models.post_norm import Block, Mixer, PostNormConfig, PostNormModel


class ElasticConfig(PostNormConfig):
    """Settings of ELASTIC; none of them is published."""

    name: Literal["elastic"] = "elastic"
    form: Literal["causal", "encoder"] = Field("causal", description="what the experts gather")
    experts: int = Field(20, ge=1, description="interest experts, a tenth of the history or so")
    heads: int = Field(2, ge=1, description="heads of both attentions; they divide d")
    positions: Literal["none", "learned"] = "learned"
    max_history: int | None = Field(200, ge=1, description="learned positions; else null")
    memory: Literal["none", "experts", "residual"] = Field(
        "none",
        description="the interest memory: experts are selected from it (form encoder only), or "
        "tokens (experts, with form encoder) read it as a residual layer",
    )
    memory_side: int = Field(64, ge=1, description="half-keys a codebook; squared: slots")
    memory_heads: int = Field(4, ge=1, description="searches a query; they divide experts")

    @property
    def causal(self) -> bool:
        return self.form == "causal"

    @property
    def memory_reads(self) -> int:
        """Slots that a head reads."""
        return max(1, self.experts // self.memory_heads)

    @model_validator(mode="after")
    def _fits(self) -> "ElasticConfig":
        if self.d % self.heads:
            raise ValueError(f"heads {self.heads} does not divide d {self.d}")
        if (self.positions == "learned") != (self.max_history is not None):
            raise ValueError("max_history is a number with positions learned, else null")
        if self.memory == "experts":
            if self.causal:
                raise ValueError(
                    "memory experts with form causal would select by the whole history and tell "
                    "the model its future: take memory residual, or form encoder"
                )
            if self.experts % self.memory_heads:
                raise ValueError(
                    f"memory_heads {self.memory_heads} does not divide experts {self.experts}"
                )
        if self.memory != "none" and self.memory_reads > self.memory_side:
            raise ValueError(
                f"{self.memory_reads} reads a head exceed memory_side {self.memory_side}"
            )
        return self


class ResidualMemory(nn.Module):
    """x -> LayerNorm(x + dropout(what the memory says to x))."""

    def __init__(self, config: ElasticConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        side, heads, reads = config.memory_side, config.memory_heads, config.memory_reads
        self.memory = InterestMemory(config.d, config.d, side, heads, reads)
        self.norm = nn.LayerNorm(config.d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, d]`` -> ``[n, d]``."""
        return add_and_norm(self.norm, self.memory.read(x).to(x.dtype), x, self.dropout)


class CausalDispatcher(Mixer):
    """Experts as running softmax averages over the prefix; each token reads its own prefix's."""

    def __init__(self, config: ElasticConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d
        self.experts = nn.Parameter(torch.randn(config.heads, config.experts, d // config.heads))
        self.in_proj = nn.Linear(d, 4 * d)
        self.out_proj = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)
        self.memory = ResidualMemory(config) if config.memory == "residual" else None

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scores for the experts ``[T, H, K]``; q, k, v of the reading ``[T, H, d / H]``."""
        parts = linear(x, self.in_proj.weight, self.in_proj.bias).chunk(4, dim=-1)
        key, q, k, v = (part.unflatten(-1, (self.config.heads, -1)) for part in parts)
        scores = torch.einsum("the,hke->thk", key, self.experts.to(key.dtype))
        return scores / key.shape[-1] ** 0.5, q, k, v

    def finish(self, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """What follows the reading, ``[T, d]``."""
        y = linear(read.flatten(1), self.out_proj.weight, self.out_proj.bias)
        x = add_and_norm(self.norm, y, x, self.config.dropout)
        return x if self.memory is None else self.memory(x)

    def forward(self, x: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """``[T, d]`` -> ``[T, d]``."""
        scores, q, k, v = self.project(x)
        return self.finish(x, running_softmax_experts(scores, q, k, v, batch.starts()))

    def flops(self, length: int) -> int:
        """Scoring the experts, renewing their keys and values, and reading them."""
        return 12 * self.config.experts * self.config.d

    def init_state(self, n: int) -> State:
        """Log-normalisers ``[n, H, K]``, averages of keys and values ``[n, H, K, d / H]``."""
        heads, experts, width = self.experts.shape
        wide = torch.promote_types(self.experts.dtype, torch.float32)
        empty = self.experts.new_zeros(n, heads, experts, width, dtype=wide)
        log_sum = self.experts.new_full((n, heads, experts), float("-inf"), dtype=wide)
        return {"log_sum": log_sum, "keys": empty, "values": empty.clone()}

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users: ``[n, d]`` -> ``[n, d]``, the new state."""
        scores, q, k, v = (part.to(state["keys"].dtype) for part in self.project(x))
        log_sum = torch.logaddexp(state["log_sum"], scores)
        old = torch.exp(state["log_sum"] - log_sum)[..., None]
        new = torch.exp(scores - log_sum)[..., None]
        keys = old * state["keys"] + new * k[:, :, None]
        values = old * state["values"] + new * v[:, :, None]
        weights = torch.einsum("nhe,nhke->nhk", q, keys) / q.shape[-1] ** 0.5
        read = torch.einsum("nhk,nhke->nhe", weights.softmax(-1), values)
        kept = {"log_sum": log_sum, "keys": keys, "values": values}
        return self.finish(x, read.to(x.dtype)), kept


class EncoderDispatcher(Mixer):
    """Experts ``[S, K, d]`` gather a whole segment, its tokens read them; both are passed on."""

    def __init__(self, config: ElasticConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d
        self.gather_query = nn.Linear(d, d)
        self.gather_out = nn.Linear(d, d)
        self.gather_norm = nn.LayerNorm(d)
        self.token_proj = nn.Linear(d, 3 * d)  # key and value of the gathering, query of reading
        self.expert_proj = nn.Linear(d, 2 * d)  # key and value of the reading
        self.out_proj = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)
        self.memory = ResidualMemory(config) if config.memory == "residual" else None

    def flops(self, length: int) -> int:
        """Two softmaxes over experts and tokens; the experts' own maps are not counted."""
        return 8 * self.config.experts * self.config.d

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, experts: torch.Tensor, batch: PackedBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x ``[T, d]``, experts ``[S, K, d]`` -> the same, renewed. Needs ``T K d`` numbers."""
        heads, p = self.config.heads, self.config.dropout
        scale = (self.config.d // heads) ** -0.5
        parts = linear(x, self.token_proj.weight, self.token_proj.bias).chunk(3, dim=-1)
        key, value, query = (part.unflatten(-1, (heads, -1)) for part in parts)

        asked = linear(experts, self.gather_query.weight, self.gather_query.bias)
        asked = batch.spread(asked.unflatten(-1, (heads, -1)))  # [T, K, H, d / H]
        scores = torch.einsum("tkhe,the->tkh", asked, key) * scale
        weights = segment_softmax(scores.flatten(1), batch.offsets).view_as(scores)
        weighted = weights[..., None] * value[:, None]
        gathered = segment_sum(weighted.flatten(1), batch.offsets).view_as(experts)
        y = linear(gathered.to(x.dtype), self.gather_out.weight, self.gather_out.bias)
        experts = add_and_norm(self.gather_norm, y, experts, p)
        if self.memory is not None:
            experts = self.memory(experts.flatten(0, 1)).view_as(experts)

        told = linear(experts, self.expert_proj.weight, self.expert_proj.bias)
        told_key, told_value = (
            batch.spread(part.unflatten(-1, (heads, -1))) for part in told.chunk(2, dim=-1)
        )
        scores = torch.einsum("the,tkhe->tkh", query, told_key) * scale
        read = torch.einsum("tkh,tkhe->the", scores.softmax(1), told_value).flatten(1)
        y = linear(read, self.out_proj.weight, self.out_proj.bias)
        return add_and_norm(self.norm, y, x, p), experts


class ExpertSelection(nn.Module):
    """Picks a history's experts from the memory by a query of all its tokens and of the last."""

    def __init__(self, config: ElasticConfig) -> None:
        super().__init__()
        d = config.d
        self.look = nn.Linear(d, d)
        self.weigh = nn.Linear(d, 1, bias=False)
        self.memory = InterestMemory(
            2 * d, d, config.memory_side, config.memory_heads, config.memory_reads
        )

    def forward(self, x: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """x ``[T, d]`` -> experts ``[S, K, d]``."""
        looked = torch.tanh(linear(x, self.look.weight, self.look.bias))
        weights = segment_softmax(linear(looked, self.weigh.weight), batch.offsets)
        user = segment_sum(weights * x, batch.offsets).to(x.dtype)
        query = torch.cat([user, x[batch.offsets[1:] - 1]], dim=1)
        weights, slots = self.memory.search(query)
        # Of mean one, so that a gradient reaches the keys.
        weights = weights * weights.shape[-1]
        found = self.memory.interests[slots] * weights[..., None]
        return found.flatten(1, 2).to(x.dtype)


class Elastic(PostNormModel):
    """Dispatcher attention in the post-norm shell."""

    config: ElasticConfig

    def __init__(self, config: ElasticConfig, catalogue_size: int) -> None:
        made = CausalDispatcher if config.causal else EncoderDispatcher
        mixers = [made(config) for _ in range(config.blocks)]
        super().__init__(config, catalogue_size, mixers, config.max_history)
        if not config.causal:
            self.experts = nn.Parameter(torch.randn(config.experts, config.d) * config.d**-0.5)
            self.selection = ExpertSelection(config) if config.memory == "experts" else None
        initialise(self)

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states ``[T, d]``. Raises ValueError for a segment beyond ``max_history``."""
        if self.config.causal:
            return super().encode(batch)
        x = self.embed(batch)
        experts = self.experts.expand(len(batch.offsets) - 1, -1, -1)
        if self.selection is not None:
            experts = experts + self.selection(x, batch)

        def exchange(block: Block, x: torch.Tensor, experts: torch.Tensor) -> Any:
            x, experts = block.mixer(x, experts, batch)
            return block.feed_forward(x), experts

        for block in self.blocks:
            x, experts = self.run_block(exchange, block, x, experts)
        return x

    def undecayed(self) -> set[str]:
        """Biases, norms, and the interests: a slot that is seldom read would fade."""
        names = {name for name, _ in self.named_parameters()}
        return super().undecayed() | {name for name in names if name.endswith("interests")}

    def diagnostics(self) -> dict[str, float]:
        """How evenly the interest memories were read since the last look."""
        told: dict[str, float] = {}
        for name, module in self.named_modules():
            if isinstance(module, InterestMemory):
                told |= {f"{key}/{name}": value for key, value in module.usage().items()}
        return told
