"""AdamW as the recipe describes it: groups of parameters, and the learning rate of a step."""

import math

import torch

from models import SequentialModel
from pipeline.config import OptimizerConfig


def build_optimizer(model: SequentialModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW with two groups: decayed parameters, and those the model leaves undecayed."""
    undecayed = model.undecayed()
    named = list(model.named_parameters())
    groups = [
        {
            "params": [p for name, p in named if name not in undecayed],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for name, p in named if name in undecayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of update number ``step`` (0-based) out of ``steps``: warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "cosine":
        remaining = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        remaining = 1 - progress
    return config.final_lr + (config.lr - config.final_lr) * remaining
