"""Where training ends and validation and test begin, for the data set and for every user."""

import numpy as np

from pipeline.duration import parse_duration
from pipeline.errors import LonghaulError
from pipeline.manifest import Split
from pipeline.prepare.options import PER_SECOND, PrepareOptions, Unit, parse_time, parse_window


def resolve_split(options: PrepareOptions, last: int | None, unit: Unit | None) -> Split:
    """The split with its times in ``unit``, that of the data.

    Durations count back from just after the ``last`` event. Raises LonghaulError where a time or a
    duration is no whole number of the unit, or the windows are not in order.
    """
    if options.split == "leave_one_out":
        return Split(kind="leave_one_out")
    assert last is not None
    assert unit is not None
    assert options.validation is not None
    assert options.test is not None
    gap = _duration("gap", options.gap or "0s", unit)
    test = _window("test", options.test, last + 1, unit)
    validation = _window("validation", options.validation, test[0] - gap, unit)
    if options.train_end is None:
        train_end = validation[0] - gap
    else:
        train_end = _time("train_end", options.train_end, unit)
    edges = {
        "the end of training": train_end,
        "the start of validation": validation[0],
        "the end of validation": validation[1],
        "the start of test": test[0],
        "the end of test": test[1],
    }
    names, values = list(edges), list(edges.values())
    for i in range(4):
        inside_a_window = i in (1, 3)
        if values[i] > values[i + 1] or (inside_a_window and values[i] == values[i + 1]):
            raise LonghaulError(
                f"split by time: {names[i]} ({values[i]} {unit}) is not before {names[i + 1]} "
                f"({values[i + 1]} {unit}); the last event is at {last}"
            )
    return Split(kind="time", train_end=train_end, validation=validation, test=test)


def _whole(name: str, text: str, nanoseconds: int, unit: Unit) -> int:
    scaled = nanoseconds * PER_SECOND[unit]
    if scaled % 10**9:
        raise LonghaulError(
            f"{name}: {text} is no whole number of {unit}, the unit of the timestamps; "
            "give a longer one, or set timestamp_unit"
        )
    return scaled // 10**9


def _duration(name: str, text: str, unit: Unit) -> int:
    nanoseconds = parse_duration(text)
    assert nanoseconds is not None, "checked by the options"
    return _whole(name, text, nanoseconds, unit)


def _time(name: str, text: str, unit: Unit) -> int:
    try:
        return parse_time(text, unit)
    except ValueError as error:
        raise LonghaulError(f"{name}: {error}; the timestamps are in {unit}") from error


def _window(name: str, text: str, end: int, unit: Unit) -> tuple[int, int]:
    if parse_duration(text) is not None:
        return end - _duration(name, text, unit), end
    try:
        window = parse_window(text, unit)
    except ValueError as error:
        raise LonghaulError(f"{name}: {error}; the timestamps are in {unit}") from error
    assert window is not None, "checked by the options"
    return window


def split_marks(split: Split, lengths: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """Train end, validation start, validation end, test start of every user, u32 ``[U, 4]``.

    lengths: events of every user, i64 ``[U]``. times: of their events back to back, i64 ``[T]``,
    sorted within a user; only a split by time looks at them.
    """
    if split.kind == "leave_one_out":
        short = lengths < 3
        train = np.where(short, lengths, lengths - 2)
        test = np.where(short, lengths, lengths - 1)
        return np.stack([train, train, test, test], axis=1).astype(np.uint32)
    assert times is not None
    assert split.train_end is not None
    assert split.validation is not None
    assert split.test is not None
    ends = np.cumsum(lengths)
    marks = np.empty((len(lengths), 4), np.uint32)
    for column, edge in enumerate((split.train_end, *split.validation, split.test[0])):
        # A history is sorted by time, so a mark is the number of its events before the edge.
        before = np.concatenate([[0], np.cumsum(times < edge)])
        marks[:, column] = before[ends] - before[ends - lengths]
    return marks
