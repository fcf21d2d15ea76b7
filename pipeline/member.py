"""The unit of storage and of reading: one WebDataset member, a block of many users.

A member is a WebDataset sample whose fields are little-endian ``.npy`` arrays, so stock webdataset
reads it too (``docs/formats.md``). Here a member goes to tar bytes and back, nothing else: which
users share a member is decided in ``prepare``, where the bytes lie is in the index.
"""

import hashlib
import io
import re
import tarfile
from dataclasses import dataclass

import numpy as np
import webdataset

from pipeline.errors import LonghaulError

# Columns of Member.splits: positions in a user's history, counted from its first event.
# [0, train_end) is trained on; [train_end, validation_start) and [validation_end, test_start) are
# gaps, seen as history but never a target; the test part runs to the end of the history.
TRAIN_END, VALIDATION_START, VALIDATION_END, TEST_START = range(4)


@dataclass(frozen=True, eq=False)
class Member:
    """Histories of ``U`` users with ``T`` events in all, back to back in time order.

    items: u32 ``[T]``, 1..catalogue size (0 is reserved).
    offsets: u64 ``[U + 1]``; user ``u`` owns events ``offsets[u]`` up to ``offsets[u + 1]``.
    users: keys ``[U]``, i64, or UTF-8 bytes (numpy ``S``) where ids are strings.
    splits: u32 ``[U, 4]``: train end, validation start, validation end, test start.
    timestamps: i64 ``[T]`` in the manifest's unit, or None.
    actions: u8 ``[T]``, an index into the manifest's list of actions, or None.
    """

    items: np.ndarray
    offsets: np.ndarray
    users: np.ndarray
    splits: np.ndarray
    timestamps: np.ndarray | None = None
    actions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """Events of each user, i64 ``[U]``."""
        return np.diff(self.offsets.astype(np.int64))


_FIELDS: dict[str, np.dtype | None] = {
    "items": np.dtype("<u4"),
    "offsets": np.dtype("<u8"),
    "users": None,  # i64 or fixed-width bytes
    "splits": np.dtype("<u4"),
    "timestamps": np.dtype("<i8"),
    "actions": np.dtype("u1"),
}
_OPTIONAL = ("timestamps", "actions")


def encode_member(key: str, member: Member) -> bytes:
    """The member's slice of a shard: tar entries with fixed headers, without the archive's end.

    Slices concatenate to a valid tar once the end-of-archive blocks follow (``SHARD_END``).
    """
    sample: dict[str, object] = {"__key__": key}
    for name, dtype in _FIELDS.items():
        values = getattr(member, name)
        if values is None:
            continue
        sample[f"{name}.npy"] = np.ascontiguousarray(values, dtype=dtype or values.dtype)
    buffer = io.BytesIO()
    writer = webdataset.TarWriter(buffer, user="longhaul", group="longhaul", mtime=0)
    writer.write(sample)
    length = writer.tarstream.offset
    writer.close()
    return buffer.getvalue()[:length]


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


def _array(content: bytes) -> np.ndarray:
    """The array of one ``.npy`` file of a member, as a view on ``content``.

    Not np.load: it copies every array, and it parses the header with ``ast``, which raises
    SystemError now and then when several threads do so at once (CPython issue 106905), as ours do.
    """
    header = _HEADER.match(content)
    if header is None or header.end() != 10 + int.from_bytes(header["length"], "little"):
        raise ValueError("an array has no header that prepare writes")
    shape = [int(size) for size in header["shape"].split(b",") if size.strip()]
    return np.frombuffer(content, header["dtype"].decode(), offset=header.end()).reshape(shape)


def decode_member(content: bytes, where: str) -> Member:
    """The member whose slice of a shard is ``content``; ``where`` names it in errors.

    Raises LonghaulError where the bytes are no member: the caller has already checked the hash, so
    this means a data set written by something else than ``prepare``.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content + SHARD_END), mode="r:") as archive:
            for entry in archive:
                file = archive.extractfile(entry)
                assert file is not None, f"{entry.name} is no regular file"
                field = entry.name.split(".", 1)[1].removesuffix(".npy")
                arrays[field] = _array(file.read())
        member = Member(**arrays)
        assert int(member.offsets[-1]) == len(member.items), "offsets do not end at the last item"
        assert member.splits.shape == (len(member), 4), "splits have the wrong shape"
    except (tarfile.TarError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise LonghaulError(f"{where} is not a longhaul member: {error}") from error
    return member
