"""Ids: how a column of them becomes sorted keys and codes, and how a key is hashed.

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


class KeyColumn:
    """A column of ids, gathered batch by batch into keys and codes.

    name: the column, for errors. what: ``user id``, ``item id`` or ``action``. text: keep every
    value as a string, whatever it looks like.
    """

    def __init__(self, name: str, what: str, text: bool = False) -> None:
        self._name = name
        self._what = what
        self._strings = text
        self._chunks: list[pa.DictionaryArray] = []

    def add(self, array: pa.Array, typed: bool, place: Place) -> None:
        """Append a batch; ``typed`` where its format tells strings from integers.

        Raises LonghaulError for a missing or empty value, one with a NUL byte, one of more than
        ``MAX_KEY_BYTES``, or a column of another type.
        """
        if array.null_count:
            row = pc.index(array.is_null(), True).as_py()
            raise LonghaulError(f"{place(row)}: {self._missing('missing')}")
        if pa.types.is_integer(array.type):
            try:
                encoded = array.cast(pa.int64()).dictionary_encode()
            except pa.ArrowInvalid:  # unsigned integers past the signed ones
                encoded = array.cast(pa.large_string()).dictionary_encode()
                self._strings = True
        elif is_string(array.type):
            array = as_string(array, self._name, place)
            self._strings = self._strings or typed
            integers = None if self._strings else _as_integers(array)
            if integers is None:
                self._strings = True
                encoded = array.dictionary_encode()
                self._check_strings(encoded, place)
            else:
                encoded = integers.dictionary_encode()
        else:
            raise LonghaulError(
                f"{place(0)}: column '{self._name}' has the type {array.type}, but {self._what}s "
                "are integers or strings; cast it"
            )
        self._chunks.append(encoded)

    def _missing(self, how: str) -> str:
        return f"the {self._what} in column '{self._name}' is {how}; drop the row or mend it"

    def _check_strings(self, encoded: pa.DictionaryArray, place: Place) -> None:
        keys = encoded.dictionary
        checks = {
            "empty": pc.equal(keys, ""),
            "one with a NUL byte": pc.match_substring(keys, "\0"),
            f"longer than {MAX_KEY_BYTES} bytes": pc.greater(pc.binary_length(keys), MAX_KEY_BYTES),
        }
        for how, bad in checks.items():
            code = pc.index(bad, True).as_py()
            if code >= 0:
                row = pc.index(encoded.indices, code).as_py()
                raise LonghaulError(f"{place(row)}: {self._missing(how)}")

    def finish(self) -> tuple[pa.Array, np.ndarray]:
        """Keys sorted (integers by value, strings by bytes), and the code u32 ``[N]`` of each row.

        A code is the position of the row's key among the keys.
        """
        chunks = self._chunks
        self._chunks = []
        if self._strings:
            chunks = [
                pa.DictionaryArray.from_arrays(
                    chunk.indices, chunk.dictionary.cast(pa.large_string())
                )
                for chunk in chunks
            ]
        try:
            unified = pa.chunked_array(chunks).unify_dictionaries()
        except pa.ArrowException as error:
            raise LonghaulError(
                f"column '{self._name}' has too many different {self._what}s for one machine "
                f"({error}); is it the right column?"
            ) from error
        keys = unified.chunk(0).dictionary
        by_key = pc.array_sort_indices(keys)
        rank = np.empty(len(keys), np.uint32)
        rank[by_key.to_numpy()] = np.arange(len(keys), dtype=np.uint32)
        codes = np.empty(len(unified), np.uint32)
        start = 0
        for chunk in unified.chunks:
            codes[start : start + len(chunk)] = rank[chunk.indices.to_numpy()]
            start += len(chunk)
        return keys.take(by_key), codes


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
