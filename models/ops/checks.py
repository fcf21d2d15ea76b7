"""Checks of values, which a GPU makes by itself: asking it would wait for all it has to do."""

import torch


def require(holds: torch.Tensor, message: str) -> None:
    """ValueError with the message unless ``holds`` (bool, 0-dim).

    On a GPU the message is printed and the stream stops: RuntimeError from some later call.
    """
    if holds.is_cuda:
        torch._assert_async(holds, message)
    elif not bool(holds):
        raise ValueError(message)
