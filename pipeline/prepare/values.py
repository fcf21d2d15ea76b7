"""Times and ratings: how a column of them becomes numbers, exactly or not at all."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import LonghaulError
from pipeline.prepare.keys import Place, as_string, first_failing, is_string
from pipeline.prepare.options import PER_SECOND, Unit

_EXACT = 2**53  # floats hold every integer below this


class _Bad(Exception):
    """A value that is no time: its row in the batch, and why."""

    def __init__(self, row: int, reason: str) -> None:
        self.row = row
        self.reason = reason


def natural_unit(kind: pa.DataType) -> Unit:
    """The unit of a column that no unit was asked for: of datetimes that of their type, else s."""
    return kind.unit if pa.types.is_timestamp(kind) else "s"


class TimeColumn:
    """A column of times of one file, turned batch by batch into i64 in ``unit``.

    Texts are read as the first is written. name: the column, for errors.
    """

    def __init__(self, name: str, unit: Unit) -> None:
        self._name = name
        self._unit = unit
        self._text: Callable[[pa.Array], np.ndarray] | None = None

    def typed(self, array: pa.Array, place: Place) -> np.ndarray:
        """The batch as i64 ``[N]``.

        Raises LonghaulError for a value that is missing, no time, or no whole number of the unit.
        """
        if array.null_count:
            row = pc.index(array.is_null(), True).as_py()
            raise LonghaulError(
                f"{place(row)}: the timestamp in column '{self._name}' is missing; "
                "drop the row or mend it"
            )
        if is_string(array.type):
            array = as_string(array, self._name, place)
        try:
            return self._convert(array)
        except _Bad as bad:
            value = array[bad.row]
            if pa.types.is_timestamp(array.type):
                value = value.cast(pa.string())
            raise LonghaulError(
                f"{place(bad.row)}: timestamp '{value.as_py()}' in column '{self._name}' "
                f"{bad.reason}"
            ) from None

    def _convert(self, array: pa.Array) -> np.ndarray:
        kind = array.type
        if pa.types.is_timestamp(kind):
            return _rescale(array.cast(pa.int64()).to_numpy(), kind.unit, self._unit)
        if pa.types.is_date(kind):
            days = array.cast(pa.timestamp("s")).cast(pa.int64()).to_numpy()
            return _rescale(days, "s", self._unit)
        if pa.types.is_integer(kind):
            try:
                integers: np.ndarray = array.cast(pa.int64()).to_numpy()
                return integers
            except pa.ArrowInvalid:
                row = first_failing(array, lambda part: part.cast(pa.int64()))
                raise _Bad(row, "does not fit 64 bits") from None
        if pa.types.is_floating(kind):
            values = array.cast(pa.float64()).to_numpy()
            return _whole(values, np.abs(values) < _EXACT)
        if is_string(kind):
            return self._parse(array)
        raise _Bad(0, f"has the type {kind}; times are numbers, ISO 8601 texts or datetimes")

    def _parse(self, texts: pa.Array) -> np.ndarray:
        if len(texts) == 0:
            return np.empty(0, np.int64)
        if self._text is None:
            self._text = _way_of_writing(texts.slice(0, 1), self._unit)
        return self._text(texts)


def _whole(values: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Floats as integers; ``exact`` marks those small enough to be exact."""
    with np.errstate(invalid="ignore"):
        good = exact & (values == np.floor(values))
    if not good.all():
        row = int(np.argmin(good))
        if not np.isfinite(values[row]) or exact[row]:
            raise _Bad(row, "is no whole number; write integers in timestamp_unit")
        raise _Bad(row, "is a float too large to be exact; write it as an integer")
    return values.astype(np.int64)


def _numbers(texts: pa.Array) -> np.ndarray:
    try:
        integers: np.ndarray = texts.cast(pa.int64()).to_numpy()
        return integers
    except pa.ArrowInvalid:
        pass
    try:
        values = texts.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        row = first_failing(texts, lambda part: part.cast(pa.float64()))
        raise _Bad(row, "is not a number; mend it, or write all times in one way") from None
    # Beyond 2^53 a float is not exact, so there the text itself must be an integer.
    large = np.isfinite(values) & (np.abs(values) >= _EXACT)
    times = _whole(np.where(large, 0.0, values), np.isfinite(values))
    if large.any():
        rows = np.flatnonzero(large)
        picked = texts.take(pa.array(rows))
        try:
            times[rows] = picked.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid:
            row = first_failing(picked, lambda part: part.cast(pa.int64()))
            raise _Bad(int(rows[row]), "is no integer of 64 bits") from None
    return times


def _datetimes(texts: pa.Array, unit: Unit, zone: str | None) -> np.ndarray:
    def parse(part: pa.Array) -> tuple[pa.Array, str]:
        try:
            return part.cast(pa.timestamp("us", zone)), "us"
        except pa.ArrowInvalid:  # nanoseconds are finer, but end in 2262
            return part.cast(pa.timestamp("ns", zone)), "ns"

    try:
        parsed, precision = parse(texts)
    except pa.ArrowInvalid:
        row = first_failing(texts, parse)
        offset = "with a zone" if zone else "without a zone"
        raise _Bad(
            row, f"is no ISO 8601 time {offset} as before it; write all times in one way"
        ) from None
    return _rescale(parsed.cast(pa.int64()).to_numpy(), precision, unit)


def _way_of_writing(first: pa.Array, unit: Unit) -> Callable[[pa.Array], np.ndarray]:
    """How to read the texts of a file, as its first row is written."""

    def naive(texts: pa.Array) -> np.ndarray:
        return _datetimes(texts, unit, None)

    def zoned(texts: pa.Array) -> np.ndarray:
        return _datetimes(texts, unit, "UTC")

    if _parses(first, pa.float64()):
        return _numbers
    for precision in ("us", "ns"):
        if _parses(first, pa.timestamp(precision)):
            return naive
        if _parses(first, pa.timestamp(precision, "UTC")):
            return zoned
    raise _Bad(0, "is neither a number nor an ISO 8601 time")


def _parses(texts: pa.Array, kind: pa.DataType) -> bool:
    try:
        texts.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _rescale(values: np.ndarray, have: str, want: Unit) -> np.ndarray:
    """Times from one unit to another, exactly."""
    if PER_SECOND[want] >= PER_SECOND[have]:
        factor = PER_SECOND[want] // PER_SECOND[have]
        limit = (2**63 - 1) // factor
        bad = (values > limit) | (values < -limit)
        if bad.any():
            raise _Bad(int(np.argmax(bad)), f"does not fit 64 bits in {want}; set timestamp_unit")
        return values * factor
    factor = PER_SECOND[have] // PER_SECOND[want]
    whole, rest = np.divmod(values, factor)
    if rest.any():
        row = int(np.flatnonzero(rest)[0])
        raise _Bad(row, f"is no whole number of {want}; set timestamp_unit to a finer one")
    return whole


class RatingColumn:
    """A column of ratings, turned batch by batch into f64; ``name`` is for errors."""

    def __init__(self, name: str) -> None:
        self._name = name

    def typed(self, array: pa.Array, place: Place) -> np.ndarray:
        """The batch as f64 ``[N]``; raises LonghaulError for a value missing or no number."""
        if is_string(array.type):
            array = as_string(array, self._name, place)

        def number(part: pa.Array) -> pa.Array:
            return part.cast(pa.float64())

        row = -1
        if array.null_count:
            row = pc.index(array.is_null(), True).as_py()
        else:
            try:
                values: np.ndarray = number(array).to_numpy()
                row = int(np.argmax(np.isnan(values))) if np.isnan(values).any() else -1
            except pa.ArrowNotImplementedError:
                row = 0
            except pa.ArrowInvalid:
                row = first_failing(array, number)
        if row >= 0:
            raise LonghaulError(
                f"{place(row)}: rating '{array[row].as_py()}' in column '{self._name}' "
                "is not a number; drop the row or mend it"
            )
        return values
