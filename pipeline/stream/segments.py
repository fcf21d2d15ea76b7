"""How a user's training part becomes segments: the windows of long histories."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Window(BaseModel):
    """Which positions of a history are trained, and with how much context."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal["tiles", "last", "prefixes", "lrurec"] = Field(
        "tiles",
        description="tiles: every target once an epoch, cut from the end; last: the newest only; "
        "prefixes: a segment for every target, with all that came before it (for objective "
        "last_item); lrurec: the published LRURec windows, which drop the head of long histories",
    )
    length: int = Field(200, ge=1, description="targets a segment holds at most")
    bos: bool = Field(
        False, description="train the first item too, predicted from an empty history (token 0)"
    )


@dataclass(frozen=True, eq=False)
class Segments:
    """``S`` segments of one member. Positions count from a user's first event; i64 ``[S]`` each.

    Targets are positions ``start`` up to ``stop``. The inputs are the events one place earlier;
    where ``bos`` (bool ``[S]``) is set the first input is token 0, the empty history, instead.
    """

    user: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    bos: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def lengths(self) -> np.ndarray:
        """Tokens of each segment, which is also its number of targets."""
        lengths: np.ndarray = self.stop - self.start
        return lengths


def cut(train_lengths: np.ndarray, window: Window) -> Segments:
    """The segments of users whose training parts have ``train_lengths`` events (i64 ``[U]``).

    A user with nothing to predict has no segment. The ``lrurec`` rule is ``SASTrainDataset`` of
    the published code: a history shorter than two windows gives its newest window, a longer one
    gives whole windows from the end, each starting from an empty history.
    """
    n = np.asarray(train_lengths, dtype=np.int64)
    first = 0 if window.bos else 1  # the first position that can be a target
    size = window.length
    if window.rule == "tiles":
        count = np.maximum(0, -(-(n - first) // size))
    elif window.rule == "last":
        count = (n > first).astype(np.int64)
    elif window.rule == "prefixes":
        count = np.maximum(0, n - first)
    else:
        count = np.where(n < 2 * size, (n > first).astype(np.int64), n // size)
    user = np.repeat(np.arange(len(n)), count)
    # 0 is the newest segment of a user, 1 the one before it, ...
    age = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    stop = n[user] - age * (1 if window.rule == "prefixes" else size)
    start = np.maximum(stop - size, first)
    bos = start == 0
    if window.rule == "lrurec":
        whole = n[user] >= 2 * size
        # Such a window knows nothing of what came before it: its first item is predicted from an
        # empty history, or without bos only serves as input.
        bos = bos | (whole & window.bos)
        start = np.where(whole, stop - size + first, start)
    keep = stop > start
    return Segments(user[keep], start[keep], stop[keep], bos[keep])
