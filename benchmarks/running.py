"""Trainings that a benchmark starts as a user would, watches, and breaks off."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipeline.config import Recipe
from pipeline.progress import Bar
from pipeline.train.run import read_state
from tests.train.runs import command, environment, wait_for_step, write


def train_until(
    recipe: Recipe, folder: Path, workers: int, step: int, how: signal.Signals
) -> tuple[int, int]:
    """Train until the metrics tell of ``step``, then signal every worker; the peaks of memory.

    The sum of the workers' peaks of resident memory, in bytes: when they were signalled, and when
    they had done what they do then.
    """
    with _started(recipe, folder, workers) as process:
        wait_for_step(process, recipe, step)
        family = _family(process)
        training = ended = sum(map(_peak, family))
        for member in family:
            member.send_signal(how)
        while process.poll() is None:
            ended = max(ended, sum(map(_peak, family)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
        process.communicate()
    return training, ended


def train_through(recipe: Recipe, folder: Path, workers: int, progress: Bar) -> tuple[float, int]:
    """Train to the end: seconds, and the peak of memory as above. RuntimeError where it fails."""
    began, peak = time.monotonic(), 0
    with _started(recipe, folder, workers) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(_peak, _family(process))))
            stands = read_state(recipe.run_url)
            if stands is not None:
                progress.update(stands.step, stands.steps, recipe.name)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2)
        said = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"{recipe.name} ended with {process.returncode}: {said[-2000:]}")
    return time.monotonic() - began, peak


@contextmanager
def _started(recipe: Recipe, folder: Path, workers: int) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        command(write(recipe, folder), workers),
        env=environment(),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()


def _family(process: "subprocess.Popen[Any]") -> list[psutil.Process]:
    """The workers: what torchrun started, or the process itself."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    workers = [one for one in below if "pipeline" in " ".join(_line(one))]
    return workers or [psutil.Process(process.pid)]


def _line(process: psutil.Process) -> list[str]:
    try:
        line: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return line


def _peak(process: psutil.Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = [line for line in lines if line.startswith("VmHWM")]
    return 1024 * int(found[0].split()[1]) if found else 0
