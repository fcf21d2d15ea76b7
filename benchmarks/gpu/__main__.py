"""What the operations and a training step cost on one GPU, beside what its memory could do.

    python -m benchmarks.gpu --output results --minutes 8

Needs Python, torch, Triton, numpy, this checkout, and pydantic (with pydantic-core,
annotated-types and typing-inspection), which is the one package a machine with torch tends to lack:
`pip download --only-binary=:all: -d wheels pydantic` elsewhere, and there
`pip install --no-index --find-links wheels pydantic`. Nothing else of the project is imported, and
no data are read. `--check` runs all in miniature through Triton's interpreter, without a GPU;
`--floors h200` only says what the vendor's rates would allow, and what `longhaul plan` predicts of
whole steps, with the whole project installed.

The most important comes first. A case that fails is told in the table and the rest goes on; what
the time does not suffice for is named. A floor is the least time in which the bytes can be moved
and the products be made, at the rates of the first two rows, which the same run measures.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.gpu.bench import SMALL, Bench, Floors, Row, Scale, cells
from benchmarks.gpu.operations import device, elementwise, lookups, losses, mixers, recurrences
from benchmarks.gpu.parity import parity
from benchmarks.gpu.steps import main_steps, other_steps
from models.ops import gpu

OPERATIONS: tuple[Callable[[Bench], None], ...] = (
    recurrences, losses, elementwise, lookups, mixers,
)  # fmt: skip
SECTIONS: tuple[Callable[[Bench], None], ...] = (
    device, parity, recurrences, main_steps, losses, elementwise, lookups, mixers, other_steps,
)  # fmt: skip


def report(bench: Bench, output: Path, where: str) -> None:
    """The table as Markdown, the rows as JSON."""
    lines = [
        "# One GPU: operations and training steps",
        "",
        f"- {time.strftime('%Y-%m-%d')}, {where}",
        f"- torch {torch.__version__}, triton {_triton()}, Python {platform.python_version()}",
        f"- d = {bench.scale.d}; medians of CUDA events after a warm-up; the floor is the larger "
        "of bytes and products at the rates measured here; error: the largest of values and "
        "gradients against the reference in fp64, relative to the largest element",
        "",
    ]
    for section in dict.fromkeys(row.section for row in bench.rows):
        lines += [
            f"## {section}",
            "",
            "| case | ms | floor, ms | of the floor | a second | peak, GB | error | |",
            f"| --- |{' ---: |' * 6} --- |",
            *(cells(row) for row in bench.rows if row.section == section),
            "",
        ]
    output.mkdir(parents=True, exist_ok=True)
    (output / "gpu.md").write_text("\n".join(lines))
    whole = {"device": where, "torch": torch.__version__, "rows": [asdict(r) for r in bench.rows]}
    (output / "gpu.json").write_text(json.dumps(whole, indent=1))


def sections(
    bench: Bench, given: Iterable[Callable[[Bench], None]], output: Path, where: str
) -> Iterator[str]:
    """Run one after another; after each the report is of all so far."""
    for section in given:
        try:
            section(bench)
        except Exception as error:  # what the cases share could not be made
            bench.rows.append(Row(section.__name__, "all", note=f"FAILED: {error!r}"[:200]))
        report(bench, output, where)
        if bench.device == "cuda":
            torch.cuda.empty_cache()
        yield section.__name__


def floors(name: str, output: Path) -> int:
    """The least that every operation could take on a GPU that is not here, and planned steps."""
    from benchmarks.gpu.planned import planned_steps
    from cluster.hardware import DEVICES

    if name not in DEVICES:
        raise SystemExit(f"no preset is called {name}: --floors takes {', '.join(DEVICES)}")
    rates = DEVICES[name]
    where = (
        f"{name}, not measured: floors at {rates.bandwidth / 1e12:g} TB/s and "
        f"{rates.bf16 / 1e12:g} TFLOP/s, its vendor's figures"
    )
    bench = Floors(rates.bandwidth, rates.bf16)

    def steps(bench: Bench) -> None:
        planned_steps(bench, name)

    for _ in sections(bench, (*OPERATIONS, steps), output, where):
        pass
    return any(row.note.startswith("FAILED") for row in bench.rows)


def _triton() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def main() -> int:
    """Run what the time allows; exit 1 where a case failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="gpu.md and gpu.json go here")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no case after so long")
    parser.add_argument("--check", action="store_true", help="in miniature, without a GPU")
    parser.add_argument("--floors", metavar="GPU", help="no run: its floors, planned steps")
    given = parser.parse_args()
    if given.floors:
        return floors(given.floors, given.output)
    if not given.check and not torch.cuda.is_available():
        parser.error("there is no GPU here: --check runs in miniature without one")
    if given.check:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported
        gpu.interpreting = True
    torch.manual_seed(0)
    bench = Bench(SMALL if given.check else Scale(), given.minutes)
    if given.check:
        where = "no GPU: Triton's interpreter, in miniature; the times mean nothing"
    else:
        where = torch.cuda.get_device_name()
    for _ in sections(bench, SECTIONS, given.output, where):
        pass
    failed = [row for row in bench.rows if row.note.startswith("FAILED")]
    print(f"{len(bench.rows)} cases, {len(failed)} failed; written to {given.output}")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
