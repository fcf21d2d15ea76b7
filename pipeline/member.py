"""The unit of storage and of reading: one WebDataset member, a block of many users.

A member is a WebDataset sample whose fields are little-endian ``.npy`` arrays, so stock webdataset
reads it too (``docs/formats.md``). What training needs, the head, comes first and is read alone:
timestamps and keys are most of the bytes. Here a member goes to tar bytes and back, nothing else:
which users share a member is decided in ``prepare``, where the bytes lie is in the index.
"""

import hashlib
import io
import math
import re
import tarfile
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.errors import LonghaulError

# Columns of Head.splits: positions in a user's history, counted from its first event.
# [0, train_end) is trained on; [train_end, validation_start) and [validation_end, test_start) are
# gaps, seen as history but never a target; the test part runs to the end of the history.
TRAIN_END, VALIDATION_START, VALIDATION_END, TEST_START = range(4)


@dataclass(frozen=True, eq=False)
class Head:
    """What training reads of a member: histories of ``U`` users with ``T`` events in all.

    They lie back to back in time order.
    items: u32 ``[T]``, 1..catalogue size (0 is reserved).
    offsets: u64 ``[U + 1]``; user ``u`` owns events ``offsets[u]`` up to ``offsets[u + 1]``.
    splits: u32 ``[U, 4]``: train end, validation start, validation end, test start.
    """

    items: np.ndarray
    offsets: np.ndarray
    splits: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """Events of each user, i64 ``[U]``."""
        return np.diff(self.offsets.astype(np.int64))


@dataclass(frozen=True, eq=False)
class Member(Head):
    """A whole member.

    users: keys ``[U]``, i64, or UTF-8 bytes (numpy ``S``) where ids are strings.
    timestamps: i64 ``[T]`` in the manifest's unit, or None.
    actions: u8 ``[T]``, an index into the manifest's list of actions, or None.
    """

    users: np.ndarray
    timestamps: np.ndarray | None = None
    actions: np.ndarray | None = None


_HEAD: dict[str, np.dtype | None] = {
    "items": np.dtype("<u4"),
    "offsets": np.dtype("<u8"),
    "splits": np.dtype("<u4"),
}
_REST: dict[str, np.dtype | None] = {
    "users": None,  # i64 or fixed-width bytes
    "timestamps": np.dtype("<i8"),
    "actions": np.dtype("u1"),
}


def encode_member(key: str, member: Member) -> tuple[bytes, int]:
    """The member's slice of a shard, and how many bytes of it are its head.

    Tar entries with fixed headers, those of the head first, without the archive's end: slices
    concatenate to a valid tar once the end-of-archive blocks follow (``SHARD_END``).
    """
    import webdataset  # which loads torch; only who writes needs it

    buffer = io.BytesIO()
    writer = webdataset.TarWriter(buffer, user="longhaul", group="longhaul", mtime=0)
    ends = []
    for fields in (_HEAD, _REST):
        sample: dict[str, object] = {"__key__": key}
        for name, dtype in fields.items():
            values = getattr(member, name)
            if values is not None:
                sample[f"{name}.npy"] = np.ascontiguousarray(values, dtype=dtype or values.dtype)
        writer.write(sample)
        ends.append(writer.tarstream.offset)
    writer.close()
    return buffer.getvalue()[: ends[1]], ends[0]


SHARD_END = bytes(2 * tarfile.BLOCKSIZE)


def sha256(content: bytes) -> str:
    """The hexadecimal SHA-256 of ``content``."""
    return hashlib.sha256(content).hexdigest()


# What numpy writes before the values of an array of plain numbers or fixed-width bytes in C order.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)"
    rb"{'descr': '(?P<dtype>[<|][iuS]\d+)', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[\d, ]*)\), } *\n",
    re.DOTALL,
)


def _array(content: bytes, begin: int, end: int) -> np.ndarray:
    """The array of the ``.npy`` file at ``content[begin:end]``, as a view.

    Not np.load: it copies every array, and it parses the header with ``ast``, which raises
    SystemError now and then when several threads do so at once (CPython issue 106905), as ours do.
    """
    header = _HEADER.match(content, begin, end)
    length = int.from_bytes(header["length"], "little") if header else 0
    if header is None or header.end() != begin + 10 + length:
        raise ValueError("an array has no header that prepare writes")
    shape = [int(size) for size in header["shape"].split(b",") if size.strip()]
    dtype = np.dtype(header["dtype"].decode())
    if header.end() + math.prod(shape) * dtype.itemsize != end:
        raise ValueError("an array has another size than its header says")
    return np.frombuffer(content, dtype, math.prod(shape), header.end()).reshape(shape)


def _fields(content: bytes) -> dict[str, np.ndarray]:
    """The arrays in tar entries as ``encode_member`` writes them, by field, without a copy.

    Not tarfile: it takes longer than reading the bytes and checking their hash together.
    """
    found = {}
    at = 0
    while at < len(content):
        name = content[at : at + 100].rstrip(b"\0").decode()
        size = int(content[at + 124 : at + 135], 8)
        begin = at + tarfile.BLOCKSIZE
        field = name.split(".", 1)[1].removesuffix(".npy")
        found[field] = _array(content, begin, begin + size)
        at = begin - (-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return found


def decode_head(content: bytes, where: str) -> Head:
    """The head whose bytes are ``content``; as ``decode_member``."""
    return _decoded(Head, content, where)


def decode_member(content: bytes, where: str) -> Member:
    """The member whose slice of a shard is ``content``; ``where`` names it in errors.

    Raises LonghaulError where the bytes are no member: the caller has already checked the hash, so
    this means a data set written by something else than ``prepare``.
    """
    return _decoded(Member, content, where)


H = TypeVar("H", bound=Head)


def _decoded(kind: type[H], content: bytes, where: str) -> H:
    try:
        found = kind(**_fields(content))
        if int(found.offsets[-1]) != len(found.items):
            raise ValueError("offsets do not end at the last item")
        if found.splits.shape != (len(found), 4):
            raise ValueError("splits have the wrong shape")
    except (ValueError, TypeError, IndexError) as error:
        raise LonghaulError(f"{where} is not a longhaul member: {error}") from error
    return found
