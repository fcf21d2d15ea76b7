"""Trains a recipe and suffers one fault at a chosen instant of one rank.

    python -m tests.faults.child RECIPE KIND INSTANT RANK

An instant is the entry into or the return from anything that touches storage or the weights, in
any thread, counted from the start. INSTANT 0 never comes; the count is then told at the end.
"""

import functools
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import process, storage
from pipeline.config import load_recipe
from pipeline.train import engine, zero
from pipeline.train.run import request_stop

_FROZEN_SECONDS = 1.5


def suffer(kind: str, recipe: str) -> None:
    """Do to this process what ``kind`` says."""
    print(f"FAULT {kind}", flush=True)
    if kind in ("SIGKILL", "SIGTERM", "SIGUSR1"):
        os.kill(os.getpid(), signal.Signals[kind])
    elif kind == "stop file":
        request_stop(load_recipe(recipe).run_url)
    elif kind == "frozen":
        thaw = f"sleep {_FROZEN_SECONDS}; kill -CONT {os.getpid()}"
        subprocess.Popen(["sh", "-c", thaw], start_new_session=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    else:
        raise ValueError(kind)


class Instants:
    """Counts, and acts when the count is reached."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.count = 0
        self._at = at
        self._act = act
        self._lock = threading.Lock()

    def pass_by(self) -> None:
        with self._lock:
            self.count += 1
            now = self.count == self._at
        if now:
            self._act()

    def watch(self, owner: Any, name: str) -> None:
        """Count the entries into and the returns from ``owner.name``."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.pass_by()
            result = inner(*args, **kwargs)
            self.pass_by()
            return result

        setattr(owner, name, watched)


def main() -> None:
    recipe, kind, instant, rank = sys.argv[1:5]
    mine = os.environ.get("RANK", "0") == rank
    instants = Instants(int(instant) if mine else 0, lambda: suffer(kind, recipe))
    for name in ("read_bytes", "write_bytes", "remove", "files_below", "exists"):
        instants.watch(storage, name)
    instants.watch(os, "fsync")
    instants.watch(Path, "replace")
    for made in (engine.TorchEngine, zero.DeepSpeedEngine):
        for name in ("backward", "update", "export", "restore"):
            instants.watch(made, name)
    sys.argv = ["longhaul", "train", recipe]
    code = process.run_command()
    if mine:
        print(f"INSTANTS {instants.count}", flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
