"""A run on one GPU: its sizes, its clock, its floors, and the rows that come out."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from models.ops import gpu

BF16 = torch.bfloat16
Operation = Callable[..., Any]


@dataclass(frozen=True)
class Row:
    """A line of the result. milliseconds: the median. per_second: of what ``unit`` says."""

    section: str
    case: str
    milliseconds: float | None = None
    floor: float | None = None
    per_second: float | None = None
    unit: str = ""
    gigabytes: float | None = None
    error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """How large the cases are."""

    segments: int = 256
    length: int = 2048
    tokens: int = 131_072
    classes: tuple[int, ...] = (100_000, 1_000_000)
    targets: int = 16_384
    negatives: int = 1024
    d: int = 64
    side: int = 128
    repeats: int = 20
    seconds: float = 0.5  # a case, at most, of repeats

    @property
    def packed(self) -> int:
        """Tokens of all segments."""
        return self.segments * self.length


SMALL = Scale(2, 16, 20, (40,), 10, 8, 16, 8, 1)


class Bench:
    """One run: the device, its rates, the deadline, and what came out."""

    def __init__(self, scale: Scale, minutes: float) -> None:
        self.scale = scale
        self.device = "cpu" if gpu.interpreting else "cuda"
        self.deadline = time.monotonic() + 60 * minutes
        self.bytes_per_second = self.products_per_second = math.inf
        self.rows: list[Row] = []

    def case(self, section: str, name: str, run: Callable[[], Row | None]) -> None:
        """Keep what a case gives, or why it gave nothing."""
        if time.monotonic() > self.deadline:
            row = Row(section, name, note="not reached: the time was up")
        else:
            try:
                given = run()
                row = (given and replace(given, section=section, case=name)) or Row(section, name)
            except Exception as error:  # one failure must not cost the others
                reason = str(error).strip().splitlines() or [""]
                row = Row(section, name, note=f"FAILED: {type(error).__name__}: {reason[0][:150]}")
        self.rows.append(row)
        print(f"{section}: {cells(row)}", flush=True)

    def time(self, run: Callable[[], Any]) -> float:
        """The median of some runs, in milliseconds of the device."""
        if self.device == "cpu":
            began = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        each = (time.perf_counter() - began) / 3  # the first compiles; an upper bound will do
        taken = []
        for _ in range(max(5, min(self.scale.repeats, int(self.scale.seconds / max(each, 1e-6))))):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end))
        return float(statistics.median(taken))

    def row(self, run: Callable[[], Any], least: float, count: int, unit: str = "tokens") -> Row:
        """What a run of so many tokens takes, beside the least it could."""
        return _row(self.time(run), least, count, unit)

    def floor(self, bytes_moved: float, operations: float = 0) -> float:
        """Milliseconds: what memory and arithmetic take where one hides the other."""
        seconds = max(bytes_moved / self.bytes_per_second, operations / self.products_per_second)
        return 1e3 * seconds

    def normal(self, *shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
        """Random numbers, of which a gradient is wanted."""
        return torch.randn(shape, device=self.device).to(dtype).requires_grad_()

    def both_ways(
        self,
        section: str,
        name: str,
        operation: Operation,
        inputs: list[torch.Tensor],
        *,
        moved: tuple[int, int],
        operations: tuple[int, int] = (0, 0),
        tokens: int,
    ) -> None:
        """Time an operation's forward and its backward pass: bytes moved and floor of each."""

        def forward() -> Row:
            with torch.no_grad():
                least = self.floor(moved[0], operations[0])
                return self.row(lambda: operation(*inputs), least, tokens)

        def backward() -> Row:
            least = self.floor(moved[1], operations[1])
            return self.row(_backward(operation, inputs), least, tokens)

        self.case(section, f"{name}, forward", forward)
        self.case(section, f"{name}, backward", backward)

    def layout(self, segments: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Reset flags and offsets of equal segments."""
        offsets = torch.arange(segments + 1, device=self.device) * length
        reset = torch.zeros(segments * length, dtype=torch.bool, device=self.device)
        reset[offsets[:-1]] = True
        return reset, offsets


class Floors(Bench):
    """No device: of every case the least that it could take at these rates."""

    def __init__(self, bytes_per_second: float, products_per_second: float) -> None:
        super().__init__(Scale(), math.inf)
        self.device = "meta"
        self.bytes_per_second = bytes_per_second
        self.products_per_second = products_per_second

    def row(self, run: Callable[[], Any], least: float, count: int, unit: str = "tokens") -> Row:
        """The floor; nothing runs."""
        return replace(_row(least, least, count, unit), milliseconds=None)


def _row(took: float, least: float, count: int, unit: str) -> Row:
    note = f"{took * 1e6 / count:,.2f} s for 10^9" if unit == "targets" else ""
    return Row("", "", took, least, 1e3 * count / took, unit, note=note)


def _backward(operation: Operation, inputs: list[torch.Tensor]) -> Callable[[], Any]:
    """The backward pass; what it goes back from is made at the first call, which only warms up."""
    wanted = [x for x in inputs if x.requires_grad]
    made: list[tuple[torch.Tensor, torch.Tensor]] = []

    def run() -> Any:
        if not made:
            y = operation(*inputs)
            made.append((y, torch.randn_like(y)))
        y, dy = made[0]
        return torch.autograd.grad(y, wanted, dy, retain_graph=True)

    return run


def cells(row: Row) -> str:
    """A line of the table."""
    many = row.per_second
    speed = f"{many:.3g}" if many and many < 1e4 else f"{many / 1e6:,.1f} M" if many else ""
    if many and row.unit in ("bytes", "operations"):
        speed = f"{many / 1e12:,.2f} T"
    floor, took = row.floor, row.milliseconds
    share = f"{floor / took:.0%}" if floor and took else ""
    shown = (
        row.case,
        "" if took is None else f"{took:,.3f}",
        "" if not floor else f"{floor:,.3f}",
        share,
        f"{speed} {row.unit}".strip(),
        "" if row.gigabytes is None else f"{row.gigabytes:.2f}",
        "" if row.error is None else f"{row.error:.1e}",
        row.note.replace("|", "/"),
    )
    return f"| {' | '.join(shown)} |"
