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
from torch.nn import functional

from models.base import State, Step, add_and_norm, truncated_normal_
from models.batch import PackedBatch
from models.ops import diagonal_recurrence, linear
from models.post_norm import Block, Mixer, PostNormConfig, PostNormModel


class LRURecConfig(PostNormConfig):
    """Defaults are the published ones."""

    name: Literal["lrurec"] = "lrurec"
    recurrence_dropout: float = Field(0.2, ge=0, lt=1, description="after the recurrent layer")
    r_min: float = Field(0.8, gt=0, lt=1, description="initial eigenvalues lie outside this radius")
    r_max: float = Field(0.99, gt=0, lt=1, description="and inside this one")


class LRULayer(Mixer):
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
        return add_and_norm(self.norm, y, x, self.dropout)

    def forward(self, x: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """``[T, d]`` -> ``[T, d]``."""
        reset = batch.starts()
        reset[1:] |= batch.items[:-1] == 0
        return self._read(x, diagonal_recurrence(self._drive(x), self.eigenvalues(), reset))

    def flops(self, length: int) -> int:
        """A complex multiplication and addition a channel, of ``2d``."""
        return 8 * self.in_proj.out_features // 2

    def init_state(self, n: int) -> State:
        """Complex states as reals: ``h`` ``[n, 4d]``."""
        return {"h": self.in_proj.weight.new_zeros(n, self.in_proj.out_features)}

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users: ``[n, d]`` -> ``[n, d]``, the new state."""
        re, im = state["h"].chunk(2, dim=1)
        a, b = self.eigenvalues().to(re.dtype)
        h = self._drive(x) + torch.cat([a * re - b * im, a * im + b * re], dim=1)
        return self._read(x, h), {"h": h}


def _full_precision(parameter: torch.Tensor) -> torch.Tensor:
    """bf16 as fp32: eigenvalues near the unit circle are raised to high powers."""
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))


class LRURec(PostNormModel):
    """Embedding, blocks of (recurrent layer, feed-forward layer), tied output with a bias."""

    config: LRURecConfig

    def __init__(self, config: LRURecConfig, catalogue_size: int) -> None:
        super().__init__(config, catalogue_size, [LRULayer(config) for _ in range(config.blocks)])
        for name, parameter in self.named_parameters():
            if "norm" not in name and "ring" not in name:
                truncated_normal_(parameter.data)

    def step(self, items: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One event of ``n`` users; O(d^2) each, whatever came before."""
        x, state = super().step(items, state)
        # Nothing carries over from the empty history.
        return x, {key: h * (items != 0)[:, None] for key, h in state.items()}

    def prepared_step(self) -> Step:
        """Eigenvalues and the weights with gamma computed once, the state renewed in place of what
        drives it; see ``SequentialModel.prepared_step``."""
        return _PreparedStep(self)

    def diagnostics(self) -> dict[str, float]:
        """Mean modulus of lambda in each block: about .9 at first, training pulls it down."""
        told = {}
        for block, layer in enumerate(self.mixers):
            assert isinstance(layer, LRULayer)
            nu = layer.ring[0].detach().float().exp()
            told[f"lambda_modulus/block_{block}"] = float(torch.exp(-nu).mean())
        return told


class _PreparedBlock:
    """A block whose weights stay as they are, gamma and eigenvalues computed."""

    @torch.no_grad()
    def __init__(self, block: Block) -> None:
        assert isinstance(block.mixer, LRULayer)
        self.mixer, self.feed_forward = block.mixer, block.feed_forward
        inner = self.mixer.in_proj
        gamma = _full_precision(self.mixer.ring[2]).exp().repeat(2).to(inner.weight.dtype)
        self.weight, self.bias = inner.weight * gamma[:, None], inner.bias * gamma
        self.re, self.im = self.mixer.eigenvalues().to(inner.weight.dtype)

    def __call__(self, x: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x ``[n, d]``, h ``[n, 4d]`` -> the same after the event."""
        h = functional.linear(x, self.weight, self.bias)
        (re, im), (old_re, old_im) = h.chunk(2, dim=1), before.chunk(2, dim=1)
        re.addcmul_(old_re, self.re).addcmul_(old_im, self.im, value=-1)
        im.addcmul_(old_im, self.re).addcmul_(old_re, self.im)
        out, wide, narrow = self.mixer.out_proj, self.feed_forward.wide, self.feed_forward.narrow
        y = functional.linear(h, out.weight, out.bias)
        x = _normed(y.add_(x), self.mixer.norm)
        z = functional.gelu(functional.linear(x, wide.weight, wide.bias))
        z = functional.linear(z, narrow.weight, narrow.bias)
        return _normed(z.add_(x), self.feed_forward.norm), h


class _PreparedStep:
    """The step of a model whose weights stay as they are."""

    def __init__(self, model: LRURec) -> None:
        self._model = model
        blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
        self._blocks = [_PreparedBlock(block) for block in blocks]

    @torch.no_grad()
    def __call__(self, items: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        x = functional.embedding(items, self._model.item_embedding.weight)
        x = _normed(x, self._model.embedding_norm)
        new: State = {}
        for number, block in enumerate(self._blocks):
            key = f"{number}.h"
            x, new[key] = block(x, state[key])
        return x, new


def _normed(x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    return functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
