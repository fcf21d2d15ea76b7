"""LRURec: a linear recurrent unit for sequential recommendation (Yue et al., WSDM 2024).

Follows the official code where paper and code differ: no outer GELU in the feed-forward layer,
``gamma`` multiplies the input bias too, row 0 of the table is trained and a class of the softmax.
Ours is the form, not the mathematics: complex weights are stored as real and imaginary rows, so
the two projections are real matrix products of half the cost, and the recurrence runs on packed
segments. Its reset at a segment start is what the left-pad mask does in the published code; like
there, the state does not carry over from token 0. Left out is the imaginary half of the output
projection's bias, which nothing reads (64 numbers a block at d = 64).
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from models.base import ModelConfig, SequentialModel, State, truncated_normal_
from models.batch import PackedBatch
from models.ops import bias_gelu_dropout, diagonal_recurrence, dropout_add_norm, linear


class LRURecConfig(ModelConfig):
    """Defaults are the published ones."""

    name: Literal["lrurec"] = "lrurec"
    blocks: int = Field(2, ge=1, description="pairs of recurrent and feed-forward layers")
    dropout: float = Field(0.2, ge=0, lt=1, description="after embedding and in feed-forward")
    recurrence_dropout: float = Field(0.2, ge=0, lt=1, description="after the recurrent layer")
    r_min: float = Field(0.8, gt=0, lt=1, description="initial eigenvalues lie outside this radius")
    r_max: float = Field(0.99, gt=0, lt=1, description="and inside this one")


class LRULayer(nn.Module):
    """x -> LayerNorm(x + dropout(Re(C h) + c)), h_t = lambda h_{t-1} + gamma (B x_t + b).

    The H = 2d complex channels are stored as ``2H`` real ones, real parts first.
    """

    def __init__(self, config: LRURecConfig) -> None:
        super().__init__()
        d, channels = config.d, 2 * config.d
        self.dropout = config.recurrence_dropout
        # lambda = exp(-exp(nu_log) + i exp(theta_log)), uniform on the ring between the radii.
        span = config.r_max**2 - config.r_min**2
        square = torch.rand(channels) * span + config.r_min**2
        nu_log = torch.log(-0.5 * torch.log(square))
        theta_log = torch.log(2 * math.pi * torch.rand(channels))
        gamma_log = 0.5 * torch.log(1 - square)
        self.ring = nn.Parameter(torch.stack([nu_log, theta_log, gamma_log]))  # [3, H]
        self.in_proj = nn.Linear(d, 2 * channels)
        # Rows (Re C, -Im C): the product with (Re h, Im h) is Re(C h).
        self.out_proj = nn.Linear(2 * channels, d)
        self.norm = nn.LayerNorm(d)

    def eigenvalues(self) -> torch.Tensor:
        """lambda, at least fp32, ``[2, H]``: real parts, imaginary parts."""
        nu, theta, _ = _full_precision(self.ring).exp()
        modulus = torch.exp(-nu)
        return torch.stack([modulus * torch.cos(theta), modulus * torch.sin(theta)])

    def _drive(self, x: torch.Tensor) -> torch.Tensor:
        """gamma (B x + b), ``[T, 2H]``; gamma is folded into the weights, which are few."""
        gamma = _full_precision(self.ring[2]).exp().repeat(2).to(x.dtype)
        return linear(x, self.in_proj.weight * gamma[:, None], self.in_proj.bias * gamma)

    def _read(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        y = linear(h, self.out_proj.weight, self.out_proj.bias)
        return dropout_add_norm(
            y, x, self.norm.weight, self.norm.bias, self.dropout, self.training, self.norm.eps
        )

    def forward(self, x: torch.Tensor, reset: torch.Tensor) -> torch.Tensor:
        """x ``[T, d]``, reset bool ``[T]`` -> ``[T, d]``."""
        return self._read(x, diagonal_recurrence(self._drive(x), self.eigenvalues(), reset))

    def step(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One event of ``n`` users: x ``[n, d]``, h ``[n, 2H]`` -> output ``[n, d]``, new h."""
        re, im = h.chunk(2, dim=1)
        a, b = self.eigenvalues().to(h.dtype)
        h = self._drive(x) + torch.cat([a * re - b * im, a * im + b * re], dim=1)
        return self._read(x, h), h


def _full_precision(parameter: torch.Tensor) -> torch.Tensor:
    """bf16 as fp32: eigenvalues near the unit circle are raised to high powers."""
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))


class FeedForward(nn.Module):
    """x -> LayerNorm(x + dropout(W2 dropout(GELU(W1 x + b1)) + b2)), four times as wide inside."""

    def __init__(self, config: LRURecConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.wide = nn.Linear(config.d, 4 * config.d)
        self.narrow = nn.Linear(4 * config.d, config.d)
        self.norm = nn.LayerNorm(config.d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, d]`` -> ``[T, d]``."""
        z = bias_gelu_dropout(
            linear(x, self.wide.weight), self.wide.bias, self.dropout, self.training
        )
        z = linear(z, self.narrow.weight, self.narrow.bias)
        return dropout_add_norm(
            z, x, self.norm.weight, self.norm.bias, self.dropout, self.training, self.norm.eps
        )


class LRURec(SequentialModel):
    """Embedding, blocks of (recurrent layer, feed-forward layer), tied output with a bias."""

    def __init__(self, config: LRURecConfig, catalogue_size: int) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(catalogue_size + 1, config.d)
        self.item_bias = nn.Parameter(torch.empty(catalogue_size + 1))
        self.embedding_norm = nn.LayerNorm(config.d)
        self.recurrent = nn.ModuleList(LRULayer(config) for _ in range(config.blocks))
        self.feed_forward = nn.ModuleList(FeedForward(config) for _ in range(config.blocks))
        for name, parameter in self.named_parameters():
            if "norm" not in name and "ring" not in name:
                truncated_normal_(parameter.data)

    def _blocks(self) -> list[tuple[LRULayer, FeedForward]]:
        return list(zip(self.recurrent, self.feed_forward, strict=True))  # type: ignore[arg-type]

    def _embed(self, items: torch.Tensor) -> torch.Tensor:
        norm = self.embedding_norm
        x = self.item_embedding(items)
        return dropout_add_norm(
            x, None, norm.weight, norm.bias, self.config.dropout, self.training, norm.eps
        )

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states ``[T, d]``."""
        reset = batch.starts()
        reset[1:] |= batch.items[:-1] == 0
        x = self._embed(batch.items)
        for recurrent, feed_forward in self._blocks():
            x = feed_forward(recurrent(x, reset))
        return x

    def init_state(self, n: int) -> State:
        """Complex states of every layer as reals: ``h`` ``[n, blocks, 4d]``."""
        weight = self.item_embedding.weight
        return {"h": weight.new_zeros(n, self.config.blocks, 4 * self.config.d)}

    def step(self, items: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users; O(d^2) each, whatever came before."""
        x = self._embed(items)
        states = []
        for layer, (recurrent, feed_forward) in enumerate(self._blocks()):
            x, h = recurrent.step(x, state["h"][:, layer])
            x = feed_forward(x)
            states.append(h)
        # Nothing carries over from the empty history.
        kept = torch.stack(states, dim=1) * (items != 0)[:, None, None]
        return x, {"h": kept}

    def item_scores(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Table and bias; no temperature."""
        return self.item_embedding.weight, self.item_bias

    def diagnostics(self) -> dict[str, float]:
        """Mean modulus of lambda in each block: about .9 at first, training pulls it down."""
        told = {}
        for block, (layer, _) in enumerate(self._blocks()):
            nu = layer.ring[0].detach().float().exp()
            told[f"lambda_modulus/block_{block}"] = float(torch.exp(-nu).mean())
        return told
