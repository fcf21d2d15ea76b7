"""What a micro-batch keeps between its forward and its backward pass, tried on small models."""

import weakref
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models
from models import ModelConfig, PackedBatch

_TOKENS = (256, 512)
_LEAST_WIDTH = 32
_HISTORY = 64
_ITEMS = 8


def activation_bytes(config: ModelConfig, precision: str, tokens: int) -> int:
    """Bytes at the peak of a model's forward and backward pass, beyond weights and gradients.

    Models of one and of two blocks are tried at small widths and few tokens. The peak grows by the
    token, by the block, and linearly with the width; beside it lie weights as a forward pass reads
    them (folded, or widened), which grow with the width's square.
    """
    blocks = int(getattr(config, "blocks", 1))
    unit = 4 * int(getattr(config, "heads", 1))  # widths that any number of heads divides
    narrow = unit * -(-_LEAST_WIDTH // unit)
    widths = [config.d] if config.d <= 2 * narrow else [narrow, 2 * narrow]
    one, two = ([_line(config, precision, n, width) for width in widths] for n in (1, 2))
    lines = [
        [a + (blocks - 1) * (b - a) for a, b in zip(first, second, strict=True)]
        for first, second in zip(one, two, strict=True)
    ]
    by_token, rest = lines[-1]
    if len(lines) == 2:
        by_width = (by_token - lines[0][0]) / (widths[1] - widths[0])
        by_token += by_width * (config.d - widths[1])
        rest *= (config.d / widths[1]) ** 2
    return int(by_token * tokens + max(0.0, rest))


def _line(config: ModelConfig, precision: str, blocks: int, d: int) -> tuple[float, float]:
    """The peak as a line over the tokens: bytes by the token, and bytes of none."""
    changes: dict[str, Any] = {"blocks": blocks, "d": d}
    if hasattr(config, "hydra_blocks"):
        changes["hydra_blocks"] = None  # the kind of most blocks
    small = config.model_copy(update=changes)
    few, many = _TOKENS
    at_few, at_many = (_peak_bytes(small, precision, tokens) for tokens in _TOKENS)
    by_token = (at_many - at_few) / (many - few)
    return by_token, at_few - by_token * few


@cache
def _peak_bytes(config: ModelConfig, precision: str, tokens: int) -> int:
    length = min(_HISTORY, getattr(config, "max_history", None) or _HISTORY)
    items = torch.randint(1, _ITEMS + 1, (tokens,))
    offsets = torch.tensor([*range(0, tokens, length), tokens])
    batch = PackedBatch(items, offsets, items)
    with torch.random.fork_rng():
        model = models.build(config, _ITEMS).train()
    if precision == "bf16":
        model.to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # is not counted
    counted = _Live()
    with counted:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            hidden = model.encode(batch)
        torch.autograd.backward(hidden, torch.ones_like(hidden))
    return counted.peak


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that are made inside it, for as long as they are there."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree_leaves(args) if _is_tensor(t)}
        out = func(*args, **(kwargs or {}))
        for tensor in filter(_is_tensor, tree_leaves(out)):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._sizes and key not in before:
                self._sizes[key] = storage.nbytes()
                weakref.finalize(storage, self._sizes.pop, key, None)
        self.peak = max(self.peak, sum(self._sizes.values()))
        return out


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
