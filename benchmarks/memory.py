"""What training holds, beside what ``longhaul train --dry-run`` says that it will.

    python -m benchmarks.memory [CASE ...] [--work FOLDER]

Every case trains a few steps on a synthetic log in processes of their own, two under torchrun where
it says so, and then saves a checkpoint. Measured is how far the resident memory of a worker grows
at most (VmHWM of /proc/self/status) over what it holds before stream and engine are built; of two
workers the larger. Other work on the machine does not disturb it.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
from pipeline.config import Recipe, assign, parse_recipe
from pipeline.manifest import Dataset, open_dataset
from pipeline.stream.stream import Stream
from pipeline.train.assembly import build_engine
from pipeline.train.checkpoint import DataState, TrainState
from pipeline.train.saving import Saver
from pipeline.world import World, alone, inside_torchrun, torchrun

ITEMS = (100_000, 1_000_000)
STEPS = 2  # the first has no moments of AdamW yet
TOLERANCE = 0.10
LEAST = 1 << 30  # growth below is mostly what libraries allocate for themselves


@dataclass(frozen=True)
class Case:
    """A recipe to measure. changes: dotted keys over the benchmark's recipe."""

    items: int = 0  # which of ITEMS
    workers: int = 1
    changes: dict[str, Any] = field(default_factory=dict)


def case(items: int = 0, workers: int = 1, **changes: Any) -> Case:
    """``changes`` with ``__`` for the dots; those without belong to train."""
    keys = {k.replace("__", ".") if "__" in k else f"train.{k}": v for k, v in changes.items()}
    return Case(items, workers, keys)


def sharded(optimizer: str, storage: str, workers: int = 1, **changes: Any) -> Case:
    """A table outside the engine, of the larger catalogue."""
    table = {"table__home": "sharded", "table__optimizer": optimizer, "table__storage": storage}
    return case(1, workers, **{f"train__{k}": v for k, v in table.items()}, **changes)


def zero(stage: int, precision: str = "fp32", workers: int = 1, **changes: Any) -> Case:
    """DeepSpeed with a dense table."""
    return case(0, workers, engine="deepspeed", zero_stage=stage, precision=precision, **changes)


# Freed memory goes back at once. By itself glibc keeps some tens of MB for later: by how often
# blocks below 32 MiB are freed, not by what is allocated at a time.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

SAMPLED = {"name": "sampled_softmax", "uniform": 1024}
LONG = {"data__lane_tokens": 16_384, "model__d": 256, "model__blocks": 4, "loss": SAMPLED}

CASES: dict[str, Case] = {
    "torch": case(model__d=512),
    "torch, 2 workers": case(workers=2, model__d=512),
    "torch, sampled softmax": case(model__d=640, loss=SAMPLED),
    "torch, autocast": case(model__d=512, precision="autocast"),
    "ZeRO 0": zero(0, model__d=512),
    "ZeRO 0, autocast, 2 workers": zero(0, "autocast", 2, model__d=512),
    "ZeRO 1": zero(1, model__d=512),
    "ZeRO 1, 2 workers, 2 micro-batches": zero(1, workers=2, data__lanes=4, model__d=512),
    "ZeRO 1, bf16": zero(1, "bf16", model__d=512),
    "ZeRO 1, bf16, 2 workers": zero(1, "bf16", 2, model__d=512),
    "ZeRO 1, autocast, offload": zero(1, "autocast", offload="optimizer", model__d=512),
    "ZeRO 2": zero(2, model__d=512),
    "ZeRO 2, 2 workers": zero(2, workers=2, model__d=512),
    "ZeRO 2, bf16, offload, 2 micro-batches": zero(
        2, "bf16", data__lanes=2, offload="optimizer", model__d=512
    ),
    "ZeRO 3": zero(3, model__d=512),
    "ZeRO 3, 2 workers": zero(3, workers=2, model__d=512),
    "ZeRO 3, bf16, offload, 2 workers": zero(3, "bf16", 2, offload="optimizer", model__d=512),
    "ZeRO 3, autocast, 2 micro-batches": zero(3, "autocast", data__lanes=2, model__d=512),
    "ZeRO 3, bf16, trunk": zero(3, "bf16", loss=SAMPLED, model__d=768, model__blocks=4),
    "sharded adam": sharded("adam", "fp32", model__d=128, loss=SAMPLED),
    "sharded adam, 2 workers": sharded("adam", "fp32", 2, model__d=256, loss=SAMPLED),
    "sharded adam in bf16": sharded("adam", "bf16", model__d=144, loss=SAMPLED),
    "sharded dense_adam, full softmax": sharded("dense_adam", "fp32", model__d=96),
    "sharded adagrad in bf16, full softmax, 2 workers": sharded(
        "adagrad", "bf16", 2, model__d=384, train__engine="deepspeed", train__precision="bf16"
    ),
    "sharded sgd": sharded("sgd", "fp32", model__d=320, loss=SAMPLED),
    "activations": case(**LONG),
    "activations, bf16": zero(1, "bf16", **LONG),
    "activations, checkpointing": case(**LONG, model__activation_checkpointing=True),
}


def recipe(wanted: Case, dataset: Dataset, folder: Path) -> Recipe:
    """The case's recipe: LRURec on small micro-batches, without validation."""
    document: dict[str, Any] = {
        "name": "memory",
        "runs": str(folder),
        "data": {
            "path": dataset.url,
            "lanes": wanted.workers,
            "lane_tokens": 64,
            "window": {"length": 32},
        },
        "model": {"name": "lrurec"},
        "train": {"steps": STEPS, "engine": "torch", "validation": None},
        "placement": {"threads": 1},
    }
    for key, value in wanted.changes.items():
        assign(document, key, value)
    return parse_recipe(document, "the benchmark's recipe")


def measure(name: str, dataset: Dataset, folder: Path, world: World) -> dict[str, int]:
    """Growth in bytes while this rank trains, and while it then saves."""
    wanted = recipe(CASES[name], dataset, folder)
    _warm(dataset, folder, world, wanted.train.engine)
    before = _begin_peak()
    stream = Stream(
        dataset,
        wanted.data,
        seed=0,
        rank=world.rank,
        world_size=world.world_size,
        reading=wanted.reading,
    )
    engine = build_engine(wanted, dataset, world)
    stream.start(0)
    for _ in range(STEPS):
        step = stream.next_step()
        targets = int(world.sum_integers([step.targets])[0])
        for micro in step.micro:
            engine.backward(micro.batch, targets)
        engine.update(1e-3)
    trained = _peak() - before
    _begin_peak()
    saver = Saver(wanted, dataset.manifest, world, 1)
    data = DataState(fingerprint=dataset.fingerprint, epoch=0, positions={})
    saver.begin(TrainState(step=STEPS, data=data), engine)
    saver.finish()
    stream.close()
    return {"trained": trained, "saved": _peak() - before}


def _warm(dataset: Dataset, folder: Path, world: World, engine: str) -> None:
    """Load what loads itself at first use, with a model of no size."""
    small = recipe(
        Case(0, world.world_size, {"train.engine": engine, "model.d": 1}), dataset, folder
    )
    batch = models.PackedBatch(*_tokens())
    running = build_engine(small, dataset, world)
    for _ in range(2):
        running.backward(batch, 4)
        running.update(1e-3)


def _tokens() -> Any:
    import torch

    return torch.tensor([1, 2, 3, 4]), torch.tensor([0, 4]), torch.tensor([2, 3, 4, 5])


def _begin_peak() -> int:
    """Count the peak from now on; what is resident."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def measured(name: str, dataset: Dataset) -> dict[str, int]:
    """The largest growth among the workers, from processes of their own."""
    workers = CASES[name].workers
    alone_ = [sys.executable, "-m", "benchmarks.memory"]
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    several += [f"--nproc-per-node={workers}", "-m", "benchmarks.memory"]
    with tempfile.TemporaryDirectory() as folder:
        line = [*(alone_ if workers == 1 else several), name, "--measure", dataset.url, folder]
        ended = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **_MALLOC})
        if ended.returncode:
            raise SystemExit(f"{name} failed:\n{ended.stderr[-3000:]}")
        told = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]
    return {key: max(one[key] for one in told) for key in told[0]}


def _measure_here(name: str, url: str, folder: Path) -> None:
    surroundings_of = torchrun if inside_torchrun() else alone
    with surroundings_of("cpu", 1) as world:
        found = measure(name, open_dataset(url), folder, world)
        (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    if "--measure" in sys.argv:
        name, _, url, folder = sys.argv[1:]
        _measure_here(name, url, Path(folder))
