"""Times and ratings: how a column of them becomes numbers, exactly or not at all."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.prepare.bad import BadValues
from pipeline.prepare.keys import as_string, failing, is_string, marked
from pipeline.prepare.options import PER_SECOND, Unit

EXACT = 2**53  # floats hold every integer below this
_PLAIN = r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"  # numbers, of which each text here is one
_HEX = r"^0[xX][0-9a-fA-F]{1,16}$"
_LOOK = 1000  # texts among which one at least has to be a time


class _Bad(Exception):
    """Values that are no times: their rows in the batch, and why."""

    def __init__(self, rows: np.ndarray, reason: str, whole: bool = False) -> None:
        self.rows = rows
        self.reason = reason
        self.whole = whole


def natural_unit(kind: pa.DataType | None, number: Unit) -> Unit:
    """The unit of a column that none was asked for: of datetimes that of their type, else that of
    a ``number``."""
    return kind.unit if kind is not None and pa.types.is_timestamp(kind) else number


class TimeColumn:
    """A column of times of one file, turned batch by batch into i64 in ``unit``.

    Texts are read as the first is written that is a time. name: the column, for errors. numbers:
    whether those of the last batch were written as numbers.
    """

    def __init__(self, name: str, unit: Unit) -> None:
        self.name = name
        self._unit = unit
        self._text: Callable[[pa.Array], np.ndarray] | None = None
        self.numbers = False

    def typed(self, array: pa.Array) -> np.ndarray:
        """The batch as i64 ``[N]``.

        Raises BadValues for a value that is missing, no time, or no whole number of the unit.
        """
        if array.null_count:
            raise BadValues(
                marked(array.is_null()),
                self.name,
                "is missing",
                f"the timestamp in column '{self.name}' is missing; drop the row or mend it",
            )
        if is_string(array.type):
            array = as_string(array, self.name)
        try:
            return self._convert(array)
        except _Bad as bad:
            value = array[int(bad.rows[0])]
            if pa.types.is_timestamp(array.type):
                value = value.cast(pa.string())
            raise BadValues(
                bad.rows,
                self.name,
                bad.reason.partition(";")[0],
                f"timestamp '{value.as_py()}' in column '{self.name}' {bad.reason}",
                bad.whole,
            ) from None

    def check(self, array: pa.Array) -> None:
        """Raise BadValues as ``typed`` does."""
        self.typed(array)

    def _convert(self, array: pa.Array) -> np.ndarray:
        kind = array.type
        self.numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
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
                rows = failing(array, lambda part: part.cast(pa.int64()))
                raise _Bad(rows, "does not fit 64 bits") from None
        if pa.types.is_floating(kind):
            values = array.cast(pa.float64()).to_numpy()
            return _whole(values, np.abs(values) < EXACT)
        if is_string(kind):
            return self._parse(array)
        why = f"has the type {kind}; times are numbers, ISO 8601 texts or datetimes"
        raise _Bad(np.arange(1), why, whole=True)

    def _parse(self, texts: pa.Array) -> np.ndarray:
        if len(texts) == 0:
            return np.empty(0, np.int64)
        if self._text is None:
            self._text = _way_of_writing(texts, self._unit)
        self.numbers = self._text is _numbers
        return self._text(texts)


def _whole(values: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Floats as integers; ``exact`` marks those small enough to be exact."""
    with np.errstate(invalid="ignore"):
        good = exact & (values == np.floor(values))
    if not good.all():
        large = ~exact & np.isfinite(values)
        first = int(np.argmin(good))
        if large[first]:
            rows = np.flatnonzero(large)
            raise _Bad(rows, "is a float too large to be exact; write it as an integer")
        rows = np.flatnonzero(~good & ~large)
        raise _Bad(rows, "is no whole number; write integers in timestamp_unit")
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
        odd = np.flatnonzero(~_matches(texts, _PLAIN))
        rows = odd[failing(texts.take(pa.array(odd)), lambda part: part.cast(pa.float64()))]
        picked = texts.take(pa.array(rows))
        hexadecimal = _matches(picked, _HEX)
        bad = rows[~hexadecimal]
        if len(bad):
            why = "is not a number; mend it, or write all times in one way"
            raise _Bad(bad, why) from None
        # Which is an integer for Arrow, and no float.
        mask = np.zeros(len(texts), bool)
        mask[rows] = True
        decimal = picked.cast(pa.int64()).cast(texts.type)
        return _numbers(pc.replace_with_mask(texts, mask, decimal))
    # Beyond 2^53 a float is not exact, so there the text itself must be an integer.
    large = np.isfinite(values) & (np.abs(values) >= EXACT)
    times = _whole(np.where(large, 0.0, values), np.isfinite(values))
    if large.any():
        rows = np.flatnonzero(large)
        picked = texts.take(pa.array(rows))
        try:
            times[rows] = picked.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid:
            bad = failing(picked, lambda part: part.cast(pa.int64()))
            raise _Bad(rows[bad], "is no integer of 64 bits") from None
    return times


def _matches(texts: pa.Array, pattern: str) -> np.ndarray:
    """Which texts a pattern matches, bool ``[N]``."""
    found: np.ndarray = pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)
    return found


def _datetimes(texts: pa.Array, unit: Unit, zone: str | None) -> np.ndarray:
    def parse(part: pa.Array, precision: str) -> np.ndarray:
        parsed = part.cast(pa.timestamp(precision, zone)).cast(pa.int64())
        return _rescale(parsed.to_numpy(), precision, unit)

    for precision in ("us", "ns"):  # nanoseconds are finer, but end in 2262
        try:
            return parse(texts, precision)
        except pa.ArrowInvalid:
            pass
    rows = failing(texts, lambda part: part.cast(pa.timestamp("us", zone)))
    picked = texts.take(pa.array(rows))
    bad = rows[failing(picked, lambda part: part.cast(pa.timestamp("ns", zone)))]
    if len(bad):
        offset = "with a zone" if zone else "without a zone"
        raise _Bad(bad, f"is no ISO 8601 time {offset} as before it; write all times in one way")
    times = np.empty(len(texts), np.int64)  # both far and fine ones
    for row in range(len(texts)):
        try:
            times[row] = _datetimes(texts.slice(row, 1), unit, zone)[0]
        except _Bad as bad:
            raise _Bad(np.array([row]), bad.reason) from None
    return times


def _way_of_writing(texts: pa.Array, unit: Unit) -> Callable[[pa.Array], np.ndarray]:
    """How to read the texts of a file, as the first that is a time is written."""

    def naive(texts: pa.Array) -> np.ndarray:
        return _datetimes(texts, unit, None)

    def zoned(texts: pa.Array) -> np.ndarray:
        return _datetimes(texts, unit, "UTC")

    looked = min(len(texts), _LOOK)
    for row in range(looked):
        first = texts.slice(row, 1)
        if _parses(first, pa.float64()) or _parses(first, pa.int64()):
            return _numbers
        for precision in ("us", "ns"):
            if _parses(first, pa.timestamp(precision)):
                return naive
            if _parses(first, pa.timestamp(precision, "UTC")):
                return zoned
    raise _Bad(np.arange(looked), "is neither a number nor an ISO 8601 time")


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
            raise _Bad(np.flatnonzero(bad), f"does not fit 64 bits in {want}; set timestamp_unit")
        return values * factor
    factor = PER_SECOND[have] // PER_SECOND[want]
    whole, rest = np.divmod(values, factor)
    if rest.any():
        raise _Bad(
            np.flatnonzero(rest), f"is no whole number of {want}; set timestamp_unit to a finer one"
        )
    return whole


class RatingColumn:
    """A column of ratings, turned batch by batch into f64; ``name`` is for errors."""

    def __init__(self, name: str) -> None:
        self.name = name

    def typed(self, array: pa.Array) -> np.ndarray:
        """The batch as f64 ``[N]``; raises BadValues for a value missing or no number."""
        if is_string(array.type):
            array = as_string(array, self.name)

        def number(part: pa.Array) -> pa.Array:
            return part.cast(pa.float64())

        if array.null_count:
            raise self._bad(array, marked(array.is_null()))
        try:
            values: np.ndarray = number(array).to_numpy()
        except pa.ArrowNotImplementedError:
            raise self._bad(array, np.arange(1), whole=True) from None
        except pa.ArrowInvalid:
            raise self._bad(array, failing(array, number)) from None
        if np.isnan(values).any():
            raise self._bad(array, np.flatnonzero(np.isnan(values)))
        return values

    def check(self, array: pa.Array) -> None:
        """Raise BadValues as ``typed`` does."""
        self.typed(array)

    def _bad(self, array: pa.Array, rows: np.ndarray, whole: bool = False) -> BadValues:
        why = "is not a number"
        value = array[int(rows[0])].as_py()
        line = f"rating '{value}' in column '{self.name}' {why}; drop the row or mend it"
        return BadValues(rows, self.name, why, line, whole)
