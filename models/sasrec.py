"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018).

Blocks as in the paper's code: queries are normalised, keys and values are not; the attention's
residual starts from the normalised query; ReLU feed-forward of width d; a last LayerNorm; tied
output. Ours: positions count from the segment's first token (so that a state can grow one event at
a time), dropout stands on the outputs of both layers but not on the attention weights, and training
is the full softmax at every position instead of one negative each.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from models.attention import attend_to_kept, room_for_keys
from models.base import ModelConfig, SequentialModel, State, add_and_norm, check_room
from models.batch import PackedBatch
from models.item_table import Embedding
from models.ops import attention, dropout, linear


class SASRecConfig(ModelConfig):
    """Settings of SASRec."""

    name: Literal["sasrec"] = "sasrec"
    blocks: int = Field(2, ge=1, description="pairs of attention and feed-forward layers")
    heads: int = Field(1, ge=1, description="attention heads; they divide d")
    dropout: float = Field(0.2, ge=0, lt=1, description="after embedding, attention, feed-forward")
    max_history: int = Field(200, ge=1, description="positions there are; at least window.length")


class SASRecBlock(nn.Module):
    """q = LN(x); x = q + drop(attention(q, x, x)); x = LN(x); x + drop(FFN(x))."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        d = config.d
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm = nn.LayerNorm(d, eps=1e-8)
        self.query = nn.Linear(d, d)
        self.key_value = nn.Linear(d, 2 * d)
        self.output = nn.Linear(d, d)
        self.feed_forward_norm = nn.LayerNorm(d, eps=1e-8)
        self.first = nn.Linear(d, d)
        self.second = nn.Linear(d, d)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x ``[T, d]`` -> normalised x ``[T, d]``; query, key, value ``[T, heads, d / heads]``."""
        normed = self.attention_norm(x)
        q = linear(normed, self.query.weight, self.query.bias)
        k, v = linear(x, self.key_value.weight, self.key_value.bias).chunk(2, dim=1)
        return normed, *(t.unflatten(1, (self.heads, -1)) for t in (q, k, v))

    def finish(self, normed: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What follows the attention, ``[T, d]``; attended ``[T, heads, d / heads]``."""
        mixed = linear(attended.flatten(1), self.output.weight, self.output.bias)
        x = add_and_norm(self.feed_forward_norm, mixed, normed, self.dropout)
        z = torch.relu(linear(x, self.first.weight, self.first.bias))
        z = dropout(z, self.dropout, self.training)
        z = linear(z, self.second.weight, self.second.bias)
        out: torch.Tensor = x + dropout(z, self.dropout, self.training)
        return out

    def forward(self, x: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """``[T, d]`` -> ``[T, d]``."""
        normed, q, k, v = self.project(x)
        return self.finish(normed, attention(q, k, v, batch.offsets))

    def init_state(self, n: int, room: int) -> State:
        """See ``models.attention.attend_to_kept``."""
        return room_for_keys(self.query.weight, n, room)

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users: ``[n, d]`` -> ``[n, d]``, the new state."""
        normed, q, k, v = self.project(x)
        attended, state = attend_to_kept(q, k, v, state)
        return self.finish(normed, attended), state


class SASRec(SequentialModel):
    """Item and position embeddings, attention blocks, a last norm, tied output."""

    config: SASRecConfig

    def __init__(self, config: SASRecConfig, catalogue_size: int) -> None:
        super().__init__()
        if config.d % config.heads:
            raise ValueError(f"model.heads {config.heads} does not divide model.d {config.d}")
        self.config = config
        self.max_history = config.max_history
        self.item_embedding = Embedding(catalogue_size + 1, config.d)
        self.position_embedding = Embedding(config.max_history, config.d)
        self.blocks = nn.ModuleList(SASRecBlock(config) for _ in range(config.blocks))
        self.last_norm = nn.LayerNorm(config.d, eps=1e-8)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter.data)

    def start_rows(
        self, rows: torch.Tensor, generator: torch.Generator, catalogue_size: int
    ) -> None:
        """See ``SequentialModel.start_rows``: Xavier's spread of a table of the whole catalogue."""
        spread = math.sqrt(2 / (catalogue_size + 1 + self.config.d))
        nn.init.normal_(rows, std=spread, generator=generator)

    def _embed(self, items: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = self.item_embedding(items) * math.sqrt(self.config.d)
        return dropout(x + self.position_embedding(positions), self.config.dropout, self.training)

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states ``[T, d]``. Raises ValueError for a segment beyond ``max_history``."""
        self.check_length(batch)
        x = self._embed(batch.items, batch.positions())
        for block in self.blocks:
            x = self.run_block(block, x, batch)
        normed: torch.Tensor = self.last_norm(x)
        return normed

    def mixing_flops(self, length: int) -> int:
        """Two products with half of the keys on average, in every block."""
        return 2 * length * self.config.d * self.config.blocks

    def init_state(self, n: int) -> State:
        """Keys and values of each block ``[n, max_history, d]`` and how many are kept ``[n]``."""
        room = self.config.max_history
        blocks: list[SASRecBlock] = list(self.blocks)  # type: ignore[arg-type]
        return self.number_states(block.init_state(n, room) for block in blocks)

    def step(self, items: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users, attending to the keys and values kept of the others."""
        taken = state["0.taken"]
        check_room(taken, self.config.max_history)
        x, state = self.step_blocks(self.blocks, self._embed(items, taken), state)
        normed: torch.Tensor = self.last_norm(x)
        return normed, state
