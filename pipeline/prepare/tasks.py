"""Tasks in threads, and how far they are."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol, TypeVar

T = TypeVar("T")

Advance = Callable[[int], None]


class Progress(Protocol):
    """Hears how far a stage is; ``total`` is None where it is not known."""

    def __call__(self, stage: str, done: int, total: int | None) -> None: ...


class Meter:
    """Adds up what tasks advance by, and tells the sum."""

    def __init__(self, progress: Progress, stage: str, total: int | None) -> None:
        self._progress, self._stage, self._total = progress, stage, total
        self._lock = threading.Lock()
        self._done = 0
        self.advance(0)

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress(self._stage, self._done, self._total)


class _Stopped(BaseException):
    """Another task failed: this one has nothing left to do."""


def run_tasks(
    tasks: Mapping[str, Callable[[Advance], T]], workers: int, advance: Advance
) -> Iterator[tuple[str, T]]:
    """Names and results of ``tasks`` as they end; each is called with a function to advance.

    The first failure stops those under way at their next advance, and is raised.
    """
    stop = threading.Event()

    def checked(count: int) -> None:
        if stop.is_set():
            raise _Stopped
        advance(count)

    if workers == 1:
        for name, task in tasks.items():
            yield name, task(advance)
        return
    with ThreadPoolExecutor(workers) as pool:
        names = {pool.submit(task, checked): name for name, task in tasks.items()}
        try:
            for future in as_completed(names):
                yield names[future], future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
