"""Ids: how a column of them becomes integers or strings, and how a key is hashed.

Parquet and JSON have types, which are kept: integers are integers, strings stay strings. Text
formats have none: there, ids are integers if every value in the whole data is written as one
(``7``, ``-7``; not ``007`` or ``+7``) and fits 64 bits, else strings. Where files disagree, all
ids are strings, integers in decimal.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.prepare.bad import BadValues

MAX_KEY_BYTES = 1024  # in a member, every key takes the bytes of the longest
_MOST_FAILING = 2**12


def failing(array: pa.Array, check: Callable[[pa.Array], object]) -> np.ndarray:
    """Indexes of the first entries that ``check`` fails on, ascending, by halving.

    All of them, or as many as one can bear to find in this way.
    """
    found: list[int] = []
    parts = [(0, len(array))]
    while parts and len(found) < _MOST_FAILING:
        low, high = parts.pop()
        try:
            check(array.slice(low, high - low))
        except pa.ArrowException:
            if high - low == 1:
                found.append(low)
            else:
                middle = (low + high) // 2
                parts += [(middle, high), (low, middle)]
    return np.array(found, np.int64)


def marked(mask: pa.Array) -> np.ndarray:
    """Indexes of what a bool array marks; null is no mark."""
    return np.flatnonzero(mask.fill_null(False).to_numpy(zero_copy_only=False))


def as_string(array: pa.Array, name: str) -> pa.Array:
    """A string array of any layout as plain strings, checked to be UTF-8.

    With 64-bit offsets: the keys of many users outgrow 2 GiB together.
    """
    plain = array.cast(pa.large_string())

    def check(part: pa.Array) -> None:
        part.validate(full=True)

    try:
        check(plain)
    except pa.ArrowInvalid:
        raise not_utf8(failing(plain, check), name) from None
    return plain


def not_utf8(rows: np.ndarray, name: str) -> BadValues:
    """Of a column that has other bytes in these rows."""
    why = "is not valid UTF-8"
    return BadValues(rows, name, why, f"column '{name}' {why}; convert the file")


def is_string(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _as_integers(texts: pa.Array) -> pa.Array | None:
    """The texts as i64, or None where one of them is not how an integer is written."""
    try:
        integers = texts.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    # The way back tells 007 and +7 from 7.
    return integers if integers.cast(texts.type).equals(texts) else None


class NeedsStrings(Exception):
    """A column that was taken for integers holds something else: all of it has to be strings."""

    def __init__(self, use: str) -> None:
        super().__init__(use)
        self.use = use


class KeyColumn:
    """A column of ids, typed batch by batch.

    use: ``user``, ``item`` or ``action``. name: the column, for errors. strings: take every value
    as a string, whatever it looks like.
    """

    def __init__(self, use: str, name: str, strings: bool) -> None:
        self._use = use
        self.name = name
        self._what = use if use == "action" else f"{use} id"
        self._strings = strings

    def typed(self, array: pa.Array) -> pa.Array:
        """The batch as i64, or as strings.

        Raises NeedsStrings for what is no integer of 64 bits where strings were not asked for,
        BadValues for a missing or empty value, one with a NUL byte, one of more than
        ``MAX_KEY_BYTES``, or a column of another type.
        """
        self._check_present(array)
        if is_string(array.type):
            array = as_string(array, self.name)
            if self._strings:
                self._check_strings(array)
                return array
            integers = _as_integers(array)
        elif pa.types.is_integer(array.type):
            if self._strings:
                return array.cast(pa.large_string())
            try:
                integers = array.cast(pa.int64())
            except pa.ArrowInvalid:  # unsigned integers past the signed ones
                integers = None
        else:
            why = f"has the type {array.type}, but {self._what}s are integers or strings"
            line = f"column '{self.name}' {why}; cast it"
            raise BadValues(np.arange(1), self.name, why, line, whole=True)
        if integers is None:
            raise NeedsStrings(self._use)
        return integers

    def check(self, array: pa.Array) -> None:
        """Raise BadValues for what could be no id even where all are strings."""
        self._check_present(array)
        if is_string(array.type):
            self._check_strings(as_string(array, self.name))
        elif not pa.types.is_integer(array.type):
            self.typed(array)

    def _check_present(self, array: pa.Array) -> None:
        if array.null_count:
            raise self._bad(marked(array.is_null()), "missing")

    def _bad(self, rows: np.ndarray, how: str) -> BadValues:
        line = f"the {self._what} in column '{self.name}' is {how}; drop the row or mend it"
        return BadValues(rows, self.name, f"is {how}", line)

    def _check_strings(self, keys: pa.Array) -> None:
        checks = {
            "empty": pc.equal(keys, ""),
            "one with a NUL byte": pc.match_substring(keys, "\0"),
            f"longer than {MAX_KEY_BYTES} bytes": pc.greater(pc.binary_length(keys), MAX_KEY_BYTES),
        }
        for how, bad in checks.items():
            if pc.any(bad).as_py():
                raise self._bad(marked(bad), how)


def finalise(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 over u64 ``[N]``: a bijection that spreads every bit."""
    values = values.astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    spread: np.ndarray = values ^ (values >> np.uint64(31))
    return spread


def fnv1a(keys: pa.Array) -> np.ndarray:
    """The 64-bit FNV-1a hash of the UTF-8 bytes of every key, u64 ``[N]``."""
    keys = keys.cast(pa.large_string())
    offsets = np.frombuffer(keys.buffers()[1], np.int64)[keys.offset :][: len(keys) + 1]
    content = np.frombuffer(keys.buffers()[2] or b"", np.uint8)
    lengths = np.diff(offsets)
    # Longest first: the keys that still have a byte at a position are then a prefix.
    longest = np.argsort(-lengths, kind="stable")
    starts, remaining = offsets[:-1][longest], -lengths[longest]
    hashes = np.full(len(keys), 0xCBF29CE484222325, np.uint64)
    for position in range(int(lengths.max(initial=0))):
        count = int(np.searchsorted(remaining, -position, side="left"))
        byte = content[starts[:count] + position].astype(np.uint64)
        hashes[:count] = (hashes[:count] ^ byte) * np.uint64(0x100000001B3)
    unsorted = np.empty_like(hashes)
    unsorted[longest] = hashes
    return unsorted


def hash_keys(keys: pa.Array) -> np.ndarray:
    """The 64-bit hash that deals a user to a shard, u64 ``[N]``."""
    if pa.types.is_integer(keys.type):
        return finalise(keys.to_numpy().view(np.uint64))
    return finalise(fnv1a(keys))
