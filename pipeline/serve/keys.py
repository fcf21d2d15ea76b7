"""Keys of items and users: integers or strings, as arrays, as tensors in files, back to ids.

An array of keys is i64 ``[n]``, or UTF-8 bytes (numpy ``S``) of the longest key's width where keys
are strings, as in a member of a data set.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.errors import LonghaulError

Key = int | str


def as_array(keys: Sequence[Any], strings: bool, what: str) -> np.ndarray:
    """Keys of a user of the program as an array. LonghaulError for what is no such key."""
    kind: tuple[type, ...] = (str,) if strings else (int, np.integer)
    for found in set(map(type, keys)):
        if found is bool or not issubclass(found, kind):
            key = next(key for key in keys if type(key) is found)
            wanted = "strings" if strings else "integers"
            raise LonghaulError(f"{what} {key!r} is {found.__name__}, but {what}s are {wanted}")
    if strings:
        for key in keys:
            if "\0" in key:  # numpy would drop it from the end
                raise LonghaulError(f"{what} {key!r} has a NUL byte")
        return np.array([key.encode() for key in keys], dtype=np.bytes_)
    return np.array(keys, dtype=np.int64)


def as_list(keys: np.ndarray) -> list[Key]:
    """An array of keys for a user of the program."""
    if keys.dtype.kind == "S":
        return [key.decode() for key in keys.tolist()]
    found: list[Key] = keys.tolist()
    return found


def to_tensors(keys: np.ndarray) -> dict[str, torch.Tensor]:
    """For safetensors: ``keys`` i64 ``[n]``, or ``bytes`` u8 and ``offsets`` i64 ``[n + 1]``."""
    if keys.dtype.kind != "S":
        return {"keys": torch.from_numpy(np.array(keys, dtype=np.int64))}
    lengths = np.char.str_len(keys).astype(np.int64)
    width = max(1, keys.dtype.itemsize)
    square = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), width)
    content = square[np.arange(width) < lengths[:, None]]
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    return {"bytes": torch.from_numpy(content.copy()), "offsets": torch.from_numpy(offsets)}


def from_tensors(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """What ``to_tensors`` was given."""
    if "keys" in tensors:
        return tensors["keys"].numpy()
    return from_bytes(tensors["bytes"].numpy(), tensors["offsets"].numpy())


def from_bytes(content: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """String keys that lie back to back: u8 ``[N]``, i64 ``[n + 1]``."""
    lengths = np.diff(offsets)
    width = max(1, int(lengths.max(initial=0)))
    square = np.zeros((len(lengths), width), np.uint8)
    square[np.arange(width) < lengths[:, None]] = content
    keys: np.ndarray = square.reshape(-1).view(f"S{width}")
    return keys


class ItemKeys:
    """The keys of a catalogue: entry ``i - 1`` is the key of item ``i``."""

    def __init__(self, keys: np.ndarray) -> None:
        self.array = keys
        self.strings = keys.dtype.kind == "S"
        # Ids follow the sorted keys, but for items that an appended set added.
        self._order: np.ndarray | None = None
        self._sorted = keys
        if len(keys) and not (keys[:-1] < keys[1:]).all():
            self._order = np.argsort(keys, kind="stable")
            self._sorted = keys[self._order]

    def __len__(self) -> int:
        return len(self.array)

    def hash(self) -> str:
        """SHA-256 of all keys in the order of ids."""
        digest = hashlib.sha256()
        for name, tensor in sorted(to_tensors(self.array).items()):
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The ids of keys, i64 ``[n]``, from 1; 0 where there is no such item."""
        if self.strings and keys.dtype.itemsize > self._sorted.dtype.itemsize:
            # A search among wider keys would copy the whole catalogue.
            fits = np.char.str_len(keys) <= self._sorted.dtype.itemsize
            found = np.zeros(len(keys), np.int64)
            found[fits] = self.find(keys[fits].astype(self._sorted.dtype))
            return found
        if not len(self.array):
            return np.zeros(len(keys), np.int64)
        place = np.searchsorted(self._sorted, keys).clip(max=len(self._sorted) - 1)
        known = self._sorted[place] == keys
        ids = place if self._order is None else self._order[place]
        return np.where(known, ids + 1, 0)

    def ids(self, keys: Sequence[Any]) -> np.ndarray:
        """The ids of keys, i64 ``[n]``. LonghaulError naming the first that is unknown."""
        wanted = as_array(keys, self.strings, "item")
        found = self.find(wanted)
        if len(found) and not found.all():
            unknown = keys[int(np.flatnonzero(found == 0)[0])]
            raise LonghaulError(
                f"item {unknown!r} is not in the catalogue of {len(self):,} items that the model "
                f"knows ({int((found == 0).sum()):,} of {len(found):,} are not)"
            )
        return found

    def keys(self, ids: np.ndarray) -> list[Key]:
        """The keys of ids i64 ``[n]``, from 1."""
        return as_list(self.array[ids - 1])
