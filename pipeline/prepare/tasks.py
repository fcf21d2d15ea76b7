"""Tasks in threads, and how far they are."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
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
    waiting = iter(tasks.items())
    under_way: dict[Future[T], str] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                # Few at a time, so that no more results than that are ever held.
                for name, task in islice(waiting, 2 * workers - len(under_way)):
                    under_way[pool.submit(task, checked)] = name
                if not under_way:
                    return
                ended = wait(under_way, return_when=FIRST_COMPLETED).done
                while ended:
                    future = ended.pop()
                    yield under_way.pop(future), future.result()
                    del future
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
