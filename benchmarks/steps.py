"""Bare steps of a recipe: their time, the memory they take, the bytes they move between ranks.

    torchrun --nproc-per-node 2 -m benchmarks.steps RECIPE --seconds 5

One rank or several, no run's folder, no checkpoints. Rank 0 prints a line of JSON. It is what other
benchmarks start in a process of its own for each case.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from pipeline import world
from pipeline.config import Recipe, load_recipe
from pipeline.manifest import open_dataset
from pipeline.stream.stream import Stream
from pipeline.train.assembly import build_engine
from pipeline.world import World
from tests.train.runs import environment, write

_WARM = 2  # steps that are not timed
_PEAK = Path("/proc/self/clear_refs"), "5"  # begins the peak of the resident memory anew


def measured(
    recipe: Recipe, folder: Path, workers: int, seconds: float, timeout: float = 600
) -> dict[str, Any]:
    """What ``main`` prints of the recipe on so many workers; RuntimeError with what it said."""
    file = write(recipe, folder)
    start = [sys.executable, "-m"]
    if workers > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={workers}", "-m"]
    said = subprocess.run(
        [*start, "benchmarks.steps", str(file), "--seconds", str(seconds)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if said.returncode:
        raise RuntimeError(said.stderr[-2000:])
    found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return found


def steps(recipe: Recipe, here: World, seconds: float) -> dict[str, Any]:
    """Train for about ``seconds``.

    bytes: what rank 0 sends and gets in a step; collectives: of them, and calls, by collective.
    """
    moved = Traffic(here.world_size)
    with moved.counted():  # from before the engine, which may keep the functions
        return _steps(recipe, here, seconds, moved)


def _steps(recipe: Recipe, here: World, seconds: float, moved: "Traffic") -> dict[str, Any]:
    dataset = open_dataset(recipe.data.path)
    before = _resident()
    _PEAK[0].write_text(_PEAK[1])
    engine = build_engine(recipe, dataset, here)
    stream = Stream(
        dataset,
        recipe.data,
        seed=0,
        rank=here.rank,
        world_size=here.world_size,
        objective=recipe.train.objective,
        reading=recipe.reading,
    )
    stream.start(0)
    taken: list[float] = []
    targets = epoch = 0
    while len(taken) <= _WARM or sum(taken[_WARM:]) < seconds:
        if len(taken) == _WARM:
            moved.forget()
            targets = 0
        began = time.perf_counter()
        step = stream.next_step()
        asked, segments = here.sum_integers([step.targets, step.segments]).tolist()
        if not segments:
            epoch += 1
            stream.start(epoch)
            continue
        for micro in step.micro:
            torch.manual_seed(micro.lane)
            engine.backward(micro.batch, asked)
        engine.update(recipe.train.optimizer.lr)
        targets += asked
        # All ranks count the same time, so that they stop at the same step.
        taken.append(here.sum_float(time.perf_counter() - began) / here.world_size)
    stream.close()
    timed = sorted(taken[_WARM:])
    return {
        "step_seconds": timed[len(timed) // 2],
        "steps": len(timed),
        "targets_per_second": targets / sum(timed),
        "growth": max(here.gather(_peak() - before)),
        "bytes": sum(moved.bytes.values()) / len(timed),
        "collectives": {
            name: {"bytes": moved.bytes[name] / len(timed), "calls": calls / len(timed)}
            for name, calls in moved.calls.items()
        },
    }


class Traffic:
    """Bytes that a rank sends and gets, as good algorithms of each collective move them.

    bytes, calls: by the name of the collective in ``torch.distributed``.
    """

    def __init__(self, world_size: int) -> None:
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        others = (world_size - 1) / world_size
        # By name: how often the larger of its tensors passes, each way.
        self._passes = {
            "all_reduce": 2 * others,
            "all_gather": others,
            "all_gather_into_tensor": others,
            "_all_gather_base": others,
            "reduce_scatter_tensor": others,
            "_reduce_scatter_base": others,
            "all_to_all_single": others,
            "broadcast": others,
            "reduce": others,
        }

    def forget(self) -> None:
        """Count anew."""
        self.bytes.clear()
        self.calls.clear()

    def counted(self) -> ExitStack:
        """A context in which collectives are counted, whoever calls them."""
        stack = ExitStack()
        for name in self._passes:
            own = getattr(dist, name, None)
            if own is not None:
                setattr(dist, name, self._counting(name, own))
                stack.callback(setattr, dist, name, own)
        return stack

    def _counting(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            tensors = [*given, *named.values()]
            sizes = [t.nbytes for t in tensors if isinstance(t, torch.Tensor)]
            lists = [sum(t.nbytes for t in part) for part in tensors if _of_tensors(part)]
            self.bytes[name] += round(2 * self._passes[name] * max(sizes + lists, default=0))
            self.calls[name] += 1
            return own(*given, **named)

        return call


def _of_tensors(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], torch.Tensor)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main() -> None:
    """Measure the recipe and print the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    recipe = load_recipe(given.recipe)
    surroundings = world.torchrun if world.inside_torchrun() else world.alone
    with surroundings("cpu", recipe.placement.threads) as here:
        found = steps(recipe, here, given.seconds)
        if here.rank == 0:
            print(json.dumps(found), flush=True)
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's threads may outlive the group


if __name__ == "__main__":
    main()
