"""Where the time of a run goes, by part."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Part = Literal["wait", "agree", "forward", "backward", "exchange", "update", "saving", "validating"]
"""Waiting for data; the ranks' agreement on a step; the loss; its gradient; rows of a sharded table
and gradients of engine torch on their way between ranks; the optimizer; copying the state for a
checkpoint, and waiting for the one before; validation. DeepSpeed exchanges in backward and update,
a full softmax over a sharded table in forward and backward."""


class Clock:
    """Seconds by part, since the last ``take``.

    Times are of this rank's host. A GPU works on after it was handed a micro-batch; the update
    waits for it, and is where its time then shows.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(get_args(Part), 0.0)

    @contextmanager
    def timed(self, part: Part) -> Iterator[None]:
        """Count the time of the block as that of a part. No block lies in another one."""
        began = time.perf_counter()
        yield
        self.add(part, time.perf_counter() - began)

    def add(self, part: Part, seconds: float) -> None:
        """Count time that was measured elsewhere."""
        self._seconds[part] += seconds

    def take(self) -> dict[Part, float]:
        """What was counted; from now on anew."""
        found = self._seconds
        self._seconds = dict.fromkeys(get_args(Part), 0.0)
        return found
