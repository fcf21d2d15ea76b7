"""Progress for people: a bar on a terminal, a line now and then elsewhere, always on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 10.0


class Bar(Protocol):
    """A running display of one task."""

    def update(self, done: float, total: float | None, note: str = "") -> None:
        """``done`` of ``total`` units (None: unknown) are through; ``note`` is shown beside."""


class _Lines:
    def __init__(self, title: str) -> None:
        self._title = title
        self._began = self._told = time.monotonic()
        self._first: float | None = None  # what was through when the task (re)started

    def update(self, done: float, total: float | None, note: str = "") -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = done, now
        if now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = now
        spent = now - self._began
        share = f"{done:,.0f}"
        if total:
            share += f" of {total:,.0f} ({done / total:.0%})"
            if done > self._first:
                share += f", {spent / (done - self._first) * (total - done):,.0f} s left"
        print(f"{self._title}: {share} {note}".rstrip(), file=sys.stderr, flush=True)


class _Rich:
    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None, note="")
        self._started = False

    def update(self, done: float, total: float | None, note: str = "") -> None:
        if not self._started:
            # A resumed task has not done all of it just now: the rate counts from here.
            self._progress.reset(self._task, completed=int(done), total=total)
            self._started = True
        self._progress.update(self._task, completed=done, total=total, note=note)


@contextmanager
def bar(title: str) -> Iterator[Bar]:
    """Show one task while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield _Rich(progress, title)
