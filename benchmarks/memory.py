"""What training holds, beside what ``longhaul train --dry-run`` says that it will.

    python -m benchmarks.memory [CASE ...] [--work FOLDER]

Every case trains a few steps on a synthetic log in processes of their own, two under torchrun where
it says so, and then saves a checkpoint. Measured is how far the resident memory of a worker grows
at most (VmHWM of /proc/self/status) over what it holds before stream and engine are built; of two
workers the larger. malloc is told to give back what is freed, so that what is allocated is seen,
not what malloc keeps. Other work on the machine does not disturb it. Cases that were measured are
kept in the work folder and not measured again.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.recovery import data_set
from benchmarks.report import surroundings, write_result
from models import PackedBatch
from pipeline.config import Recipe, assign, parse_recipe
from pipeline.manifest import Dataset, open_dataset
from pipeline.progress import bar
from pipeline.stream.stream import Stream
from pipeline.train.assembly import build_engine
from pipeline.train.checkpoint import DataState, TrainState
from pipeline.train.memory import memory_of
from pipeline.train.saving import Saver
from pipeline.world import World, alone, inside_torchrun, torchrun

ITEMS = (100_000, 1_000_000)
STEPS = 2  # the first has no moments of AdamW yet
TOLERANCE = 0.10
LEAST = 1 << 30  # growth below is mostly what libraries allocate for themselves


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


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


SAMPLED: dict[str, Any] = {"name": "sampled_softmax", "uniform": 1024}
LONG: dict[str, Any] = {
    "data__lane_tokens": 16_384,
    "model__d": 256,
    "model__blocks": 4,
    "loss": SAMPLED,
}

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
    "activations, checkpointing": case(
        **{**LONG, "data__lane_tokens": 32_768}, model__activation_checkpointing=True
    ),
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
    for option in _TRIM_THRESHOLD, _MMAP_THRESHOLD:
        ctypes.CDLL(None).mallopt(option, 1 << 16)
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
    changes = {"train.engine": engine, "model.d": 1}
    small = recipe(Case(0, world.world_size, changes), dataset, folder)
    items, offsets, targets = map(torch.tensor, ([1, 2, 3, 4], [0, 4], [2, 3, 4, 5]))
    running = build_engine(small, dataset, world)
    for _ in range(2):
        running.backward(PackedBatch(items, offsets, targets), 4)
        running.update(1e-3)


def _begin_peak() -> int:
    """Count the peak from now on; what is resident."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def measured(name: str, dataset: Dataset, work: Path) -> dict[str, int]:
    """The largest growth among the workers, from processes of their own; or as kept in ``work``."""
    kept = work / f"{name.replace(', ', '-').replace(' ', '-')}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    workers = CASES[name].workers
    line = [sys.executable, "-m"]
    if workers > 1:
        line += ["torch.distributed.run", "--standalone", f"--nproc-per-node={workers}", "-m"]
    with tempfile.TemporaryDirectory() as folder:
        line += ["benchmarks.memory", name, "--measure", dataset.url, "--work", folder]
        ended = subprocess.run(line, capture_output=True, text=True)
        if ended.returncode:
            raise SystemExit(f"{name} failed:\n{ended.stderr[-3000:]}")
        told = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]
    found = {key: max(one[key] for one in told) for key in told[0]}
    kept.write_text(json.dumps(found))
    return found


def row(name: str, dataset: Dataset, work: Path) -> str:
    """Measured and forecast of one case, as a line of the table."""
    found = measured(name, dataset, work)
    told = memory_of(recipe(CASES[name], dataset, work), dataset, CASES[name].workers)
    cells = [name]
    for growth, forecast in (
        (found["trained"], told.training),
        (found["saved"], told.saving),
    ):
        ratio = growth / forecast
        missed = " (!)" if growth >= LEAST and abs(ratio - 1) > TOLERANCE else ""
        mib = (f"{size / (1 << 20):,.0f}" for size in (growth, forecast))
        cells += [*mib, f"{ratio:.2f}{missed}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure every case and write a dated result; of some cases, print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("cases", nargs="*", help="names of cases; all by default")
    parser.add_argument("--work", type=Path, default=Path("memory"), help="data, measurements")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a case here, on the set of this URL
    given = parser.parse_args()
    unknown = {*given.cases} - {*CASES}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(CASES)}")
    if given.measure:
        with (torchrun if inside_torchrun() else alone)("cpu", 1) as world:
            found = measure(given.cases[0], open_dataset(given.measure), given.work, world)
            (given.work / f"rank-{world.rank}.json").write_text(json.dumps(found))
        return
    given.work.mkdir(parents=True, exist_ok=True)
    sets = [_data_set(items, given.work) for items in ITEMS]
    names = given.cases or list(CASES)
    rows = []
    with bar("measure memory") as progress:
        for number, name in enumerate(names):
            progress.update(number, len(names))
            rows.append(row(name, sets[CASES[name].items], given.work))
    catalogues = " and ".join(f"{one.manifest.catalogue_size:,}" for one in sets)
    page = [
        "# Memory of a worker: measured and forecast",
        "",
        *surroundings(1),
        "",
        f"Growth of the peak of resident memory in MiB, over {STEPS} steps and then over a "
        "checkpoint, beside what `longhaul train --dry-run` reckons with, and measured by "
        f"forecast. LRURec over {catalogues} items (dense, sharded), widths and micro-batches as "
        f"in `benchmarks/memory.py`; (!) is more than {TOLERANCE:.0%} off. malloc gives back what "
        "is freed here; in a training it keeps some of it (`pipeline.world.use_threads`).",
        "",
        "| case | training | forecast | ratio | checkpoint | forecast | ratio |",
        f"| --- |{' ---: |' * 6}",
        *rows,
    ]
    if given.cases:
        print("\n".join(page))
    else:
        write_result("memory", page)


def _data_set(items: int, work: Path) -> Dataset:
    made = work / f"set-{items}"
    return open_dataset(str(made)) if made.exists() else data_set(items, work)


if __name__ == "__main__":
    main()
