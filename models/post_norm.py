"""The shell that most models share: embedding, post-norm blocks, tied output with a bias.

What differs between LRURec, HydraRec, ELASTIC and BERT4Rec is how a block mixes the tokens of a
history, and how positions are told. A mixer says the first; everything else is here.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn

from models.base import ModelConfig, SequentialModel, State, add_and_norm, check_room
from models.batch import PackedBatch
from models.item_table import Embedding
from models.ops import bias_gelu_dropout, linear


class PostNormConfig(ModelConfig):
    """Settings of the shell."""

    blocks: int = Field(2, ge=1, description="pairs of mixing and feed-forward layers")
    dropout: float = Field(0.2, ge=0, lt=1, description="after embedding and in feed-forward")


class Mixer(nn.Module):
    """A layer that mixes tokens, residual and LayerNorm included."""

    @abstractmethod
    def forward(self, x: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """``[T, d]`` -> ``[T, d]``; ``batch`` tells the segments."""

    def flops(self, length: int) -> int:
        """Of the mixing of one token in a history of ``length``, beside the linear maps."""
        return 0

    def init_state(self, n: int) -> State:
        """The memory of ``n`` users without history."""
        return {}

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users: ``[n, d]`` -> ``[n, d]``, the new state."""
        raise NotImplementedError


class FeedForward(nn.Module):
    """x -> LayerNorm(x + dropout(W2 dropout(GELU(W1 x + b1)) + b2)), four times as wide inside."""

    def __init__(self, d: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.wide = nn.Linear(d, 4 * d)
        self.narrow = nn.Linear(4 * d, d)
        self.norm = nn.LayerNorm(d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, d]`` -> ``[T, d]``."""
        z = bias_gelu_dropout(
            linear(x, self.wide.weight), self.wide.bias, self.dropout, self.training
        )
        z = linear(z, self.narrow.weight, self.narrow.bias)
        return add_and_norm(self.norm, z, x, self.dropout)


class Block(nn.Module):
    """A mixer and the feed-forward layer behind it."""

    def __init__(self, mixer: Mixer, config: PostNormConfig) -> None:
        super().__init__()
        self.mixer = mixer
        self.feed_forward = FeedForward(config.d, config.dropout)

    def forward(self, x: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """``[T, d]`` -> ``[T, d]``."""
        out: torch.Tensor = self.feed_forward(self.mixer(x, batch))
        return out

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users: ``[n, d]`` -> ``[n, d]``, the new state."""
        x, state = self.mixer.step(x, state)
        return self.feed_forward(x), state


class PostNormModel(SequentialModel):
    """Embedding, blocks of (mixer, feed-forward layer), tied output with a bias.

    positions: how many learned positions there are; None for a model without.
    """

    config: PostNormConfig

    def __init__(
        self,
        config: PostNormConfig,
        catalogue_size: int,
        mixers: Sequence[Mixer],
        positions: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.max_history = positions
        self.item_embedding = Embedding(catalogue_size + 1, config.d)
        self.position_embedding = Embedding(positions, config.d) if positions else None
        self.item_bias = nn.Parameter(torch.zeros(catalogue_size + 1))
        self.embedding_norm = nn.LayerNorm(config.d)
        self.blocks = nn.ModuleList(Block(mixer, config) for mixer in mixers)

    @property
    def mixers(self) -> list[Mixer]:
        """The mixers of the blocks, first to last."""
        return [block.mixer for block in self.blocks]  # type: ignore[misc]

    def _embed(self, items: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """positions: int64 ``[T]`` where they are learned, else None."""
        x = self.item_embedding(items)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        return add_and_norm(self.embedding_norm, x, None, self.config.dropout)

    def embed(self, batch: PackedBatch) -> torch.Tensor:
        """What the first block is given, ``[T, d]``. ValueError beyond ``max_history``."""
        self.check_length(batch)
        positions = None if self.position_embedding is None else batch.positions()
        return self._embed(batch.items, positions)

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states ``[T, d]``. Raises ValueError for a segment beyond ``max_history``."""
        x = self.embed(batch)
        for block in self.blocks:
            x = self.run_block(block, x, batch)
        return x

    def init_state(self, n: int) -> State:
        """What each block's mixer keeps, as ``BLOCK.KEY``; ``length`` ``[n]`` with positions."""
        self.check_causal()
        state = self.number_states(mixer.init_state(n) for mixer in self.mixers)
        if self.position_embedding is not None:
            device = self.item_embedding.weight.device
            state["length"] = torch.zeros(n, dtype=torch.int64, device=device)
        return state

    def step(self, items: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users."""
        length = state.get("length")
        if length is not None:
            assert self.max_history is not None
            check_room(length, self.max_history)
        x, new = self.step_blocks(self.blocks, self._embed(items, length), state)
        if length is not None:
            new["length"] = length + 1
        return x, new

    def mixing_flops(self, length: int) -> int:
        """Of ``encode``, a token of a history of ``length``, beside the linear maps."""
        return sum(mixer.flops(length) for mixer in self.mixers)
