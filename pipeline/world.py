"""What differs between a debugger, torchrun and Ray Train: who am I, who else, shall I stop."""

import atexit
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from pipeline.errors import LonghaulError

T = TypeVar("T")

# Ctrl-C, what schedulers send, and what SLURM's users have it send some time before the end.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass
class World:
    """A rank among ``world_size``. Collectives go over CPU tensors and are free in a world of one.

    stop_wanted (save and leave) and save_wanted (save and go on, soon to be torn away) are this
    rank's own view; the loop makes all ranks agree before it acts on them.
    """

    rank: int
    world_size: int
    device: torch.device
    stop_wanted: bool = field(default=False)
    save_wanted: bool = field(default=False)

    def want_stop(self) -> None:
        """Save and leave after the step."""
        self.stop_wanted = True

    def poll_due(self) -> bool:
        """Whether all ranks are to poll before the next step; one that says so is enough."""
        return self.rank == 0

    def poll(self, step: int) -> None:
        """Ask the surroundings whether to stop or save; all ranks do so before the same step."""

    def sum_integers(self, values: Sequence[int] | np.ndarray) -> np.ndarray:
        """Each of ``n`` values summed over the ranks, exactly: int64 ``[n]``."""
        total = np.array(values, np.int64)
        if self.world_size > 1:
            dist.all_reduce(torch.from_numpy(total))
        return total

    def sum_float(self, value: float) -> float:
        """A value summed over the ranks in float64."""
        if self.world_size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(total)
        return float(total.item())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value``, in order of rank, on all ranks."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value`` on all ranks."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_rank_zero(self, act: Callable[[], T]) -> T:
        """Run ``act`` on rank 0 alone; its value, or its LonghaulError, on all ranks."""
        outcome: Any = None
        if self.rank == 0:
            try:
                outcome = act()
            except LonghaulError as error:
                outcome = error
        outcome = self.broadcast(outcome)
        if isinstance(outcome, LonghaulError):
            raise outcome
        value: T = outcome
        return value

    def on_every_rank(self, act: Callable[[], T]) -> T:
        """Run ``act`` on each rank; its value, or the LonghaulError of any of them on all ranks."""
        made: list[T] = []
        failure: LonghaulError | None = None
        try:
            made.append(act())
        except LonghaulError as error:
            failure = error
        self.agree(failure)
        return made[0]

    def agree(self, error: BaseException | None) -> None:
        """Raise on all ranks where any of them failed, so that none waits for the others."""
        told = self.gather(None if error is None else str(error))
        if error is not None:
            raise error
        for text in told:
            if text is not None:
                raise LonghaulError(text)


def current_world() -> World:
    """The default process group of ``torch.distributed``, or a world of one without it."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    return World(0, 1, torch.device("cpu"))


def pick_device(wanted: str, local_rank: int) -> torch.device:
    """The device of a worker: ``auto`` is its CUDA device where there is one."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise LonghaulError("placement.device is cuda, but this machine shows no CUDA device")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


@contextmanager
def alone(device: str, threads: int | None) -> Iterator[World]:
    """A world of one, in this process. A signal asks for a stop after the step."""
    use_threads(threads or _share(1))
    if not dist.is_initialized():
        # DeepSpeed wants a process group even for one rank, and remembers it: it stays for good.
        dist.init_process_group(_backend(), store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(dist.destroy_process_group)
    world = World(0, 1, pick_device(device, 0))
    with stop_signals_call(world.want_stop):
        yield world


@contextmanager
def torchrun(device: str, threads: int | None) -> Iterator[World]:
    """The world that torchrun describes in the environment."""
    local_rank = int(os.environ["LOCAL_RANK"])
    use_threads(threads or _share(int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group(_backend())
    try:
        world = World(dist.get_rank(), dist.get_world_size(), pick_device(device, local_rank))
        with stop_signals_call(world.want_stop):
            yield world
    finally:
        dist.destroy_process_group()


def inside_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= set(
        os.environ
    )


def _backend() -> str:
    """Two backends in one group: plans and states travel on the CPU, gradients on the device."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def use_threads(threads: int) -> None:
    """Compute with so many threads on the CPU, and keep what a step frees for the next step.

    Else the C library hands large blocks back to the system and gets them again page by page, a
    tenth of the time of a small model. A C library that is not glibc is left as it is.
    """
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest there is


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def _share(workers_here: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // workers_here)


@contextmanager
def stop_signals_call(asked: Callable[[], None]) -> Iterator[None]:
    """Call ``asked`` at every signal to stop. Only the main thread can, others hear of none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda _number, _frame: asked()) for number in STOP_SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
