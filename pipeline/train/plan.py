"""A step as all ranks see it, and what a line of metrics sums up over several."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.stream.stream import DIGEST
from pipeline.train.checkpoint import TrainState
from pipeline.train.clock import Clock
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


class Tally:
    """What is summed up between two lines of metrics: loss, counts, times.

    clock: counts the time of the parts from one line to the next.
    """

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._clock = clock
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self._began = time.perf_counter()
        self.targets = self._tokens = self._segments = self._digest = 0
        self._lr = self._norm = 0.0

    def add(self, plan: Plan, waited: float, lr: float, norm: float) -> None:
        self.targets += plan.targets
        self._tokens += plan.tokens
        self._segments += plan.segments
        self._digest = (self._digest + plan.digest) % DIGEST
        self._clock.add("wait", waited)
        self._lr, self._norm = lr, norm

    def summary(self, world: World, state: TrainState, epoch: int) -> dict[str, Any]:
        parts = {f"seconds/{part}": seconds for part, seconds in self._clock.take().items()}
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
            "data_wait_share": parts["seconds/wait"] / spent,
            "seconds/training": spent,
            **parts,
            "targets_seen": state.targets_seen,
            "tokens_seen": state.tokens_seen,
            "segments": self._segments,
            "segments_digest": self._digest,
        }
