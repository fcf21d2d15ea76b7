"""How rows are updated: AdamW by row, AdamW of all, Adagrad by row, SGD.

A rule sees some rows at a time, in fp32, with their gradients and their part of its state, and
changes all but the gradients in place. So what is touched is updated and nothing else, whoever
picked the rows.
"""

from collections.abc import Callable
from typing import Any

import torch

from pipeline.config import OptimizerConfig

State = dict[str, torch.Tensor]
"""Of ``R`` rows, fp32: ``exp_avg``, ``exp_avg_sq`` ``[R, w]`` or ``[R]``, ``updates`` ``[R]``."""


class Rule:
    """What one of ``TableConfig.optimizer`` does. decayed: how many columns, from the first."""

    def __init__(self, name: str, config: OptimizerConfig, decayed: int) -> None:
        self.all_rows = name == "dense_adam"
        self._config, self._decayed = config, decayed
        self._apply: Callable[..., None] = {
            "adam": self._adam,
            "dense_adam": self._adam,
            "adagrad": self._adagrad,
            "sgd": self._sgd,
        }[name]
        self._name = name

    def shapes(self, rows: int, width: int) -> dict[str, tuple[int, ...]]:
        """The state of ``rows`` rows."""
        if self._name == "sgd":
            return {}
        if self._name == "adagrad":
            return {"exp_avg_sq": (rows,)}
        return {"exp_avg": (rows, width), "exp_avg_sq": (rows, width), "updates": (rows,)}

    def update(self, rows: torch.Tensor, state: State, gradients: torch.Tensor, lr: float) -> None:
        """Update ``[n, w]`` rows and their state by their gradients."""
        rows[:, : self._decayed].mul_(1 - lr * self._config.weight_decay)
        self._apply(rows, state, gradients, lr)

    def _adam(self, rows: Any, state: State, gradients: torch.Tensor, lr: float) -> None:
        # Loshchilov and Hutter 2019; each row has its own count, so that a row that is touched for
        # the first time late makes a first step like any other.
        first, second = self._config.betas
        updates = state["updates"].add_(1)
        state["exp_avg"].lerp_(gradients, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradients, gradients, value=1 - second)
        # Corrections in fp64: 1 - beta^n of small n loses digits in fp32.
        counts = updates.double()[:, None]
        size = (lr / (1 - first**counts)).float()
        root = (1 - second**counts).sqrt().float()
        rows -= size * state["exp_avg"] / (state["exp_avg_sq"].sqrt() / root + self._config.eps)

    def _adagrad(self, rows: Any, state: State, gradients: torch.Tensor, lr: float) -> None:
        # Duchi et al. 2011 with one sum a row, as embedding tables of recommenders are trained.
        sums = state["exp_avg_sq"].add_(gradients.square().mean(1))
        rows -= lr * gradients / (sums.sqrt() + self._config.eps)[:, None]

    def _sgd(self, rows: Any, state: State, gradients: torch.Tensor, lr: float) -> None:
        rows -= lr * gradients
