"""Starts contenders, tells them whose turn it is, and watches their memory: the parent's half."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.peers.histories import Histories
from benchmarks.report import peers
from pipeline.manifest import Dataset, open_dataset
from pipeline.member import TRAIN_END, VALIDATION_END, VALIDATION_START
from pipeline.prepare import PrepareOptions, prepare

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "ml-1m"
DATA = Path(os.environ.get("LONGHAUL_TEST_DATA", "../shared/data"))
# What our package has set here. Each contender waits for its threads as it does by default.
_WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}


@dataclass(frozen=True)
class Answer:
    """What a contender found, and the most resident memory of its processes meanwhile."""

    found: dict[str, Any]
    memory: int

    @property
    def rate(self) -> float:
        """Targets a second of a turn of training."""
        return float(self.found["targets"] / self.found["seconds"])


class Contender:
    """A child that trains by turns; see ``turns``. It waits, without work, between commands."""

    def __init__(self, python: str, module: str, given: dict[str, Any], folder: Path) -> None:
        self._said = tempfile.TemporaryFile("w+", dir=folder)  # noqa: SIM115, closed in `close`
        threads = str(given["threads"])
        self._name = module
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{module}", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name not in _WAITING}
            | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads},
        )

    def train(self, seconds: float) -> Answer:
        """Whole updates of at least ``seconds``. RuntimeError with what it said where it fails."""
        return self._ask(do="train", seconds=seconds)

    def evaluate(self) -> Answer:
        """Recall@10 of the validation items, all users; RuntimeError as above."""
        return self._ask(do="evaluate")

    def close(self) -> None:
        """End the child."""
        for member in self._family():
            with contextlib.suppress(psutil.Error):
                member.kill()
        self._process.wait()
        self._said.close()

    def _ask(self, **command: Any) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError), self._watched() as peak:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            if line:
                return Answer(json.loads(line), peak[0])
        self._said.seek(0)
        raise RuntimeError(f"{self._name}: {self._said.read()[-2000:]}")

    @contextmanager
    def _watched(self) -> Iterator[list[int]]:
        peak, done = [0], threading.Event()

        def watch() -> None:
            while True:
                with contextlib.suppress(psutil.Error):
                    peak[0] = max(peak[0], sum(p.memory_info().rss for p in self._family()))
                if done.wait(0.1):
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield peak
        finally:
            done.set()
            watcher.join()

    def _family(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@dataclass(frozen=True)
class Pair:
    """A model of ours beside a contender; ``wanted``: how many times as fast we want to be."""

    model: str
    peer: str
    wanted: float | None

    @property
    def name(self) -> str:
        return f"{self.model} / {self.peer}"


class Contest:
    """The data, prepared once, and who is there to be measured on it."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self._folder, self._threads = folder, given.threads
        options = PrepareOptions(inputs=[str(given.log)], output=str(folder / "set"))
        prepare(options)
        self.dataset = open_dataset(options.output)
        self._histories = folder / "histories.npz"
        histories_of(self.dataset).write(self._histories)
        python = sys.executable
        # By contender: its interpreter, and what it is told beside the data.
        self._known: dict[str, tuple[str, dict[str, str]]] = {"plain": (python, {})}
        if given.published:
            checkout = {"checkout": str(Path(given.published).resolve())}
            self._known["published"] = (given.published_python or python, checkout)
        if given.rectools:
            self._known["rectools"] = (given.rectools, {})
        if given.recbole:
            self._known["recbole"] = (given.recbole, {})

    @property
    def pairs(self) -> list[Pair]:
        """Ours and theirs, as far as they are there."""
        all_pairs = [
            Pair("lrurec", "plain", None),
            Pair("sasrec", "plain", None),
            Pair("lrurec", "published", 8.0),
            Pair("sasrec", "rectools", 5.0),
            Pair("sasrec", "recbole", 500.0),
        ]
        return [pair for pair in all_pairs if pair.peer in self._known]

    @property
    def versions(self) -> list[str]:
        """Of the peers that are there, as Markdown lines."""
        packages = {"rectools": ["rectools", "torch"], "recbole": ["recbole", "torch"]}
        return [
            peers(self._known[name][0], *wanted)
            for name, wanted in packages.items()
            if name in self._known
        ]

    @contextmanager
    def both(self, pair: Pair) -> Iterator[tuple[Contender, Contender]]:
        """Ours and theirs, started."""
        python, told = self._known[pair.peer]
        shared = {"threads": self._threads, "folder": str(self._folder)}
        mine = {"data": self.dataset.url, "recipe": str(CONFIGS / f"{pair.model}.yaml")}
        theirs = {"histories": str(self._histories)} | told
        with ExitStack() as stack:
            children = []
            for interpreter, module, own in (
                (sys.executable, "ours", mine),
                (python, pair.peer, theirs),
            ):
                child = Contender(interpreter, module, shared | own, self._folder)
                stack.callback(child.close)
                children.append(child)
            yield children[0], children[1]


def histories_of(dataset: Dataset) -> Histories:
    """What is trained of every user and, as the last item, what validation asks for.

    ValueError where that is not one item after those that are trained, as leave-one-out has it.
    """
    parts = []
    for number in range(len(dataset)):
        member = dataset.read(number)
        ends = member.splits[:, TRAIN_END]
        asked = member.splits[:, [VALIDATION_START, VALIDATION_END]]
        if np.any(asked != ends[:, None] + [0, 1]):
            raise ValueError("a user has no item to validate on, or several")
        for begin, end in zip(member.offsets[:-1].tolist(), ends.tolist(), strict=True):
            parts.append(member.items[begin : begin + end + 1].astype(np.int64))
    lengths = [len(part) for part in parts]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Histories(np.concatenate(parts), offsets, dataset.manifest.catalogue_size)


def add_peers(parser: argparse.ArgumentParser) -> None:
    """The arguments that say who is there; an empty one is none."""
    parser.add_argument("--published", help="a checkout of yueqirex/LRURec")
    parser.add_argument("--published-python", help="its interpreter, this one by default")
    parser.add_argument("--rectools", help="the interpreter of an environment with rectools[torch]")
    parser.add_argument(
        "--recbole", help="of one with recbole, numpy<2, pandas<3 and setuptools<81"
    )
    parser.add_argument("--log", type=Path, default=DATA / "ml-1m.txt", help="of ML-1M")
    parser.add_argument("--threads", type=int, default=2)


@contextmanager
def contest(given: argparse.Namespace) -> Iterator[Contest]:
    """The contest in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Contest(given, Path(folder))
