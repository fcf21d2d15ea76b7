"""A step as all ranks see it, and what a line of metrics sums up over several."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from pipeline.stream.stream import DIGEST
from pipeline.train.checkpoint import TrainState
from pipeline.world import World


@dataclass(frozen=True)
class Plan:
    """A step as all ranks see it: sums over the ranks."""

    targets: int
    tokens: int
    segments: int
    digest: int
    stop: bool
    save: bool
    load: bool  # the nodes tell how busy they are


Part = Literal["wait", "agree", "backward", "update", "saving", "validating"]
"""Waiting for data; the ranks' agreement on a step; forward and backward; the optimizer, with the
exchange of gradients that engine torch does there; copying the state for a checkpoint, and waiting
for the one before; validation."""


class Tally:
    """What is summed up between two lines of metrics: loss, counts, times.

    Times are of this rank's host. A GPU works on after it was handed a micro-batch; the update
    waits for it, and is where its time then shows.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(get_args(Part), 0.0)
        self.targets = self._tokens = self._segments = self._digest = 0
        self._lr = self._norm = 0.0

    @contextmanager
    def timed(self, part: Part) -> Iterator[None]:
        """Count the time of the block as that of a part."""
        began = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - began

    def add(self, plan: Plan, waited: float, lr: float, norm: float) -> None:
        self.targets += plan.targets
        self._tokens += plan.tokens
        self._segments += plan.segments
        self._digest = (self._digest + plan.digest) % DIGEST
        self._seconds["wait"] += waited
        self._lr, self._norm = lr, norm

    def summary(self, world: World, state: TrainState, epoch: int) -> dict[str, Any]:
        parts = {f"seconds/{part}": seconds for part, seconds in self._seconds.items()}
        # Validations have lines of their own that tell their time.
        pauses = parts["seconds/saving"] + parts.pop("seconds/validating")
        spent = time.perf_counter() - self._began - pauses
        return {
            "step": state.step,
            "epoch": epoch,
            "loss": world.sum_float(float(self.loss)) / self.targets,
            "lr": self._lr,
            "gradient_norm": self._norm,
            "targets_per_second": self.targets / spent,
            "tokens_per_second": self._tokens / spent,
            "data_wait_share": self._seconds["wait"] / spent,
            "seconds/training": spent,
            **parts,
            "targets_seen": state.targets_seen,
            "tokens_seen": state.tokens_seen,
            "segments": self._segments,
            "segments_digest": self._digest,
        }
