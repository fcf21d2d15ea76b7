"""Which table, loss and ZeRO stage: time, memory and traffic of a step for catalogues of all sizes.

    python -m benchmarks.choosing [--items 1e4 1e5 1e6 1e7] [--workers 1 2 4] [--seconds 5]

LRURec, d 64, two blocks, 4,096 tokens a step whatever the number of workers; catalogues in which
every item occurs; a dense table under ZeRO 0 to 3 beside the sharded one, the full softmax beside
512 uniform negatives. Each cell is a process group of its own. What would not fit ``--memory`` or
would take too long for a step is computed and marked with ~: memory by the forecast of
``longhaul train --dry-run``, without its checkpoint, the time by the cell that differs in the size
of the catalogue alone. Cells are kept in ``FOLDER/cells.json``; the same command goes on.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.covering import covering
from benchmarks.report import surroundings, write_result
from benchmarks.steps import measured
from pipeline.config import Recipe, parse_recipe
from pipeline.manifest import Dataset
from pipeline.progress import bar
from pipeline.train.memory import memory_of

LANES, LANE_TOKENS = 4, 1024
LOSSES: dict[str, dict[str, Any]] = {
    "full": {"name": "full_softmax"},
    "sampled": {"name": "sampled_softmax", "uniform": 512},
}
WAYS = ("ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3", "sharded")
LONGEST_STEP = 60.0  # seconds; a cell with longer ones is computed


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    items: int
    loss: str
    way: str
    workers: int

    @property
    def key(self) -> str:
        """Its name in the file of cells."""
        return f"{self.items} {self.loss} {self.way} {self.workers}"

    def recipe(self, dataset: Dataset, folder: Path) -> Recipe:
        """What is trained."""
        sharded = self.way == "sharded"
        return parse_recipe(
            {
                "name": self.key.replace(" ", "-"),
                "runs": str(folder / "runs"),
                "data": {
                    "path": dataset.url,
                    "lanes": LANES,
                    "lane_tokens": LANE_TOKENS,
                    "window": {"length": 100},
                },
                "model": {"name": "lrurec", "d": 64},
                "train": {
                    "steps": 1_000_000,
                    "loss": LOSSES[self.loss],
                    "table": {"home": "sharded"} if sharded else {},
                    "engine": "deepspeed",
                    "zero_stage": 1 if sharded else int(self.way[-1]),
                    "validation": None,
                },
                "reading": {"memory": "64MiB", "ahead": "64MiB"},
                "placement": {"threads": max(1, 2 // self.workers)},
            },
            "the benchmark's recipe",
        )


def cells(items: list[int], workers: list[int]) -> list[Cell]:
    """All there are, small catalogues first."""
    return [
        Cell(size, loss, way, count)
        for size in items
        for loss in LOSSES
        for way in WAYS
        for count in workers
    ]


def computed(cell: Cell, memory: int, known: dict[str, Any]) -> dict[str, Any]:
    """The cell from the largest measured one that differs in the catalogue alone."""
    alike = [
        (size, known[key])
        for size in sorted({int(key.split()[0]) for key in known}, reverse=True)
        if (key := Cell(size, cell.loss, cell.way, cell.workers).key) in known
        and not known[key].get("computed")
        and size < cell.items
    ]
    if not alike:
        return {"computed": True, "growth": memory}
    size, found = alike[0]
    grown = cell.items / size
    seconds = found["step_seconds"] * (grown if _grows(cell) else 1.0)
    return {
        "computed": True,
        "step_seconds": seconds,
        "targets_per_second": found["targets_per_second"] * found["step_seconds"] / seconds,
        "growth": memory,
        "bytes": found["bytes"] * (1.0 if cell.way == "sharded" else grown),
    }


def _grows(cell: Cell) -> bool:
    """Whether a step's time is in proportion to the catalogue: dense optimizers, full softmax."""
    return cell.way != "sharded" or cell.loss == "full"


def measure(folder: Path, wanted: list[Cell], memory: float, seconds: float) -> dict[str, Any]:
    """What is known of the cells, by key."""
    where = folder / "cells.json"
    known: dict[str, Any] = json.loads(where.read_text()) if where.exists() else {}
    with bar("measure") as progress:
        for number, cell in enumerate(wanted):
            progress.update(number, len(wanted), cell.key)
            if cell.key in known:
                continue
            dataset = covering(cell.items, folder)
            recipe = cell.recipe(dataset, folder)
            needs = memory_of(recipe, dataset, cell.workers).training
            guess = computed(cell, needs, known)
            too_long = guess.get("step_seconds", 0.0) > LONGEST_STEP
            if needs * cell.workers > memory or too_long:
                known[cell.key] = guess
            else:
                known[cell.key] = measured(recipe, folder, cell.workers, seconds)
            where.write_text(json.dumps(known, indent=1))
    return known


def table(items: int, loss: str, workers: list[int], known: dict[str, Any]) -> list[str]:
    """A part of the page."""
    head = ["", *(f"{what}, W={w}" for w in workers for what in ("ms a step", "targets/s"))]
    head += [f"{what}, W={w}" for w in workers for what in ("GiB a rank", "MB moved")]
    lines = []
    for way in WAYS:
        found = [known[Cell(items, loss, way, w).key] for w in workers]
        cells = [_told(f, *kind) for f in found for kind in _TIMES]
        cells += [_told(f, *kind) for f in found for kind in _SIZES]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return [
        f"### {items:,} items, {loss} softmax",
        "",
        f"| {' | '.join(head)} |",
        f"| --- |{' ---: |' * (len(head) - 1)}",
        *lines,
        "",
    ]


_TIMES = (("step_seconds", 1e3, ",.0f"), ("targets_per_second", 1.0, ",.0f"))
_SIZES = (("growth", 2**-30, ".2f"), ("bytes", 1e-6, ",.1f"))


def _told(found: dict[str, Any], what: str, scale: float, form: str) -> str:
    if what not in found:
        return ""
    return ("~" if found.get("computed") else "") + format(found[what] * scale, form)


def main() -> None:
    """Measure what is missing and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--items", type=float, nargs="*", default=[1e4, 1e5, 1e6, 1e7])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=5.0, help="of timed steps a cell")
    parser.add_argument("--memory", type=float, default=18, help="GiB that all ranks may take")
    parser.add_argument("--folder", type=Path, default=Path("choosing"), help="data, cells")
    given = parser.parse_args()
    sizes = [int(size) for size in given.items]
    given.folder.mkdir(parents=True, exist_ok=True)
    wanted = cells(sizes, given.workers)
    known = measure(given.folder, wanted, given.memory * 2**30, given.seconds)
    write_result(
        "choosing",
        [
            "# Table, loss and ZeRO stage by the size of the catalogue",
            "",
            *surroundings(2),
            "",
            f"LRURec, d 64, two blocks, {LANES} lanes of {LANE_TOKENS:,} tokens a step; a step's "
            "median time; the growth of a rank's peak memory from before the model was built, "
            "without a checkpoint; bytes that rank 0 sends and gets in a step. More workers "
            "than cores share them. ~: computed, see the script.",
            "",
            *(
                line
                for s in sizes
                for loss in LOSSES
                for line in table(s, loss, given.workers, known)
            ),
        ],
    )


if __name__ == "__main__":
    main()
