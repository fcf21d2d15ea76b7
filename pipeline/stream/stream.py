"""What a rank trains: the steps of its lanes, produced ahead of the training loop.

The state of the data is the epoch and one position a lane. It advances when a step is taken by the
loop, never when it is read ahead, so a checkpoint between two steps replays nothing.
"""

import queue
import threading
import time
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.batch import PackedBatch
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.stream.lane import Fill, Lane, Position, empty_fill
from pipeline.stream.objective import Objective
from pipeline.stream.order import deal, lanes_of, micro_steps, seed_of
from pipeline.stream.reader import MemberReader, ReadingConfig
from pipeline.stream.segments import Window


class StreamConfig(BaseModel):
    """The order and the packing of the training data. All of it is part of what a run computes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window: Window = Window()
    lanes: int = Field(
        1, ge=1, description="micro-batches of a step: the largest world size the run may ever use"
    )
    lane_tokens: int = Field(8192, ge=1, description="tokens of a micro-batch at most")
    shuffle_members: int = Field(
        32, ge=1, description="members whose segments are permuted together"
    )

    @model_validator(mode="after")
    def _window_fits(self) -> "StreamConfig":
        if self.window.length > self.lane_tokens:
            raise ValueError(
                f"window.length {self.window.length} does not fit lane_tokens {self.lane_tokens}"
            )
        return self


@dataclass(frozen=True)
class MicroBatch:
    """A packed batch and the lane whose dropout and negatives it is trained with."""

    batch: PackedBatch
    lane: int


@dataclass(frozen=True)
class RankStep:
    """One rank's part of a step.

    digest: sum modulo 2^48 of the hashes of its segments, a fingerprint of what was trained.
    waited: seconds the loop waited for it.
    """

    micro: list[MicroBatch]
    targets: int
    tokens: int
    segments: int
    digest: int
    positions: dict[int, Position]
    waited: float


DIGEST = 2**48
_READ_AHEAD_STEPS = 4
_CLOSING_PATIENCE_SECONDS = 2.0
_DRY = None


class Stream:
    """The steps of ``rank`` among ``world_size``, from a data state on.

    Raises LonghaulError where the world is larger than the number of lanes.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: StreamConfig,
        *,
        seed: int,
        rank: int,
        world_size: int,
        objective: Objective | None = None,
        reading: ReadingConfig | None = None,
    ) -> None:
        if world_size > config.lanes:
            raise LonghaulError(
                f"{world_size} workers cannot share {config.lanes} lanes: "
                f"set data.lanes to at least {world_size} (it fixes what a step computes)"
            )
        self.epoch = 0
        self.positions: dict[int, Position] = {}
        self._dataset = dataset
        self._config = config
        self._seed = seed
        self._objective = objective or Objective()
        self._lanes = lanes_of(rank, world_size, config.lanes)
        self._micro_steps = micro_steps(world_size, config.lanes)
        self._reader = MemberReader(dataset, reading or ReadingConfig())
        self._producer: _Producer | None = None

    def start(self, epoch: int, positions: dict[int, Position] | None = None) -> None:
        """Begin ``epoch``, every lane at its position (by default at its first segment)."""
        if self._producer is not None:
            self._producer.close()
        self._reader.forget_plans()
        self.epoch = epoch
        given = positions or {}
        self.positions = {lane: given.get(lane, Position()) for lane in self._lanes}
        dealt = deal(self._dataset, self._config.lanes, self._seed, epoch)
        lanes = {
            number: Lane(
                self._reader,
                dealt[number],
                self._config.window,
                seed=seed_of(self._seed, epoch, number, self._dataset.fingerprint),
                shuffle_members=self._config.shuffle_members,
                position=self.positions[number],
            )
            for number in self._lanes
        }
        drawn = seed_of("objective", self._seed, epoch)
        self._producer = _Producer(lanes, self._config.lane_tokens, self._objective, drawn)

    def next_step(self) -> RankStep:
        """This rank's part of the next step; past its last segment, dead micro-batches.

        The epoch is over when every rank's step has no segments; the loop then calls ``start``.
        """
        assert self._producer is not None, "start() comes before next_step()"
        began = time.perf_counter()
        produced = self._producer.take()
        waited = time.perf_counter() - began
        fills = {lane: empty_fill() for lane in self._lanes} if produced is _DRY else produced[0]
        if produced is not _DRY:
            self.positions = produced[1]
        live = [fill for fill in fills.values() if fill.segments]
        # A rank with fewer lanes than the busiest one runs a dead micro-batch more.
        first = self._lanes.start
        dead = self._micro_steps - len(fills)
        padded = [*fills.items(), *((first, empty_fill()) for _ in range(dead))]
        return RankStep(
            micro=[MicroBatch(_to_tensors(fill), lane) for lane, fill in padded],
            targets=sum(fill.asked for fill in live),
            tokens=sum(len(fill.items) for fill in live),
            segments=sum(fill.segments for fill in live),
            digest=sum(int(fill.identity.sum(dtype=np.uint64)) for fill in live) % DIGEST,
            positions=self.positions,
            waited=waited,
        )

    def close(self) -> None:
        """Stop reading ahead, without waiting long for a store that does not answer."""
        if self._producer is not None:
            # A thread that is in torch when the interpreter ends would abort the process.
            self._producer.close(_CLOSING_PATIENCE_SECONDS)
            self._producer = None
        self._reader.close()


def _to_tensors(fill: Fill) -> PackedBatch:
    items, offsets, targets = map(torch.from_numpy, (fill.items, fill.offsets, fill.targets))
    return PackedBatch(items, offsets, targets)


_Produced = tuple[dict[int, Fill], dict[int, Position]]


class _Producer:
    """Fills the lanes in a thread, a few steps ahead; an error there is raised by ``take``."""

    def __init__(
        self, lanes: dict[int, Lane], budget: int, objective: Objective, seed: int
    ) -> None:
        self._lanes = lanes
        self._budget = budget
        self._objective = objective
        self._seed = seed
        self._queue: queue.Queue[_Produced | BaseException | None] = queue.Queue(_READ_AHEAD_STEPS)
        self._stopped = threading.Event()
        self._dry = False
        self._thread = threading.Thread(target=self._run, name="lane-producer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                filled = {number: lane.fill(self._budget) for number, lane in self._lanes.items()}
                if all(fill is None for fill in filled.values()):
                    self._put(_DRY)
                    return
                fills = {
                    number: self._objective.apply(fill or empty_fill(), self._seed)
                    for number, fill in filled.items()
                }
                self._put((fills, {number: lane.position for number, lane in self._lanes.items()}))
        except BaseException as error:
            self._put(error)

    def _put(self, produced: _Produced | BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(produced, timeout=0.1)
                return
            except queue.Full:
                continue

    def take(self) -> _Produced | None:
        """The next step's fills and the positions behind them; None for ever once dry."""
        if self._dry:
            return _DRY
        produced = self._queue.get()
        if isinstance(produced, BaseException):
            raise produced
        self._dry = produced is _DRY
        return produced

    def close(self, patience: float | None = None) -> None:
        """End the thread, waiting ``patience`` seconds at most where it waits for a store."""
        self._stopped.set()
        self._thread.join(patience)
