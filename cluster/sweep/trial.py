"""One trial, on the node where Ray Tune put it: an ordinary run in processes of its own.

The trial's function only watches: it starts `longhaul train`, tells Tune what the run's own metrics
file says, and passes a request to stop on. So a trial has its threads, its signals and its memory
to itself, and whatever becomes of Tune, the run's folder is in order.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import Recipe, parse_recipe
from pipeline.errors import LonghaulError
from pipeline.secrets import read_secrets
from pipeline.train.run import metrics_of, read_state, request_stop, stop_requested

_SECONDS_BETWEEN_LOOKS = 1.0
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def run_trial(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Train ``config["trial"]``; results for Tune: ``step``, and ``value`` after a validation.

    Raises LonghaulError where the processes were lost; the run itself may fail, and says so.
    """
    told: dict[str, Any] = config["trial"]
    read_secrets()
    recipe = parse_recipe(told["recipe"], "the recipe of a trial")
    url, news = recipe.run_url, _News(recipe, told["validated"])
    if stop_requested(told["sweep"]):
        return
    before = read_state(url)
    with _training(recipe) as training:
        over = False
        while not over:
            over = training.is_over(_SECONDS_BETWEEN_LOOKS)
            for result in news.look():
                yield {**result, "over": over}
            if not over and stop_requested(told["sweep"]):
                # Again and again: a run that only begins withdraws what was asked before.
                request_stop(url, reason=told["stop_reason"])
        stands = read_state(url)
        began = stands is not None and (before is None or stands.attempt > before.attempt)
        if not began or stands is None or stands.state == "running":
            raise LonghaulError(f"run {recipe.name}: {training.last_words()}")


class _News:
    """What the run's metrics tell that Tune has not heard yet."""

    def __init__(self, recipe: Recipe, validated: int) -> None:
        assert recipe.train.validation is not None
        self._url = recipe.run_url
        self._name = f"validation/{recipe.train.validation.metric}"
        self._validated = self._shown = validated

    def look(self) -> Iterator[dict[str, Any]]:
        """The new validations, and how far the run is by now."""
        try:
            records = metrics_of(self._url)
        except LonghaulError:  # the store is away; the next look will tell
            return
        for record in records:
            if self._name in record and record["step"] > self._validated:
                self._validated = self._shown = record["step"]
                yield {"step": record["step"], "value": record[self._name]}
        if records and records[-1]["step"] > self._shown:
            self._shown = records[-1]["step"]
            yield {"step": self._shown}


class _Training:
    """The processes of a run."""

    def __init__(self, process: "subprocess.Popen[bytes]", errors: Path) -> None:
        self._process = process
        self._errors = errors

    def is_over(self, seconds: float) -> bool:
        """Whether they have left, now or within ``seconds``."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)
        return self._process.poll() is not None

    def last_words(self) -> str:
        """How they left, in one line."""
        lines = [line for line in self._errors.read_text(errors="replace").splitlines() if line]
        told = [line for line in lines if line.startswith("error: ")] or lines[-1:]
        code = self._process.returncode
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process ended ({how}){': ' + told[-1] if told else ''}"


@contextmanager
def _training(recipe: Recipe) -> Iterator[_Training]:
    """`longhaul train` in a process of its own, asked to save where this one goes first."""
    root = str(Path(storage.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory(prefix="longhaul-trial-") as folder:
        file, errors = Path(folder, "recipe.yaml"), Path(folder, "errors.txt")
        file.write_text(recipe.to_yaml())
        launcher: list[str] = []
        if recipe.placement.launcher == "torchrun":
            workers = recipe.placement.most_workers
            launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
            launcher += ["-m"]
        with errors.open("wb") as told:
            process = subprocess.Popen(
                [sys.executable, "-m", *launcher, "pipeline", "train", str(file)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=told,
                start_new_session=True,
                preexec_fn=_leave_with_parent,
            )
        try:
            yield _Training(process, errors)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait()


_libc = ctypes.CDLL(None)


def _leave_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the thread that watches is gone; Linux alone does so."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
