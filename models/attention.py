"""Softmax attention one event at a time, and as a layer of the post-norm shell."""

import torch
from torch import nn

from models.base import State, add_and_norm, check_room
from models.batch import PackedBatch
from models.ops import attention, linear
from models.post_norm import Mixer, PostNormConfig


def attend_to_kept(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: State
) -> tuple[torch.Tensor, State]:
    """One event of ``n`` users, attending to itself and the keys and values kept of the others.

    q, k, v: ``[n, heads, d / heads]``. state: ``keys`` and ``values`` ``[n, room, d]``, ``taken``
    ``[n]``: how many are kept. Returns ``[n, heads, d / heads]`` and the new state. ValueError
    where there is no more room.
    """
    keys, values, taken = state["keys"].clone(), state["values"].clone(), state["taken"]
    check_room(taken, keys.shape[1])
    users = torch.arange(q.shape[0], device=q.device)
    keys[users, taken], values[users, taken] = k.flatten(1), v.flatten(1)
    seen = torch.arange(keys.shape[1], device=q.device) <= taken[:, None]
    k, v = (kept.unflatten(2, q.shape[1:]).transpose(1, 2) for kept in (keys, values))
    attended = nn.functional.scaled_dot_product_attention(
        q[:, :, None], k, v, attn_mask=seen[:, None, None, :]
    )
    return attended.squeeze(2), {"keys": keys, "values": values, "taken": taken + 1}


def room_for_keys(weight: torch.Tensor, n: int, room: int) -> State:
    """The state of ``attend_to_kept`` before the first event; weight tells dtype and width."""
    shape = (n, room, weight.shape[1])
    return {
        "keys": weight.new_zeros(shape),
        "values": weight.new_zeros(shape),
        "taken": torch.zeros(n, dtype=torch.int64, device=weight.device),
    }


class AttentionMixer(Mixer):
    """x -> LayerNorm(x + dropout(W_o attention(x)))."""

    def __init__(
        self, config: PostNormConfig, heads: int, causal: bool, max_history: int | None
    ) -> None:
        super().__init__()
        if config.d % heads:
            raise ValueError(f"model.heads {heads} does not divide model.d {config.d}")
        self.heads, self.causal, self.max_history = heads, causal, max_history
        self.dropout = config.dropout
        self.in_proj = nn.Linear(config.d, 3 * config.d)
        self.out_proj = nn.Linear(config.d, config.d)
        self.norm = nn.LayerNorm(config.d)

    def _project(self, x: torch.Tensor) -> list[torch.Tensor]:
        """q, k, v, ``[T, heads, d / heads]`` each."""
        qkv = linear(x, self.in_proj.weight, self.in_proj.bias)
        return [part.unflatten(-1, (self.heads, -1)) for part in qkv.chunk(3, dim=-1)]

    def _finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        y = linear(attended.flatten(1), self.out_proj.weight, self.out_proj.bias)
        return add_and_norm(self.norm, y, x, self.dropout)

    def forward(self, x: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """``[T, d]`` -> ``[T, d]``."""
        q, k, v = self._project(x)
        return self._finish(x, attention(q, k, v, batch.offsets, self.causal))

    def flops(self, length: int) -> int:
        """Two products with all keys, or with half of them on average where causal."""
        return (2 if self.causal else 4) * length * self.in_proj.in_features

    def init_state(self, n: int) -> State:
        """Keys and values ``[n, max_history, d]``, events taken ``[n]``."""
        assert self.max_history is not None, "attention keeps what it has room for"
        return room_for_keys(self.in_proj.weight, n, self.max_history)

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users: ``[n, d]`` -> ``[n, d]``, the new state."""
        q, k, v = self._project(x)
        attended, state = attend_to_kept(q, k, v, state)
        return self._finish(x, attended), state
