"""Rows that cannot be read: which they are, and what is told of them.

Readers and columns only say which rows of what is at hand are bad, and why. The policy is here:
refuse the first, or skip all, count them, and keep a few to show.
"""

import bisect
import json
from collections import deque
from dataclasses import asdict, dataclass, field

import numpy as np

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.manifest import BAD_ROWS
from pipeline.prepare import explain
from pipeline.prepare.inputs import Source
from pipeline.prepare.options import PrepareOptions, Unit

_SAMPLES = 20  # kept of a task, and shown of a data set five times as many
_WORTH_STOPPING = 10_000  # bad rows; of fewer, it can be told how many they are of all
_SHOWN = 80  # characters of a value
_NEAR = 2**20  # records: for a line beyond, nobody waits until it is found
_LATE = 7_258_118_400  # the year 2200, in seconds
_FINER: list[Unit] = ["ms", "us", "ns"]

# Stands for bytes that are no UTF-8 while a file is read; with its NUL, no value holds it.
MARK = "\ufffd\0"

# A row's record in its file, counted from 0, and where it comes from a list, the place in that.
Origin = tuple[int, int]
NO_LIST = -1


class BadValues(Exception):
    """Rows of a column that cannot be read.

    rows: indexes in the array, ascending, at least the first such. reason: in a few words that are
    the same for all of them. line: about the first, as an error tells it after its place. whole:
    the column is to blame, and no row alone.
    """

    def __init__(
        self, rows: np.ndarray, column: str, reason: str, line: str, whole: bool = False
    ) -> None:
        super().__init__(line)
        self.rows = rows
        self.column = column
        self.reason = reason
        self.line = line
        self.whole = whole


@dataclass(frozen=True)
class BadRow:
    """One that was skipped. where: ``line 7``, or the row or record, counted from 1."""

    file: str
    where: str
    column: str | None
    value: str | None
    reason: str


@dataclass
class Found:
    """What a task found in the rows that it read, beside events.

    reasons: how many rows were skipped for each. samples: of those, the first few. numbers: how
    many times were written as numbers; late: how many of these lie after the year 2200 if they
    count seconds, milliseconds, microseconds.
    """

    bad_rows: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    samples: list[BadRow] = field(default_factory=list)
    numbers: int = 0
    late: list[int] = field(default_factory=lambda: [0, 0, 0])

    def __add__(self, other: "Found") -> "Found":
        reasons = dict(self.reasons)
        for reason, count in other.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
        return Found(
            self.bad_rows + other.bad_rows,
            reasons,
            (self.samples + other.samples)[: 5 * _SAMPLES],
            self.numbers + other.numbers,
            [mine + others for mine, others in zip(self.late, other.late, strict=True)],
        )

    def note_times(self, times: np.ndarray) -> None:
        """Look at times that were written as numbers and are taken for seconds."""
        self.numbers += len(times)
        for finer in range(len(_FINER)):
            self.late[finer] += int(np.count_nonzero(times > _LATE * 1000**finer))

    def check(self, good: int, options: PrepareOptions) -> None:
        """Raise LonghaulError where too many rows beside ``good`` ones are bad, or where most times
        can hardly be seconds."""
        rows = good + self.bad_rows
        if self.bad_rows > options.most_bad_rows * rows:
            raise LonghaulError(
                f"bad rows: {self.bad_rows:,} of {rows:,} ({self.bad_rows / rows:.2g} of all), "
                f"more than most_bad_rows: {options.most_bad_rows:g} allows; {self._first()}"
            )
        likely = [
            unit for unit, late in zip(_FINER, self.late, strict=True) if 2 * late > self.numbers
        ]
        if likely:
            raise LonghaulError(
                f"timestamps are taken for seconds, but then most of them lie after the year "
                f"2200; set timestamp_unit: {likely[-1]}, or s where that is meant"
            )

    def _first(self) -> str:
        bad = self.samples[0]
        value = "" if bad.value is None else f" {bad.value!r}"
        column = "" if bad.column is None else f" column '{bad.column}':"
        return f"the first: {bad.file}, {bad.where}:{column}{value} {bad.reason}"

    def write(self, output: str, rows: int) -> None:
        """Leave a report in the data set, where there is something to tell."""
        if self.bad_rows:
            report = {
                "rows_read": rows,
                "bad_rows": self.bad_rows,
                "reasons": dict(sorted(self.reasons.items())),
                "samples": [asdict(bad) for bad in self.samples],
            }
            content = json.dumps(report, indent=2, ensure_ascii=False).encode() + b"\n"
            storage.write_bytes(storage.join(output, BAD_ROWS), content)


class Sieve:
    """Keeps the bad rows of one piece of the input apart.

    most: as many as all files may hold at the very most.
    """

    def __init__(self, source: Source, skip: bool, most: int, found: Found) -> None:
        self.skip = skip
        self._source = source
        self._most = max(most, _WORTH_STOPPING)
        self._found = found
        self._room = _SAMPLES - len(found.samples)
        self._samples: list[tuple[Origin, str | None, str | None, str]] = []
        # Of the records that the reader itself left out, how many rows it gave before each.
        self._before: list[int] = []
        self._left_out: deque[tuple[int, str, str]] = deque()

    def origin(self, row: int) -> Origin:
        """Of a row that the reader of a text gave, counted in all that it gave."""
        return row + bisect.bisect_right(self._before, row), NO_LIST

    def leave_out(self, record: int, value: str, reason: str) -> None:
        """The reader of a text does not give this record; it says so in the order of records.

        It may say so from inside of Arrow, so no more is done here.
        """
        self._left_out.append((record, value, reason))
        self._before.append(record - len(self._before))

    def refused(self, origin: Origin, bad: BadValues) -> LonghaulError:
        """The error of a row."""
        return LonghaulError(f"{self._source.url}, {self._where([origin], None)[0]}: {bad.line}")

    def skipped(
        self, origin: Origin, column: str | None, value: str | bytes | None, reason: str
    ) -> None:
        """Count a row."""
        found = self._found
        found.bad_rows += 1
        key = reason if column is None else f"{column}: {reason}"
        found.reasons[key] = found.reasons.get(key, 0) + 1
        if len(self._samples) < self._room or (self._samples and origin < self._samples[-1][0]):
            sample = (origin, column, _shortened(value), reason)
            bisect.insort(self._samples, sample, key=lambda each: each[0])
            del self._samples[self._room :]

    def check(self) -> None:
        """Count what the reader left out. Raises LonghaulError for more than there may be."""
        while self._left_out:
            record, value, reason = self._left_out.popleft()
            self.skipped((record, NO_LIST), None, value, reason)
        if self._found.bad_rows > self._most:
            self.close()
            raise LonghaulError(
                f"bad rows: {self._found.bad_rows:,} so far, more than most_bad_rows allows of all "
                f"files; {self._found._first()}"
            )

    def close(self) -> None:
        """All rows have been seen: find the lines of those that are shown."""
        wheres = self._where([origin for origin, *_ in self._samples], _NEAR)
        for where, (_, column, value, reason) in zip(wheres, self._samples, strict=True):
            self._found.samples.append(BadRow(self._source.url, where, column, value, reason))
        self._samples, self._room = [], 0

    def _where(self, origins: list[Origin], near: int | None) -> list[str]:
        places = explain.places(self._source, [record for record, _ in origins], near)
        return [
            place if entry == NO_LIST else f"{place}, entry {entry + 1}"
            for place, (_, entry) in zip(places, origins, strict=True)
        ]


def _shortened(value: str | bytes | None) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else value.decode(errors="replace")
    text = text.replace(MARK, "\ufffd")
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
