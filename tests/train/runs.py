"""Small runs for tests: a recipe, and three ways to train it."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline import world
from pipeline.config import Recipe, parse_recipe
from pipeline.manifest import Dataset
from pipeline.train import checkpoint, loop
from pipeline.train.run import RunState, metrics_files, read_metrics
from pipeline.world import World

ROOT = Path(__file__).parents[2]


def recipe(dataset: Dataset, folder: Path | str, name: str = "run", **changes: Any) -> Recipe:
    """A recipe of a few quick steps; ``changes`` are dotted keys with ``__`` for the dots."""
    document: dict[str, Any] = {
        "name": name,
        "runs": str(folder),
        "data": {
            "path": dataset.url,
            "lanes": 3,
            "lane_tokens": 128,
            "shuffle_members": 8,
            "window": {"length": 16},
        },
        "model": {"name": "lrurec", "d": 8},
        "train": {
            "steps": 12,
            "engine": "torch",
            "validation": None,
            "checkpoint_every": 4,
            "log_every": 1,
            "optimizer": {"lr": 0.01, "clip_norm": 0.5},
        },
        "evaluation": {"max_history": 16},
        "placement": {"threads": 1},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        node = document
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return parse_recipe(document, "a test's recipe")


def train_here(wanted: Recipe, stop_before: int | None = None) -> RunState:
    """Train in this process, asked to stop before the step ``stop_before`` (0-based)."""

    class Stopping(World):
        def poll(self, step: int) -> None:
            self.stop_wanted = step == stop_before

    with world.alone("cpu", 1) as here:
        return loop.train(wanted, Stopping(here.rank, here.world_size, here.device))


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child process, with this checkout importable."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **extra}


def write(wanted: Recipe, folder: Path) -> Path:
    """The recipe as a file."""
    path = folder / f"{wanted.name}.yaml"
    path.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    return path


def command(file: Path, workers: int = 1) -> list[str]:
    """The command that trains the recipe in ``file``, through torchrun for several workers."""
    if workers == 1:
        return [sys.executable, "-m", "pipeline", "train", str(file)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc-per-node={workers}", "-m", "pipeline", "train", str(file)]


def longhaul(
    *arguments: str, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of longhaul to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        env=environment(**env),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
    )


def train_apart(wanted: Recipe, folder: Path, workers: int = 1) -> subprocess.CompletedProcess[str]:
    """Train in processes of their own and wait for them."""
    return subprocess.run(
        command(write(wanted, folder), workers),
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )


def wait_until(done: Callable[[], bool], process: "subprocess.Popen[Any]") -> None:
    """Return once it is so; fail, with what the process said, where it ends before."""
    while not done():
        assert process.poll() is None, f"the process ended too early: {process.communicate()}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)


def wait_for_step(process: "subprocess.Popen[str]", wanted: Recipe, step: int) -> None:
    """Return once the run has told of the step; fail where the process ends before."""
    wait_until(lambda: any(record["step"] >= step for record in records(wanted)), process)


def records(wanted: Recipe) -> Iterator[dict[str, Any]]:
    """The metrics of all attempts, in order."""
    for file in metrics_files(wanted.run_url):
        yield from read_metrics(file)


def digests(wanted: Recipe) -> dict[int, tuple[int, int]]:
    """What each step trained: (epoch, digest of its segments); later attempts overrule."""
    return {r["step"]: (r["epoch"], r["segments_digest"]) for r in records(wanted) if "loss" in r}


def final_tensors(wanted: Recipe) -> dict[str, torch.Tensor]:
    """All tensors of the last step's checkpoint."""
    return checkpoint_of(wanted.run_url, wanted.train.steps).tensors()


def steps_in(run_url: str) -> list[int]:
    """Steps that have a committed checkpoint."""
    return [place.step for place in checkpoint.places_in(run_url)]


def checkpoint_of(run_url: str, step: int) -> checkpoint.Checkpoint:
    """The newest checkpoint of a step."""
    places = [place for place in checkpoint.places_in(run_url) if place.step == step]
    return checkpoint.Checkpoint(run_url, places[-1])


def assert_bit_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Every tensor has the same name, dtype and bits."""
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype
        assert torch.equal(tensor, b[name]), name


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float) -> None:
    """Every tensor is the same to rounding."""
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        difference = float((tensor - b[name]).abs().max())
        assert difference <= atol, f"{name}: {difference:.1e} apart"
