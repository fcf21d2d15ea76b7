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

from pipeline.errors import LonghaulError

# Says where a row of the batch in hand lies: file and line.
Place = Callable[[int], str]

MAX_KEY_BYTES = 1024  # in a member, every key takes the bytes of the longest


def first_failing(array: pa.Array, check: Callable[[pa.Array], object]) -> int:
    """Index of the first entry that ``check`` fails on, by halving; it fails on ``array``."""
    low, high = 0, len(array)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            check(array.slice(low, middle - low))
        except pa.ArrowException:
            high = middle
        else:
            low = middle
    return low


def as_string(array: pa.Array, name: str, place: Place) -> pa.Array:
    """A string array of any layout as plain strings, checked to be UTF-8.

    With 64-bit offsets: the keys of many users outgrow 2 GiB together.
    """
    plain = array.cast(pa.large_string())

    def check(part: pa.Array) -> None:
        part.validate(full=True)

    try:
        check(plain)
    except pa.ArrowInvalid:
        row = first_failing(plain, check)
        raise LonghaulError(
            f"{place(row)}: column '{name}' is not valid UTF-8; convert the file"
        ) from None
    return plain


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
        self._name = name
        self._what = use if use == "action" else f"{use} id"
        self._strings = strings

    def typed(self, array: pa.Array, place: Place) -> pa.Array:
        """The batch as i64, or as strings.

        Raises NeedsStrings for what is no integer of 64 bits where strings were not asked for,
        LonghaulError for a missing or empty value, one with a NUL byte, one of more than
        ``MAX_KEY_BYTES``, or a column of another type.
        """
        if array.null_count:
            row = pc.index(array.is_null(), True).as_py()
            raise LonghaulError(f"{place(row)}: {self._missing('missing')}")
        if is_string(array.type):
            array = as_string(array, self._name, place)
            if self._strings:
                self._check_strings(array, place)
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
            raise LonghaulError(
                f"{place(0)}: column '{self._name}' has the type {array.type}, but {self._what}s "
                "are integers or strings; cast it"
            )
        if integers is None:
            raise NeedsStrings(self._use)
        return integers

    def _missing(self, how: str) -> str:
        return f"the {self._what} in column '{self._name}' is {how}; drop the row or mend it"

    def _check_strings(self, keys: pa.Array, place: Place) -> None:
        checks = {
            "empty": pc.equal(keys, ""),
            "one with a NUL byte": pc.match_substring(keys, "\0"),
            f"longer than {MAX_KEY_BYTES} bytes": pc.greater(pc.binary_length(keys), MAX_KEY_BYTES),
        }
        for how, bad in checks.items():
            row = pc.index(bad, True).as_py()
            if row >= 0:
                raise LonghaulError(f"{place(row)}: {self._missing(how)}")


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
